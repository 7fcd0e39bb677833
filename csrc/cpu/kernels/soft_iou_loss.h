// Soft IoU of a run of pixels: bound by the exponentials; two classes need one sigmoid per pixel.
#pragma once
#include <cstdint>

#include "logits.h"
#include "math.h"

namespace colorseg::cpu::COLORSEG_ISA {

// Softmax over the channels of each lane, in place.
template <typename T>
inline void softmax_of(T* __restrict tile, int64_t channels) {
  if (channels == 2) {
    for (int64_t l = 0; l < kLanes;
         ++l) {  // both from the smaller exponential: no digit is lost near 0
      const T difference = tile[kLanes + l] - tile[l];
      const T e = exp(difference < T(0) ? difference : -difference);
      const T large = T(1) / (T(1) + e), small = e * large;
      tile[l] = difference < T(0) ? large : small;
      tile[kLanes + l] = difference < T(0) ? small : large;
    }
    return;
  }
  T best[kLanes], sum[kLanes] = {};
  max_of(tile, channels, best);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t l = 0; l < kLanes; ++l) {
      const T e = exp(tile[c * kLanes + l] - best[l]);
      tile[c * kLanes + l] = e;
      sum[l] += e;
    }
  }
  for (int64_t l = 0; l < kLanes; ++l) sum[l] = T(1) / sum[l];
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t l = 0; l < kLanes; ++l) tile[c * kLanes + l] *= sum[l];
  }
}

template <typename T>
void soft_iou_sums(Logits<T> logits, int64_t pixels, const int32_t* labels, const int64_t* classes,
                   int64_t selected, T* scratch, double* sums) {
  T* __restrict partial = scratch + logits.channels * kLanes;  // [selected][2][kLanes]
  for (int64_t i = 0; i < 2 * selected * kLanes; ++i) partial[i] = T(0);
  for (int64_t k = 0; k < 3 * selected; ++k) sums[k] = 0;
  int32_t label[kLanes];
  for (int64_t p = 0; p < pixels; p += kLanes) {
    const int64_t lanes = lanes_from(p, pixels);
    load_tile(logits, p, lanes, scratch);
    load_labels(labels + p, lanes, label);
    softmax_of(scratch, logits.channels);
    for (int64_t k = 0; k < selected; ++k) {
      const int32_t id = static_cast<int32_t>(classes[k]);
      const T* __restrict x = scratch + id * kLanes;
      T* __restrict intersection = partial + 2 * k * kLanes;
      T* __restrict probability = intersection + kLanes;
      int32_t count = 0;
      for (int64_t l = 0; l < kLanes; ++l) {
        intersection[l] += label[l] == id ? x[l] : T(0);
        probability[l] += label[l] >= 0 ? x[l] : T(0);
        count += label[l] == id;
      }
      sums[3 * k + 2] += count;
    }
  }
  for (int64_t k = 0; k < selected; ++k) {
    for (int64_t l = 0; l < kLanes; ++l) {
      sums[3 * k] += partial[2 * k * kLanes + l];
      sums[3 * k + 1] += partial[(2 * k + 1) * kLanes + l];
    }
  }
}

// With x = softmax(z) and d_k = dL/dx_k: dL/dz_c = x_c (d_c - sum_k x_k d_k).
template <typename T>
void soft_iou_backward(Logits<T> logits, int64_t pixels, const int32_t* labels,
                       const int64_t* classes, int64_t selected, const T* inside, const T* outside,
                       T* scratch, T* grad) {
  T* __restrict slope =
      scratch + logits.channels * kLanes;  // [channels][kLanes]: d of every channel
  int32_t label[kLanes];
  for (int64_t p = 0; p < pixels; p += kLanes) {
    const int64_t lanes = lanes_from(p, pixels);
    T mean[kLanes] = {};
    load_tile(logits, p, lanes, scratch);
    load_labels(labels + p, lanes, label);
    softmax_of(scratch, logits.channels);
    for (int64_t i = 0; i < logits.channels * kLanes; ++i) slope[i] = T(0);
    for (int64_t k = 0; k < selected; ++k) {
      const int32_t id = static_cast<int32_t>(classes[k]);
      const T in = inside[k], out = outside[k];
      const T* __restrict x = scratch + id * kLanes;
      for (int64_t l = 0; l < kLanes; ++l) {
        const T d = label[l] == id ? in : out;
        slope[id * kLanes + l] += d;  // a class may be listed twice
        mean[l] += x[l] * d;
      }
    }
    for (int64_t c = 0; c < logits.channels; ++c) {
      T* __restrict x = scratch + c * kLanes;
      for (int64_t l = 0; l < kLanes; ++l) {
        const T value = x[l] * (slope[c * kLanes + l] - mean[l]);
        x[l] = label[l] < 0 ? T(0) : value;
      }
    }
    store_tile(logits, p, lanes, scratch, grad);
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

// Soft IoU of a run of pixels, bound by the exponentials; two_classes.h has those of two classes.
#pragma once
#include <cstdint>

#include "logits.h"
#include "math.h"

namespace colorseg::cpu::COLORSEG_ISA {

// Softmax over the channels of each lane, into a tile; z may be that tile.
template <typename T>
inline void softmax_of(Block<const T> z, int64_t channels, T* tile) {
  T best[kLanes], sum[kLanes] = {};
  max_of(z, channels, best);
  for (int64_t c = 0; c < channels; ++c) {
    const T* from = z.line(c);
    T* to = tile + c * kLanes;
    for (int64_t l = 0; l < kLanes; ++l) {
      const T e = exp(from[l] - best[l]);
      to[l] = e;
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
  int32_t tile[kLanes];
  for (int64_t p = 0; p < pixels; p += kLanes) {
    const int64_t lanes = lanes_from(p, pixels);
    const int32_t* __restrict label = labels_of(labels + p, lanes, tile);
    softmax_of(block_of(logits, p, lanes, scratch), logits.channels, scratch);
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
  // [channels][kLanes]: d of every channel
  T* __restrict slope = scratch + logits.channels * kLanes;
  int32_t tile[kLanes];
  for (int64_t p = 0; p < pixels; p += kLanes) {
    const int64_t lanes = lanes_from(p, pixels);
    T mean[kLanes] = {};
    const int32_t* __restrict label = labels_of(labels + p, lanes, tile);
    softmax_of(block_of(logits, p, lanes, scratch), logits.channels, scratch);
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
    const Block<T> to = gradient_block(logits, p, lanes, grad, scratch);
    for (int64_t c = 0; c < logits.channels; ++c) {
      const T* x = scratch + c * kLanes;
      T* line = to.line(c);  // may be x
      for (int64_t l = 0; l < kLanes; ++l) {
        const T value = x[l] * (slope[c * kLanes + l] - mean[l]);
        line[l] = label[l] < 0 ? T(0) : value;
      }
    }
    store_block(logits, p, lanes, to, grad);
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

// Soft IoU of a run of pixels.  Two classes are a sigmoid, one exponential a pixel, and bound by
// memory; more are bound by the exponentials.
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

// The sums of class kClass: intersection, probability, target.  Its probability is
// 1 / (1 + exp(other - mine)), to the last digit near 0 too.
template <int kClass, bool kIgnores, typename T>
void add_one_of_two(const Logits<T>& logits, int64_t pixels, const int32_t* labels, T* scratch,
                    double* sums) {
  T in[kLanes] = {}, all[kLanes] = {};
  int32_t target[kLanes] = {}, tile[kLanes];
  for (int64_t p = 0; p < pixels; p += kLanes) {
    const int64_t lanes = lanes_from(p, pixels);
    const Block<const T> z = block_of(logits, p, lanes, scratch);
    const int32_t* __restrict label = labels_of(labels + p, lanes, tile);
    const T* __restrict mine = z.line(kClass), * __restrict other = z.line(1 - kClass);
    for (int64_t l = 0; l < kLanes; ++l) {
      const T probability = T(1) / (T(1) + exp_clamped(other[l] - mine[l]));
      const T x = kIgnores && label[l] < 0 ? T(0) : probability;
      all[l] += x;
      in[l] += label[l] == kClass ? x : T(0);
      target[l] += label[l] == kClass;
    }
  }
  for (int64_t l = 0; l < kLanes; ++l) sums[0] += in[l], sums[1] += all[l], sums[2] += target[l];
}

template <int kClass, typename T>
void add_one_of_two(const Logits<T>& logits, int64_t pixels, const int32_t* labels, T* scratch,
                    double* sums) {
  int32_t ignored = pixels % kLanes == 0 ? 0 : -1;  // as are the lanes beyond the last pixel
  for (int64_t i = 0; i < pixels; ++i) ignored |= labels[i];
  if (ignored < 0) {
    add_one_of_two<kClass, true>(logits, pixels, labels, scratch, sums);
  } else {
    add_one_of_two<kClass, false>(logits, pixels, labels, scratch, sums);
  }
}

template <typename T>
void soft_iou_sums_of_two(const Logits<T>& logits, int64_t pixels, const int32_t* labels,
                          const int64_t* classes, int64_t selected, T* scratch, double* sums) {
  double of_class[2][3] = {};
  bool wanted[2] = {};
  for (int64_t k = 0; k < selected; ++k) wanted[classes[k]] = true;
  if (wanted[0]) add_one_of_two<0>(logits, pixels, labels, scratch, of_class[0]);
  if (wanted[1]) add_one_of_two<1>(logits, pixels, labels, scratch, of_class[1]);
  for (int64_t k = 0; k < selected; ++k) {
    for (int64_t i = 0; i < 3; ++i) sums[3 * k + i] = of_class[classes[k]][i];
  }
}

template <typename T>
void soft_iou_sums(Logits<T> logits, int64_t pixels, const int32_t* labels, const int64_t* classes,
                   int64_t selected, T* scratch, double* sums) {
  if (logits.channels == 2)
    return soft_iou_sums_of_two(logits, pixels, labels, classes, selected, scratch, sums);
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

// dL/dz_1 = x_0 x_1 (d_1 - d_0) = -dL/dz_0, where the last factor has a value per label.
template <typename T>
void soft_iou_backward_of_two(const Logits<T>& logits, int64_t pixels, const int32_t* labels,
                              const int64_t* classes, int64_t selected, const T* inside,
                              const T* outside, T* scratch, T* grad) {
  T at0 = T(0), at1 = T(0);
  for (int64_t k = 0; k < selected; ++k) {
    at0 += classes[k] == 1 ? outside[k] : -inside[k];
    at1 += classes[k] == 1 ? inside[k] : -outside[k];
  }
  int32_t tile[kLanes];
  for (int64_t p = 0; p < pixels; p += kLanes) {
    const int64_t lanes = lanes_from(p, pixels);
    const Block<const T> z = block_of(logits, p, lanes, scratch);
    const Block<T> to = gradient_block(logits, p, lanes, grad, scratch + 2 * kLanes);
    const T* __restrict z0 = z.line(0), * __restrict z1 = z.line(1);
    T* __restrict grad0 = to.line(0), * __restrict grad1 = to.line(1);
    const int32_t* __restrict label = labels_of(labels + p, lanes, tile);
    for (int64_t l = 0; l < kLanes; ++l) {
      const T e = exp_clamped(z0[l] - z1[l]), x1 = T(1) / (T(1) + e);
      const T value = e * x1 * x1 * (label[l] == 1 ? at1 : at0);
      grad1[l] = label[l] < 0 ? T(0) : value;
      grad0[l] = label[l] < 0 ? T(0) : -value;
    }
    store_block(logits, p, lanes, to, grad);
  }
}

// With x = softmax(z) and d_k = dL/dx_k: dL/dz_c = x_c (d_c - sum_k x_k d_k).
template <typename T>
void soft_iou_backward(Logits<T> logits, int64_t pixels, const int32_t* labels,
                       const int64_t* classes, int64_t selected, const T* inside, const T* outside,
                       T* scratch, T* grad) {
  if (logits.channels == 2)
    return soft_iou_backward_of_two(logits, pixels, labels, classes, selected, inside, outside,
                                    scratch, grad);
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

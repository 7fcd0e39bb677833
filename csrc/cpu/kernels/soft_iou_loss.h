// Soft IoU of a run of pixels.  Two classes are a sigmoid, one exponential a pixel, whose slope is
// kept, so that backward is bound by memory; more are bound by the exponentials.
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

// Pixels that are worked on in one loop, which keeps its constants in registers.
constexpr int64_t kRun = 8 * kLanes;

// Probabilities, x1 = 1 / (1 + exp(z0 - z1)) and if kBoth x0, to the last digit near 0 too; and
// their product, which is dx1/dz1, negative where the target is not 1.
template <bool kBoth, typename T>
inline void two_classes(const T* __restrict z0, const T* __restrict z1, int64_t stride,
                        int64_t pixels, const int32_t* __restrict label, T* __restrict x0,
                        T* __restrict x1, T* __restrict slope) {
  for (int64_t i = 0; i < pixels; ++i) {
    const T a = z0[i * stride], b = z1[i * stride];
    const T nan_of_infinity = (a > b ? a : b) * T(0);  // as in softmax, otherwise 0
    const T e = exp_clamped(a - b + nan_of_infinity), x = T(1) / (T(1) + e);
    if (kBoth) x0[i] = e * x;
    x1[i] = x;
    slope[i] = label[i] == 1 ? e * x * x : -(e * x * x);
  }
}

template <typename T>
inline void clear_ignored(int64_t pixels, const int32_t* __restrict label, T* __restrict values) {
  for (int64_t i = 0; i < pixels; ++i) values[i] = label[i] < 0 ? T(0) : values[i];
}

// Sums of one of two classes, per lane.
template <typename T>
struct ClassSums {
  T in[kLanes] = {}, all[kLanes] = {};
  int64_t target = 0;

  void add(const T* __restrict x, int64_t pixels, const int32_t* __restrict label, int32_t id) {
    int64_t p = 0;
    for (; p + kLanes <= pixels; p += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) {
        all[l] += x[p + l];
        in[l] += label[p + l] == id ? x[p + l] : T(0);
      }
    }
    for (int64_t l = 0; p + l < pixels; ++l) {
      all[l] += x[p + l];
      in[l] += label[p + l] == id ? x[p + l] : T(0);
    }
    int32_t count = 0;
    for (int64_t i = 0; i < pixels; ++i) count += label[i] == id;
    target += count;
  }

  void store(double* sums) const {
    sums[0] = sums[1] = 0, sums[2] = static_cast<double>(target);
    for (int64_t l = 0; l < kLanes; ++l) sums[0] += in[l], sums[1] += all[l];
  }
};

template <typename T>
void soft_iou_sums_of_two(const Logits<T>& logits, int64_t pixels, const int32_t* labels,
                          const int64_t* classes, int64_t selected, double* sums, T* slopes) {
  const int64_t stride = logits.pixel_stride;
  T x[2][kRun], unused[kRun];
  ClassSums<T> of_class[2];
  bool wanted[2] = {};
  for (int64_t k = 0; k < selected; ++k) wanted[classes[k]] = true;
  for (int64_t p = 0; p < pixels; p += kRun) {
    const int64_t count = pixels - p < kRun ? pixels - p : kRun;
    const T *z = logits.data + p * stride, *z1 = z + logits.channel_stride;
    const int32_t* label = labels + p;
    T* slope = slopes ? slopes + p : unused;
    if (wanted[0]) {
      two_classes<true>(z, z1, stride, count, label, x[0], x[1], slope);
    } else if (stride == 1) {
      two_classes<false>(z, z1, 1, count, label, x[0], x[1], slope);
    } else {
      two_classes<false>(z, z1, stride, count, label, x[0], x[1], slope);
    }
    int32_t ignored = 0;
    for (int64_t i = 0; i < count; ++i) ignored |= label[i];
    if (ignored < 0) {
      if (wanted[0]) clear_ignored(count, label, x[0]);
      clear_ignored(count, label, x[1]);
      clear_ignored(count, label, slope);
    }
    for (int32_t id = 0; id < 2; ++id) {
      if (wanted[id]) of_class[id].add(x[id], count, label, id);
    }
  }
  for (int64_t k = 0; k < selected; ++k) of_class[classes[k]].store(sums + 3 * k);
}

template <typename T>
void soft_iou_sums(Logits<T> logits, int64_t pixels, const int32_t* labels, const int64_t* classes,
                   int64_t selected, T* scratch, double* sums, T* slopes) {
  if (logits.channels == 2)
    return soft_iou_sums_of_two(logits, pixels, labels, classes, selected, sums, slopes);
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

// dL/dz_1 = x_0 x_1 (d_1 - d_0) = -dL/dz_0, where the last factor has a value per label: the kept
// slopes are all that is read.
template <typename T>
void soft_iou_backward_of_two(Logits<T> logits, int64_t pixels, const T* __restrict slopes,
                              const int64_t* classes, int64_t selected, const T* inside,
                              const T* outside, T* __restrict grad) {
  T at0 = T(0), at1 = T(0);
  for (int64_t k = 0; k < selected; ++k) {
    at0 += classes[k] == 1 ? -outside[k] : inside[k];
    at1 += classes[k] == 1 ? inside[k] : -outside[k];
  }
  const auto write = [=](int64_t stride) {
    T* __restrict grad0 = grad, * __restrict grad1 = grad + logits.channel_stride;
    for (int64_t i = 0; i < pixels; ++i) {
      const T value = slopes[i] * (slopes[i] > T(0) ? at1 : at0);
      grad1[i * stride] = slopes[i] == T(0) ? T(0) : value;
      grad0[i * stride] = slopes[i] == T(0) ? T(0) : -value;
    }
  };
  if (logits.pixel_stride == 1) return write(1);
  write(logits.pixel_stride);
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

// Soft IoU of two classes: a sigmoid, one exponential a pixel, whose slope is kept where the
// gradient's first channel will be, so that backward reads nothing else.
//
// Written for registers, since what bounds the loop is how many of its long chains the machine has
// under way at once: every step of a chain counts, and so does every other instruction.
#pragma once
#include <cstdint>
#include <cstring>

#include "logits.h"
#include "math.h"

namespace colorseg::cpu::COLORSEG_ISA {

// What a loop over pixels takes at once: a register of float, or one double, whose speed is no aim.
template <typename T>
struct Pixels {
  using Values = Vector;
  using Labels = Indices;
};
template <>
struct Pixels<double> {
  using Values = double;
  using Labels = int32_t;
};

inline double total(double value) { return value; }
inline double total(Vector values) {
  double sum = 0;
  for (int i = 0; i < kWidth; ++i) sum += values[i];
  return sum;
}
inline int64_t total(int32_t count) { return count; }
inline int64_t total(Indices counts) {
  int64_t sum = 0;
  for (int i = 0; i < kWidth; ++i) sum += counts[i];
  return sum;
}

// The values of both classes, which lie side by side where pixel_stride is 2.
inline void load_pair(const double* at, int64_t, int64_t channel_stride, double& v0, double& v1) {
  v0 = at[0], v1 = at[channel_stride];
}
inline void load_pair(const float* at, int64_t pixel_stride, int64_t channel_stride, Vector& v0,
                      Vector& v1) {
  v0 = load(at), v1 = load(at + (pixel_stride == 1 ? channel_stride : kWidth));
  if (pixel_stride == 1) return;
  const Vector first = v0;
  v0 = even_lanes(first, v1), v1 = odd_lanes(first, v1);
}
inline void store_pair(double* at, int64_t, int64_t channel_stride, double v0, double v1) {
  at[0] = v0, at[channel_stride] = v1;
}
inline void store_pair(float* at, int64_t pixel_stride, int64_t channel_stride, Vector v0,
                       Vector v1) {
  if (pixel_stride == 1) {
    store(at, v0), store(at + channel_stride, v1);
  } else {
    store(at, interleave(v0, v1, 0)), store(at + kWidth, interleave(v0, v1, kWidth / 2));
  }
}

// The first class alone.
inline double load_first(const double* at, int64_t) { return *at; }
inline Vector load_first(const float* at, int64_t pixel_stride) {
  return pixel_stride == 1 ? load(at) : even_lanes(load(at), load(at + kWidth));
}
inline void store_first(double* at, int64_t, double value) { *at = value; }
inline void store_first(float* at, int64_t pixel_stride, Vector value) {
  pixel_stride == 1 ? store(at, value) : store_pair(at, pixel_stride, 1, value, Vector{});
}

template <typename T>
struct ClassSums {
  using Values = typename Pixels<T>::Values;
  using Labels = typename Pixels<T>::Labels;
  Values in{}, all{};
  Labels target{};

  void add(Values x, Labels is_target) {
    all += x;
    in += is_target ? x : Values{};
    target += is_target ? Labels{} + 1 : Labels{};
  }
  void store(double* sums) const {
    sums[0] = total(in), sums[1] = total(all), sums[2] = total(target);
  }
};

// Probabilities, x1 = 1 / (1 + exp(z0 - z1)) and x0, to the last digit near 0 too; and their
// product, which is dx1/dz1, negative where the target is not 1.
template <bool kBoth, typename T>
inline void add_two_classes(const Logits<T>& logits, int64_t pixels, const int32_t* labels,
                            ClassSums<T>* of_class, T* slopes) {
  using Values = typename Pixels<T>::Values;
  using Labels = typename Pixels<T>::Labels;
  for (int64_t p = 0; p < pixels; p += sizeof(Values) / sizeof(T)) {
    Values z0, z1;
    load_pair(logits.data + p * logits.pixel_stride, logits.pixel_stride, logits.channel_stride, z0,
              z1);
    Labels label;
    std::memcpy(&label, labels + p, sizeof label);
    // the larger one times 0: NaN of infinity, as in softmax
    const Values e = exp_clamped(fma(z0 > z1 ? z0 : z1, Values{}, z0 - z1));
    const Values one = Values{} + 1, x1 = one / (one + e), x0 = e * x1, slope = x0 * x1;
    const auto counts = label >= 0, is_one = label == 1;
    of_class[1].add(counts ? x1 : Values{}, is_one);
    if (kBoth) of_class[0].add(counts ? x0 : Values{}, label == 0);
    const Values kept = is_one ? slope : counts ? -slope : Values{};
    if (slopes) store_first(slopes + p * logits.pixel_stride, logits.pixel_stride, kept);
  }
}

template <typename T>
void soft_iou_sums_of_two(const Logits<T>& logits, int64_t pixels, const int32_t* labels,
                          const int64_t* classes, int64_t selected, double* sums, T* slopes) {
  constexpr int64_t kStep = sizeof(typename Pixels<T>::Values) / sizeof(T);
  bool both = false;
  for (int64_t k = 0; k < selected; ++k) both |= classes[k] == 0;
  ClassSums<T> of_class[2];
  const auto add = [&](const Logits<T>& from, int64_t count, const int32_t* label, T* slope) {
    both ? add_two_classes<true>(from, count, label, of_class, slope)
         : add_two_classes<false>(from, count, label, of_class, slope);
  };
  const int64_t whole = pixels - pixels % kStep, rest = pixels - whole;
  add(logits, whole, labels, slopes);
  if (rest > 0) {  // pixels that count for nothing make it a register
    T tile[2 * kStep] = {}, slope[kStep];
    int32_t label[kStep];
    for (int64_t i = 0; i < kStep; ++i) label[i] = i < rest ? labels[whole + i] : -1;
    for (int64_t i = 0; i < rest; ++i) {
      const T* pixel = logits.data + (whole + i) * logits.pixel_stride;
      tile[i] = pixel[0], tile[kStep + i] = pixel[logits.channel_stride];
    }
    add({tile, 2, kStep, 1}, kStep, label, slope);
    for (int64_t i = 0; slopes && i < rest; ++i)
      slopes[(whole + i) * logits.pixel_stride] = slope[i];
  }
  for (int64_t k = 0; k < selected; ++k) of_class[classes[k]].store(sums + 3 * k);
}

// dL/dz_1 = x_0 x_1 (d_1 - d_0) = -dL/dz_0, where the last factor has a value per label.
template <typename T>
void soft_iou_backward_in_place(Logits<T> like, int64_t pixels, const int64_t* classes,
                                int64_t selected, const T* inside, const T* outside, T* grad) {
  using Values = typename Pixels<T>::Values;
  constexpr int64_t kStep = sizeof(Values) / sizeof(T);
  const int64_t pixel = like.pixel_stride, channel = like.channel_stride;
  T at0 = T(0), at1 = T(0);
  for (int64_t k = 0; k < selected; ++k) {
    at0 += classes[k] == 1 ? -outside[k] : inside[k];
    at1 += classes[k] == 1 ? inside[k] : -outside[k];
  }
  const auto slope_to_gradient = [=](auto slope) {  // 0 stays, also where a factor is infinite
    using V = decltype(slope);
    const V value = slope * (slope > V{} ? V{} + at1 : V{} + at0);
    return slope == V{} ? V{} : value;
  };
  int64_t p = 0;
  for (; p + kStep <= pixels; p += kStep, grad += kStep * pixel) {
    const Values value = slope_to_gradient(load_first(grad, pixel));
    store_pair(grad, pixel, channel, -value, value);
  }
  for (; p < pixels; ++p, grad += pixel) {
    const T value = slope_to_gradient(grad[0]);
    grad[0] = -value, grad[channel] = value;
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

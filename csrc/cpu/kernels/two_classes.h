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

// Sums of lanes; of a chunk of pixels, few enough for counts to be exact in float.
inline double total(double value) { return value; }
inline double total(int32_t count) { return count; }
inline double total(Vector lanes) {
  for (int left = kWidth; left > 1; left /= 2) lanes = pair_sums(lanes, lanes);
  return lanes[0];
}
inline double total(Indices counts) { return total(__builtin_convertvector(counts, Vector)); }

// How the values of a map lie: a pixel's side by side, as in channels_last, or not.
template <bool kBeside>
struct TwoChannels {
  int64_t channel_stride;
  static constexpr int64_t kPixel = kBeside ? 2 : 1;

  void load_pair(const double* at, double& v0, double& v1) const {
    v0 = at[0], v1 = at[channel_stride];
  }
  void load_pair(const float* at, Vector& v0, Vector& v1) const {
    v0 = load(at), v1 = load(at + (kBeside ? kWidth : channel_stride));
    if (!kBeside) return;
    const Vector first = v0;
    v0 = even_lanes(first, v1), v1 = odd_lanes(first, v1);
  }
  void store_pair(double* at, double v0, double v1) const { at[0] = v0, at[channel_stride] = v1; }
  void store_pair(float* at, Vector v0, Vector v1) const {
    store(at, kBeside ? interleave(v0, v1, 0) : v0);
    store(at + (kBeside ? kWidth : channel_stride), kBeside ? interleave(v0, v1, kWidth / 2) : v1);
  }

  // The first class alone.
  static double load_first(const double* at) { return *at; }
  static Vector load_first(const float* at) {
    return kBeside ? even_lanes(load(at), load(at + kWidth)) : load(at);
  }
  void store_first(double* at, double value) const { *at = value; }
  void store_first(float* at, Vector value) const {
    kBeside ? store_pair(at, value, Vector{}) : store(at, value);
  }
};

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
template <bool kBoth, typename T, typename Layout>
inline void add_two_classes(const T* logits, Layout layout, int64_t pixels, const int32_t* labels,
                            ClassSums<T>* of_class, T* slopes) {
  using Values = typename Pixels<T>::Values;
  using Labels = typename Pixels<T>::Labels;
  ClassSums<T> of0 = of_class[0], of1 = of_class[1];  // in registers: slopes may alias of_class
  for (int64_t p = 0; p < pixels; p += sizeof(Values) / sizeof(T)) {
    Values z0, z1;
    layout.load_pair(logits + p * layout.kPixel, z0, z1);
    Labels label;
    std::memcpy(&label, labels + p, sizeof label);
    // the larger one times 0: NaN of infinity, as in softmax
    const Values e = exp_clamped(fma(z0 > z1 ? z0 : z1, Values{}, z0 - z1));
    const Values one = Values{} + 1, x1 = one / (one + e), x0 = e * x1, slope = x0 * x1;
    const auto counts = label >= 0, is_one = label == 1;
    of1.add(counts ? x1 : Values{}, is_one);
    if (kBoth) of0.add(counts ? x0 : Values{}, label == 0);
    const Values kept = is_one ? slope : counts ? -slope : Values{};
    if (slopes) layout.store_first(slopes + p * layout.kPixel, kept);
  }
  of_class[0] = of0, of_class[1] = of1;
}

// A run of pixels with their labels at hand; the last register of it may be a part of one.
template <bool kBoth, typename T, typename Layout>
inline void add_run(const T* logits, Layout layout, int64_t pixels, const int32_t* labels,
                    ClassSums<T>* of_class, T* slopes) {
  constexpr int64_t kStep = sizeof(typename Pixels<T>::Values) / sizeof(T);
  const int64_t whole = pixels - pixels % kStep, rest = pixels - whole;
  add_two_classes<kBoth>(logits, layout, whole, labels, of_class, slopes);
  if (rest == 0) return;
  T tile[2 * kStep] = {}, slope[kStep];  // pixels that count for nothing make it a register
  int32_t label[kStep];
  for (int64_t i = 0; i < kStep; ++i) label[i] = i < rest ? labels[whole + i] : -1;
  for (int64_t i = 0; i < rest; ++i) {
    const T* pixel = logits + (whole + i) * layout.kPixel;
    tile[i] = pixel[0], tile[kStep + i] = pixel[layout.channel_stride];
  }
  add_two_classes<kBoth>(tile, TwoChannels<false>{kStep}, kStep, label, of_class, slope);
  for (int64_t i = 0; slopes && i < rest; ++i) slopes[(whole + i) * layout.kPixel] = slope[i];
}

// Calls body with how the logits lie, as a constant.
template <typename T, typename Body>
inline void with_layout(const Logits<T>& logits, const Body& body) {
  logits.pixel_stride == 2 ? body(TwoChannels<true>{1})
                           : body(TwoChannels<false>{logits.channel_stride});
}

// Labels are read a few at a time, so that the machine loads the next while it computes.
template <typename T, typename Label>
int64_t soft_iou_sums_of_two(Logits<T> logits, int64_t pixels, const Label* target, int64_t ignore,
                             const int64_t* classes, int64_t selected, double* sums, T* slopes) {
  constexpr int64_t kRun = 256;
  int32_t labels[kRun];
  bool both = false;
  for (int64_t k = 0; k < selected; ++k) both |= classes[k] == 0;
  ClassSums<T> of_class[2];
  int64_t bad = 0;
  with_layout(logits, [&](auto layout) {
    for (int64_t p = 0; p < pixels; p += kRun) {
      const int64_t count = pixels - p < kRun ? pixels - p : kRun, at = p * layout.kPixel;
      bad += labels_from(count, target + p, 2, ignore, labels);
      T* to = slopes ? slopes + at : nullptr;
      both ? add_run<true>(logits.data + at, layout, count, labels, of_class, to)
           : add_run<false>(logits.data + at, layout, count, labels, of_class, to);
    }
  });
  for (int64_t k = 0; k < selected; ++k) of_class[classes[k]].store(sums + 3 * k);
  return bad;
}

// dL/dz_1 = x_0 x_1 (d_1 - d_0) = -dL/dz_0, where the last factor has a value per label.
template <typename T>
void soft_iou_backward_in_place(Logits<T> like, int64_t pixels, const int64_t* classes,
                                int64_t selected, const T* inside, const T* outside, T* grad) {
  using Values = typename Pixels<T>::Values;
  constexpr int64_t kStep = sizeof(Values) / sizeof(T);
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
  with_layout(like, [&](auto layout) {
    int64_t p = 0;
    for (; p + kStep <= pixels; p += kStep, grad += kStep * layout.kPixel) {
      const Values value = slope_to_gradient(layout.load_first(grad));
      layout.store_pair(grad, -value, value);
    }
    for (; p < pixels; ++p, grad += layout.kPixel) {
      const T value = slope_to_gradient(grad[0]);
      grad[0] = -value, grad[layout.channel_stride] = value;
    }
  });
}

}  // namespace colorseg::cpu::COLORSEG_ISA

// Cross-entropy of a run of pixels.  With the gradient in the same pass every logit is read once,
// costs one exponential and is written once: bound by memory and the exponentials alike.
#pragma once
#include <cstdint>

#include "color_cross_entropy_gradient.h"
#include "math.h"
#include "soft_targets.h"

namespace colorseg::cpu::COLORSEG_ISA {

// Exponentials of logits within +-kPlain need no maximum taken off, and their sum stays far from
// the ends of the range, so that the maximum costs no pass of its own.
constexpr float kPlain = 40;

// Adds the exponentials of kLines channels to sum, and stores them if kKeep.  `largest` collects
// magnitudes.  Several channels at once, because sums go through memory in between.
template <int kLines, bool kKeep, typename T, typename Bits>
inline void add_exponentials(Block<const T> z, Block<T> e, int64_t c, T* __restrict sum,
                             Bits* __restrict largest) {
  const T* __restrict from[kLines];
  T* __restrict to[kLines];
  for (int j = 0; j < kLines; ++j) from[j] = z.line(c + j), to[j] = e.line(c + j);
#pragma GCC ivdep
  for (int64_t l = 0; l < kLanes; ++l) {
    T total = T(0);
    Bits most = largest[l];
#pragma GCC unroll 4
    for (int j = 0; j < kLines; ++j) {
      const T value = from[j][l], power = exp_bounded(value);
      if (kKeep) to[j][l] = power;
      total += power;
      most = magnitude(value) > most ? magnitude(value) : most;
    }
    sum[l] += total;
    largest[l] = most;
  }
}

// sum[l] = sum_c exp(z_c - shift[l]), the terms in e if kKeep; the shift is 0 or the maximum.
template <bool kKeep, typename T>
inline void sum_exponentials(Block<const T> z, int64_t channels, Block<T> e, T* __restrict shift,
                             T* __restrict sum) {
  using Bits = decltype(magnitude(T()));
  Bits largest[kLanes] = {}, any = 0;
  for (int64_t l = 0; l < kLanes; ++l) sum[l] = shift[l] = T(0);
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4) add_exponentials<4, kKeep>(z, e, c, sum, largest);
  for (; c < channels; ++c) add_exponentials<1, kKeep>(z, e, c, sum, largest);
  const Bits limit = magnitude(T(kPlain));
  for (int64_t l = 0; l < kLanes; ++l) any |= largest[l] > limit;
  if (!any) return;
  max_of(z, channels, shift);
  for (int64_t l = 0; l < kLanes; ++l) {
    sum[l] = T(0);
    shift[l] = largest[l] > limit ? shift[l] : T(0);  // a pixel's bits do not depend on others
  }
  for (c = 0; c < channels; ++c) {
    const T* __restrict line = z.line(c);
    T* __restrict to = e.line(c);
    for (int64_t l = 0; l < kLanes; ++l) {
      const T power = exp(line[l] - shift[l]);
      if (kKeep) to[l] = power;
      sum[l] += power;
    }
  }
}

// Sums per lane over a run, so that they add up in the same order on every instruction set.
template <typename T>
struct LaneSums {
  T loss[kLanes] = {}, weight[kLanes] = {};
  int32_t valid[kLanes] = {}, correct[kLanes] = {};
  CrossEntropySums total() const {
    CrossEntropySums sums = {0, 0, 0, 0};
    for (int64_t l = 0; l < kLanes; ++l) {
      sums.loss += loss[l], sums.weight += weight[l];
      sums.valid += valid[l], sums.correct += correct[l];
    }
    return sums;
  }
};

// sum_c w_c q_c (lse - z_c) of soft targets q; share is w q.
template <typename T>
inline void soft_losses_of(Block<const T> z, int64_t channels, const T* __restrict share,
                           const T* __restrict lse, T* __restrict value) {
  for (int64_t l = 0; l < kLanes; ++l) value[l] = T(0);
  for (int64_t c = 0; c < channels; ++c) {
    const T* __restrict line = z.line(c);
    for (int64_t l = 0; l < kLanes; ++l) value[l] += share[c * kLanes + l] * (lse[l] - line[l]);
  }
}

// loss = (1 - s) w_y (lse - z_y) + s / C (W lse - sum_c w_c z_c), with smoothing s and W = sum_c
// w_c; with soft targets, whose share is given, the first term is theirs and a pixel weighs 1
template <typename T>
inline void losses_of(Block<const T> z, int64_t channels, const int32_t* __restrict label,
                      const ClassWeights<T>& weights, const T* __restrict share,
                      const T* __restrict lse, T* __restrict value, LaneSums<T>& sums) {
  T w[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) {
    const int32_t y = label[l] < 0 ? 0 : label[l];
    w[l] = weights.weight && !share ? weights.weight[y] : T(1);
    value[l] = w[l] * (lse[l] - z.line(y)[l]);
  }
  if (share) soft_losses_of(z, channels, share, lse, value);
  if (weights.smoothing != T(0)) {
    const T keep = T(1) - weights.smoothing, spread = weights.smoothing / T(channels);
    T weighted[kLanes];
    weighted_sum_of(z, channels, weights.weight, weighted);
    for (int64_t l = 0; l < kLanes; ++l)
      value[l] = keep * value[l] + spread * (weights.total * lse[l] - weighted[l]);
  }
  for (int64_t l = 0; l < kLanes; ++l) value[l] = label[l] < 0 ? T(0) : value[l];
  for (int64_t l = 0; l < kLanes; ++l) sums.loss[l] += value[l];
  for (int64_t l = 0; l < kLanes; ++l) sums.weight[l] += label[l] < 0 ? T(0) : w[l];
  for (int64_t l = 0; l < kLanes; ++l) sums.valid[l] += label[l] >= 0;
}

template <typename T>
CrossEntropySums cross_entropy(Logits<T> logits, int64_t pixels, const int32_t* labels,
                               ClassWeights<T> weights, SoftTargets<T> soft, T* scratch,
                               T* log_sum_exp, T* loss, int64_t* argmax, T common, T* grad,
                               bool streams) {
  const int64_t channels = logits.channels;
  const Block<T> e = {scratch + channels * kLanes, kLanes};
  T* share = soft.neighbors ? scratch + 2 * channels * kLanes : nullptr;
  LaneSums<T> sums;
  T shift[kLanes], sum[kLanes], lse[kLanes], value[kLanes];
  int32_t tile[kLanes], index[kLanes];
  for (int64_t p = 0; p < pixels; p += kLanes) {
    const int64_t lanes = lanes_from(p, pixels);
    const Block<const T> z = block_of(logits, p, lanes, scratch);
    const int32_t* __restrict label = labels_of(labels + p, lanes, tile);
    if (share) soft_targets_of(soft, weights.weight, p, lanes, channels, e.data, share);
    if (grad) {
      sum_exponentials<true>(z, channels, e, shift, sum);
    } else {
      sum_exponentials<false>(z, channels, e, shift, sum);
    }
    for (int64_t l = 0; l < kLanes; ++l) lse[l] = shift[l] + log(sum[l]);
    losses_of(z, channels, label, weights, share, lse, value, sums);
    for (int64_t l = 0; l < lanes; ++l) log_sum_exp[p + l] = lse[l];
    for (int64_t l = 0; l < lanes && loss; ++l) loss[p + l] = value[l];
    if (argmax) {
      argmax_of(z, channels, index);
      for (int64_t l = 0; l < lanes; ++l) argmax[p + l] = index[l];
      for (int64_t l = 0; l < kLanes; ++l) sums.correct[l] += index[l] == label[l];
    }
    if (grad) {
      Slopes<T> slopes;
      slopes_of(label, channels, lanes, weights, share, PixelGradient<T>{nullptr, common}, slopes);
      const Block<T> to = gradient_block(logits, p, lanes, grad, e.data);
      gradient_of(e, sum, to, channels, label, weights, share, streams && in_place(logits, lanes),
                  slopes);
      store_block(logits, p, lanes, to, grad);
    }
  }
  finish_streams();
  return sums.total();
}

// d/dz_c = g ((1 - s) w_y (p_c - [c = y]) + s / C (W p_c - w_c)), and 0 where the label is ignored;
// with soft targets sum_i w_i q_i instead of w_y, and w_c q_c instead of w_y [c = y]
template <typename T>
void cross_entropy_backward(Logits<T> logits, int64_t pixels, const int32_t* labels,
                            ClassWeights<T> weights, SoftTargets<T> soft, const T* log_sum_exp,
                            PixelGradient<T> pixel, T* scratch, T* grad) {
  const int64_t channels = logits.channels;
  T* share = soft.neighbors ? scratch + 2 * channels * kLanes : nullptr;
  Slopes<T> slopes;
  int32_t tile[kLanes];
  for (int64_t p = 0; p < pixels; p += kLanes) {
    const int64_t lanes = lanes_from(p, pixels);
    const Block<const T> z = block_of(logits, p, lanes, scratch);
    const Block<T> to = gradient_block(logits, p, lanes, grad, scratch + channels * kLanes);
    T lse[kLanes] = {};
    for (int64_t l = 0; l < lanes; ++l) lse[l] = log_sum_exp[p + l];
    const int32_t* __restrict label = labels_of(labels + p, lanes, tile);
    if (share)
      soft_targets_of(soft, weights.weight, p, lanes, channels, scratch + channels * kLanes, share);
    slopes_of(label, channels, lanes, weights, share,
              PixelGradient<T>{pixel.each ? pixel.each + p : nullptr, pixel.common}, slopes);
    for (int64_t c = 0; c < channels; ++c) {
      const T* __restrict from = z.line(c);
      T* __restrict line = to.line(c);
      for (int64_t l = 0; l < kLanes; ++l) line[l] = slopes.scale[l] * exp(from[l] - lse[l]);
    }
    subtract_target(to, channels, label, slopes.hit, share);
    if (weights.smoothing != T(0)) subtract_even(to, channels, weights, slopes.even);
    if (any_ignored(label)) clear_ignored(to, channels, label);
    store_block(logits, p, lanes, to, grad);
  }
}

template <typename T>
void scale(int64_t count, T factor, T* values) {
  for (int64_t i = 0; i < count; ++i) values[i] *= factor;
}

}  // namespace colorseg::cpu::COLORSEG_ISA

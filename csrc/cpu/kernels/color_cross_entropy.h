// Cross-entropy of a run of pixels: bound by the exponentials, one per logit forward and one
// backward.
#pragma once
#include <cstdint>

#include "logits.h"
#include "math.h"

namespace colorseg::cpu::COLORSEG_ISA {

// First index of the largest logit, the first NaN if any: torch.argmax's rule.
template <typename T>
inline void argmax_of(const T* __restrict tile, int64_t channels, int32_t* __restrict index) {
  T best[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) best[l] = tile[l], index[l] = 0;
  for (int64_t c = 1; c < channels; ++c) {
    for (int64_t l = 0; l < kLanes; ++l) {
      const T z = tile[c * kLanes + l];
      const bool better = !(z <= best[l]) & (best[l] == best[l]);
      best[l] = better ? z : best[l];
      index[l] = better ? int32_t(c) : index[l];
    }
  }
}

// sum_c w_c z_c of each lane: what label smoothing needs beside the log-sum-exp.
template <typename T>
inline void weighted_sum_of(const T* __restrict tile, int64_t channels, const T* weight,
                            T* __restrict sum) {
  for (int64_t l = 0; l < kLanes; ++l) sum[l] = T(0);
  for (int64_t c = 0; c < channels; ++c) {
    const T w = weight ? weight[c] : T(1);
    for (int64_t l = 0; l < kLanes; ++l) sum[l] += w * tile[c * kLanes + l];
  }
}

template <typename T>
inline void log_sum_exp_of(const T* __restrict tile, int64_t channels, T* __restrict result) {
  T best[kLanes], sum[kLanes] = {};
  max_of(tile, channels, best);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t l = 0; l < kLanes; ++l) sum[l] += exp(tile[c * kLanes + l] - best[l]);
  }
  for (int64_t l = 0; l < kLanes; ++l) result[l] = best[l] + log(sum[l]);
}

// loss = (1 - s) w_y (lse - z_y) + s / C (W lse - sum_c w_c z_c), with smoothing s and W = sum_c
// w_c
template <typename T>
CrossEntropySums cross_entropy(Logits<T> logits, int64_t pixels, const int32_t* labels,
                               ClassWeights<T> weights, T* scratch, T* log_sum_exp, T* loss,
                               int64_t* argmax) {
  CrossEntropySums sums = {0, 0, 0, 0};
  const int64_t channels = logits.channels;
  const T keep = T(1) - weights.smoothing, spread = weights.smoothing / T(channels);
  T lse[kLanes], weighted[kLanes] = {};
  int32_t index[kLanes];
  for (int64_t p = 0; p < pixels; p += kLanes) {
    const int64_t lanes = lanes_from(p, pixels);
    load_tile(logits, p, lanes, scratch);
    log_sum_exp_of(scratch, channels, lse);
    if (weights.smoothing != T(0)) weighted_sum_of(scratch, channels, weights.weight, weighted);
    if (argmax) argmax_of(scratch, channels, index);
    for (int64_t l = 0; l < lanes; ++l) {
      const int32_t y = labels[p + l];
      log_sum_exp[p + l] = lse[l];
      if (argmax) argmax[p + l] = index[l];
      if (y < 0) {
        loss[p + l] = T(0);
        continue;
      }
      const T w = weights.weight ? weights.weight[y] : T(1);
      T value = keep * w * (lse[l] - scratch[y * kLanes + l]);
      if (weights.smoothing != T(0)) value += spread * (weights.total * lse[l] - weighted[l]);
      loss[p + l] = value;
      sums.loss += value;
      sums.weight += w;
      sums.valid += 1;
      sums.correct += argmax && index[l] == y;
    }
  }
  return sums;
}

// d/dz_c = g ((1 - s) w_y (p_c - [c = y]) + s / C (W p_c - w_c)), and 0 where the label is ignored
template <typename T>
void cross_entropy_backward(Logits<T> logits, int64_t pixels, const int32_t* labels,
                            ClassWeights<T> weights, const T* log_sum_exp, const T* grad_loss,
                            T* scratch, T* grad) {
  const int64_t channels = logits.channels;
  const T keep = T(1) - weights.smoothing, spread = weights.smoothing / T(channels);
  for (int64_t p = 0; p < pixels; p += kLanes) {
    const int64_t lanes = lanes_from(p, pixels);
    T lse[kLanes] = {}, hit[kLanes] = {}, all[kLanes] = {}, even[kLanes] = {};
    int32_t label[kLanes];
    load_tile(logits, p, lanes, scratch);
    load_labels(labels + p, lanes, label);
    for (int64_t l = 0; l < lanes; ++l) {
      if (label[l] < 0) continue;
      lse[l] = log_sum_exp[p + l];
      hit[l] = grad_loss[p + l] * keep * (weights.weight ? weights.weight[label[l]] : T(1));
      even[l] = grad_loss[p + l] * spread;
      all[l] = hit[l] + even[l] * weights.total;
    }
    for (int64_t c = 0; c < channels; ++c) {
      const T w = weights.weight ? weights.weight[c] : T(1);
      T* __restrict z = scratch + c * kLanes;
      for (int64_t l = 0; l < kLanes; ++l) {
        const T target = (label[l] == c ? hit[l] : T(0)) + even[l] * w;
        const T value = all[l] * exp(z[l] - lse[l]) - target;
        z[l] = label[l] < 0 ? T(0) : value;
      }
    }
    store_tile(logits, p, lanes, scratch, grad);
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

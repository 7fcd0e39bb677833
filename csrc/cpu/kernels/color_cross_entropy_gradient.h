// The gradient of cross-entropy, block by block.  It is finished in a tile, which is in the first
// cache, and written once, past the caches where the map is larger than they are: lines of other
// channels, a page apart, would push each other out before they are full.
#pragma once
#include <cstdint>

#include "logits.h"
#include "vector.h"

namespace colorseg::cpu::COLORSEG_ISA {

// Per lane of a block: d/dz_c = scale p_c - even w_c, and - hit at the label's channel, or - hit
// share_c with soft targets.
template <typename T>
struct Slopes {
  T scale[kLanes], hit[kLanes], even[kLanes];
};

template <typename T>
inline void slopes_of(const int32_t* __restrict label, int64_t channels, int64_t lanes,
                      const ClassWeights<T>& weights, const T* __restrict share,
                      const PixelGradient<T>& pixel, Slopes<T>& slopes) {
  const T keep = T(1) - weights.smoothing, spread = weights.smoothing / T(channels);
  T g[kLanes] = {};
  for (int64_t l = 0; l < lanes; ++l) g[l] = pixel.each ? pixel.each[l] : pixel.common;
  for (int64_t l = 0; l < kLanes; ++l) {
    const T w = weights.weight && label[l] >= 0 ? weights.weight[label[l]] : T(1);
    slopes.hit[l] = g[l] * keep * w;
    slopes.even[l] = g[l] * spread;
    slopes.scale[l] = slopes.hit[l] + slopes.even[l] * weights.total;
  }
  if (!share) return;
  T sum[kLanes] = {};
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t l = 0; l < kLanes; ++l) sum[l] += share[c * kLanes + l];
  }
  for (int64_t l = 0; l < kLanes; ++l) {
    slopes.hit[l] = g[l] * keep;
    slopes.scale[l] = slopes.hit[l] * sum[l] + slopes.even[l] * weights.total;
  }
}

// Takes `hit` off the label's channel: a line per lane, instead of a comparison per logit.
template <typename T>
inline void subtract_at_label(Block<T> grad, const int32_t* __restrict label,
                              const T* __restrict hit) {
  for (int64_t l = 0; l < kLanes; ++l) grad.line(label[l] < 0 ? 0 : label[l])[l] -= hit[l];
}

// The same, or what soft targets take off every channel.
template <typename T>
inline void subtract_target(Block<T> grad, int64_t channels, const int32_t* label, const T* hit,
                            const T* __restrict share) {
  if (!share) return subtract_at_label(grad, label, hit);
  for (int64_t c = 0; c < channels; ++c) {
    T* __restrict line = grad.line(c);
    for (int64_t l = 0; l < kLanes; ++l) line[l] -= hit[l] * share[c * kLanes + l];
  }
}

// Takes what label smoothing adds off the gradient.
template <typename T>
inline void subtract_even(Block<T> grad, int64_t channels, const ClassWeights<T>& weights,
                          const T* __restrict even) {
  for (int64_t c = 0; c < channels; ++c) {
    const T w = weights.weight ? weights.weight[c] : T(1);
    T* __restrict line = grad.line(c);
    for (int64_t l = 0; l < kLanes; ++l) line[l] -= even[l] * w;
  }
}

inline bool any_ignored(const int32_t* __restrict label) {
  int32_t ignored = 0;
  for (int64_t l = 0; l < kLanes; ++l) ignored |= label[l];
  return ignored < 0;
}

// Zeros where the label is ignored, whatever the logits are.
template <typename T>
inline void clear_ignored(Block<T> grad, int64_t channels, const int32_t* __restrict label) {
  for (int64_t c = 0; c < channels; ++c) {
    T* __restrict line = grad.line(c);
    for (int64_t l = 0; l < kLanes; ++l) line[l] = label[l] < 0 ? T(0) : line[l];
  }
}

template <typename T>
inline void scale_block(Block<T> e, const T* factor, int64_t channels, Block<T> to) {
  for (int64_t c = 0; c < channels; ++c) {
    const T* from = e.line(c);
    T* line = to.line(c);  // may be `from`
    for (int64_t l = 0; l < kLanes; ++l) line[l] = from[l] * factor[l];
  }
}
inline void scale_block(Block<double> e, const double* factor, int64_t channels, bool,
                        Block<double> to) {
  scale_block<double>(e, factor, channels, to);
}

// to = e * factor.  A map beyond the caches is written past them.
inline void scale_block(Block<float> e, const float* factor, int64_t channels, bool streams,
                        Block<float> to) {
  if (!streams || reinterpret_cast<uintptr_t>(to.data) % kVectorBytes || to.step % kWidth)
    return scale_block<float>(e, factor, channels, to);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t l = 0; l < kLanes; l += kWidth)
      stream(to.line(c) + l, load(e.line(c) + l) * load(factor + l));
  }
}

// The gradient from the exponentials, which are overwritten, and their sums.
template <typename T>
inline void gradient_of(Block<T> e, const T* sum, Block<T> to, int64_t channels,
                        const int32_t* label, const ClassWeights<T>& weights, const T* share,
                        bool streams, Slopes<T>& slopes) {
  for (int64_t l = 0; l < kLanes; ++l) slopes.scale[l] /= sum[l];
  if (weights.smoothing == T(0) && !share) {  // then scale is hit / sum
    subtract_at_label(e, label, sum);
  } else {
    scale_block<T>(e, slopes.scale, channels, e);
    subtract_target(e, channels, label, slopes.hit, share);
    subtract_even(e, channels, weights, slopes.even);
    for (int64_t l = 0; l < kLanes; ++l) slopes.scale[l] = T(1);
  }
  if (any_ignored(label)) {
    clear_ignored(e, channels, label);
    clear_ignored(Block<T>{slopes.scale, kLanes}, 1, label);
  }
  scale_block(e, slopes.scale, channels, streams, to);
}

}  // namespace colorseg::cpu::COLORSEG_ISA

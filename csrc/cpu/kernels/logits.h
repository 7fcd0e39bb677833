// Tiles of kLanes pixels of a logits map, as [channels][kLanes] whatever the map's layout.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace colorseg::cpu::COLORSEG_ISA {

inline int64_t lanes_from(int64_t pixel, int64_t pixels) {
  return pixels - pixel < kLanes ? pixels - pixel : kLanes;
}

// Lanes beyond the last pixel get logits 0, so that loops over kLanes need no condition.
template <typename T>
inline void load_tile(const Logits<T>& logits, int64_t pixel, int64_t lanes, T* __restrict tile) {
  const T* __restrict from = logits.data + pixel * logits.pixel_stride;
  for (int64_t c = 0; c < logits.channels; ++c, from += logits.channel_stride, tile += kLanes) {
    for (int64_t l = 0; l < lanes; ++l) tile[l] = from[l * logits.pixel_stride];
    for (int64_t l = lanes; l < kLanes; ++l) tile[l] = T(0);
  }
}

// A block of kLanes pixels: a line per channel, `step` values apart.
template <typename T>
struct Block {
  T* data;
  int64_t step;
  T* line(int64_t channel) const { return data + channel * step; }
};

// Whole blocks of adjacent pixels are worked on in the map itself, others in a tile.
template <typename T>
inline bool in_place(const Logits<T>& logits, int64_t lanes) {
  return lanes == kLanes && logits.pixel_stride == 1;
}

template <typename T>
inline Block<const T> block_of(const Logits<T>& logits, int64_t pixel, int64_t lanes, T* tile) {
  if (in_place(logits, lanes)) return {logits.data + pixel, logits.channel_stride};
  load_tile(logits, pixel, lanes, tile);
  return {tile, kLanes};
}

// Where the gradient of a block goes; it has the strides of the logits.
template <typename T>
inline Block<T> gradient_block(const Logits<T>& logits, int64_t pixel, int64_t lanes, T* grad,
                               T* tile) {
  if (in_place(logits, lanes)) return {grad + pixel, logits.channel_stride};
  return {tile, kLanes};
}

template <typename T>
inline void store_block(const Logits<T>& logits, int64_t pixel, int64_t lanes, Block<T> block,
                        T* grad) {
  if (in_place(logits, lanes)) return;
  T* to = grad + pixel * logits.pixel_stride;
  for (int64_t c = 0; c < logits.channels; ++c, to += logits.channel_stride) {
    const T* from = block.line(c);
    for (int64_t l = 0; l < lanes; ++l) to[l * logits.pixel_stride] = from[l];
  }
}

// The labels of a block, where they are if it is whole; -1 for lanes beyond the last pixel.
inline const int32_t* labels_of(const int32_t* labels, int64_t lanes, int32_t* tile) {
  if (lanes == kLanes) return labels;
  for (int64_t l = 0; l < lanes; ++l) tile[l] = labels[l];
  for (int64_t l = lanes; l < kLanes; ++l) tile[l] = -1;
  return tile;
}

// Written without a branch; `ignore` is INT64_MIN where nothing is.
template <typename Label>
int64_t any_labels_from(int64_t pixels, const Label* target, int64_t classes, int64_t ignore,
                        int32_t* labels) {
  int64_t bad = 0;
  for (int64_t i = 0; i < pixels; ++i) {
    const int64_t label = static_cast<int64_t>(target[i]);
    const bool known = (label >= 0) & (label < classes), ignored = label == ignore;
    labels[i] = known & !ignored ? static_cast<int32_t>(label) : -1;
    bad += !(known | ignored);
  }
  return bad;
}

// Labels that fit in 31 bits, the usual ones, are compared in 32: twice as many at once.
template <typename Label>
int64_t labels_from(int64_t pixels, const Label* __restrict target, int64_t classes, int64_t ignore,
                    int32_t* __restrict labels) {
  Label bits = 0;
  for (int64_t i = 0; i < pixels; ++i) {
    bits |= target[i];
    labels[i] = static_cast<int32_t>(target[i]);
  }
  if (static_cast<uint64_t>(bits) > INT32_MAX || classes > INT32_MAX)
    return any_labels_from(pixels, target, classes, ignore, labels);
  const int32_t end = static_cast<int32_t>(classes);
  const int32_t ignored = ignore < 0 || ignore > INT32_MAX ? -1 : static_cast<int32_t>(ignore);
  // Two classes, say, and no label has a bit beyond the first: each is one of them.
  const bool known = (end & (end - 1)) == 0 && static_cast<int32_t>(bits) < end;
  if (known && (ignored < 0 || ignored >= end)) return 0;
  int32_t bad = 0;
  for (int64_t i = 0; i < pixels; ++i) {
    const int32_t label = labels[i];
    bad += (label >= end) & (label != ignored);
    labels[i] = (label < end) & (label != ignored) ? label : -1;
  }
  return bad;
}

inline void labels_to_uint8(int64_t pixels, const int32_t* __restrict labels,
                            uint8_t* __restrict bytes) {
  for (int64_t i = 0; i < pixels; ++i) bytes[i] = static_cast<uint8_t>(labels[i]);
}

// The largest logit of each lane.
template <typename T>
inline void max_of(Block<const T> z, int64_t channels, T* __restrict best) {
  for (int64_t l = 0; l < kLanes; ++l) best[l] = z.data[l];
  for (int64_t c = 1; c < channels; ++c) {
    const T* __restrict line = z.line(c);
    for (int64_t l = 0; l < kLanes; ++l) best[l] = line[l] > best[l] ? line[l] : best[l];
  }
}

// First index of the largest logit, the first NaN if any: torch.argmax's rule.
template <typename T>
inline void argmax_of(Block<const T> z, int64_t channels, int32_t* __restrict index) {
  T best[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) best[l] = z.data[l], index[l] = 0;
  for (int64_t c = 1; c < channels; ++c) {
    const T* __restrict line = z.line(c);
    for (int64_t l = 0; l < kLanes; ++l) {
      const bool better = !(line[l] <= best[l]) & (best[l] == best[l]);
      best[l] = better ? line[l] : best[l];
      index[l] = better ? int32_t(c) : index[l];
    }
  }
}

// sum_c w_c z_c of each lane: what label smoothing needs beside the log-sum-exp.
template <typename T>
inline void weighted_sum_of(Block<const T> z, int64_t channels, const T* weight,
                            T* __restrict sum) {
  for (int64_t l = 0; l < kLanes; ++l) sum[l] = T(0);
  for (int64_t c = 0; c < channels; ++c) {
    const T w = weight ? weight[c] : T(1);
    const T* __restrict line = z.line(c);
    for (int64_t l = 0; l < kLanes; ++l) sum[l] += w * line[l];
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

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
    if (lanes == kLanes && logits.pixel_stride == 1) {
      for (int64_t l = 0; l < kLanes; ++l) tile[l] = from[l];
    } else {
      for (int64_t l = 0; l < lanes; ++l) tile[l] = from[l * logits.pixel_stride];
      for (int64_t l = lanes; l < kLanes; ++l) tile[l] = T(0);
    }
  }
}

// The gradient has the strides of the logits.
template <typename T>
inline void store_tile(const Logits<T>& logits, int64_t pixel, int64_t lanes,
                       const T* __restrict tile, T* grad) {
  T* __restrict to = grad + pixel * logits.pixel_stride;
  for (int64_t c = 0; c < logits.channels; ++c, to += logits.channel_stride, tile += kLanes) {
    if (lanes == kLanes && logits.pixel_stride == 1) {
      for (int64_t l = 0; l < kLanes; ++l) to[l] = tile[l];
    } else {
      for (int64_t l = 0; l < lanes; ++l) to[l * logits.pixel_stride] = tile[l];
    }
  }
}

inline void load_labels(const int32_t* labels, int64_t lanes, int32_t* tile) {
  for (int64_t l = 0; l < lanes; ++l) tile[l] = labels[l];
  for (int64_t l = lanes; l < kLanes; ++l) tile[l] = -1;
}

// Written without a branch; `ignore` is INT64_MIN where nothing is.
template <typename Label>
int64_t labels_from(int64_t pixels, const Label* target, int64_t classes, int64_t ignore,
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

// The largest logit of each lane.
template <typename T>
inline void max_of(const T* __restrict tile, int64_t channels, T* __restrict best) {
  for (int64_t l = 0; l < kLanes; ++l) best[l] = tile[l];
  for (int64_t c = 1; c < channels; ++c) {
    for (int64_t l = 0; l < kLanes; ++l) {
      const T z = tile[c * kLanes + l];
      best[l] = z > best[l] ? z : best[l];
    }
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

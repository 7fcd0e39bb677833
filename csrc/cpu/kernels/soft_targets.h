// Soft targets of a block of pixels: each is spread over the palette colors nearest to it, "soft
// encoding" in Zhang, Isola and Efros, "Colorful Image Colorization", 2016.
#pragma once
#include <cstdint>

#include "logits.h"
#include "math.h"
#include "nearest_color.h"

namespace colorseg::cpu::COLORSEG_ISA {

// Squared distances of a block's pixels to the palette, [colors][kLanes].
template <typename T>
inline void distances_of(const SoftTargets<T>& soft, int64_t pixel, int64_t lanes, int64_t colors,
                         T* __restrict distance) {
  T r[kLanes] = {}, g[kLanes] = {}, b[kLanes] = {};
  for (int64_t l = 0; l < lanes; ++l)
    r[l] = soft.red[pixel + l], g[l] = soft.green[pixel + l], b[l] = soft.blue[pixel + l];
  for (int64_t c = 0; c < colors; ++c) {
    const T* color = soft.palette + 3 * c;
    for (int64_t l = 0; l < kLanes; ++l)
      distance[c * kLanes + l] = square_sum(r[l] - color[0], g[l] - color[1], b[l] - color[2]);
  }
}

// share: [colors][kLanes], the target times the class weights; distance: scratch, alike.  Neighbors
// are taken one by one, so that ties go to the lowest index as in nearest_color.
template <typename T>
inline void soft_targets_of(const SoftTargets<T>& soft, const T* weight, int64_t pixel,
                            int64_t lanes, int64_t colors, T* __restrict distance,
                            T* __restrict share) {
  distances_of(soft, pixel, lanes, colors, distance);
  for (int64_t i = 0; i < colors * kLanes; ++i) share[i] = T(0);
  T nearest[kLanes], sum[kLanes] = {};
  for (int64_t j = 0; j < soft.neighbors; ++j) {
    T best[kLanes];
    int32_t index[kLanes] = {};
    for (int64_t l = 0; l < kLanes; ++l) best[l] = T(__builtin_inf());
    for (int64_t c = 0; c < colors; ++c) {
      const T* __restrict line = distance + c * kLanes;
      for (int64_t l = 0; l < kLanes; ++l) {
        index[l] = line[l] < best[l] ? static_cast<int32_t>(c) : index[l];
        best[l] = line[l] < best[l] ? line[l] : best[l];
      }
    }
    for (int64_t l = 0; l < kLanes && j == 0; ++l) nearest[l] = best[l];
    for (int64_t l = 0; l < kLanes; ++l) best[l] = exp((best[l] - nearest[l]) * soft.falloff);
    for (int64_t l = 0; l < kLanes; ++l) {
      sum[l] += best[l];
      share[index[l] * kLanes + l] = best[l];
      distance[index[l] * kLanes + l] = T(__builtin_inf());  // taken
    }
  }
  for (int64_t c = 0; c < colors; ++c) {
    const T w = weight ? weight[c] : T(1);
    for (int64_t l = 0; l < kLanes; ++l) share[c * kLanes + l] *= w / sum[l];
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

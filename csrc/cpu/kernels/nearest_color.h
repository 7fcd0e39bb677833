// Nearest palette color: bound by 8 operations per pixel and color, all in registers.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace colorseg::cpu::COLORSEG_ISA {

// Squared distances are added red, green, blue without fma, so that every instruction set and
// torch's own expression round alike; a tie goes to the lowest index.
template <typename T>
void nearest_color(int64_t pixels, const T* red, const T* green, const T* blue, const T* palette,
                   int64_t colors, int32_t* labels) {
  for (int64_t p = 0; p < pixels; p += kLanes) {
    const int64_t lanes = pixels - p < kLanes ? pixels - p : kLanes;
    T r[kLanes] = {}, g[kLanes] = {}, b[kLanes] = {}, best[kLanes];
    int32_t index[kLanes];
    for (int64_t l = 0; l < lanes; ++l) r[l] = red[p + l], g[l] = green[p + l], b[l] = blue[p + l];
    for (int64_t l = 0; l < kLanes; ++l) best[l] = T(__builtin_inf()), index[l] = 0;
    for (int64_t k = 0; k < colors; ++k) {
      const T kr = palette[3 * k], kg = palette[3 * k + 1], kb = palette[3 * k + 2];
      for (int64_t l = 0; l < kLanes; ++l) {
        const T dr = r[l] - kr, dg = g[l] - kg, db = b[l] - kb;
        const T distance = (dr * dr + dg * dg) + db * db;
        const bool closer = distance < best[l];
        best[l] = closer ? distance : best[l];
        index[l] = closer ? static_cast<int32_t>(k) : index[l];
      }
    }
    for (int64_t l = 0; l < lanes; ++l) labels[p + l] = index[l];
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

// Nearest palette color: bound by 8 operations per pixel and color, all in registers.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace colorseg::cpu::COLORSEG_ISA {

template <typename T>
inline T intensity(T value) {
  return value;
}
template <typename T>
inline T intensity(uint8_t value) {
  return T(value) * T(1.0 / 256);  // exact
}

// Added red, green, blue without fma, so that every instruction set and torch's own expression
// round alike.
template <typename T>
inline T square_sum(T r, T g, T b) {
  return (r * r + g * g) + b * b;
}

// The next kColors colors of the palette, from number k on: several at once, because the best so
// far goes through memory in between.  A tie goes to the lowest index.
template <int kColors, typename T>
inline void improve(const T* __restrict r, const T* __restrict g, const T* __restrict b,
                    const T* palette, int64_t k, T* __restrict best, int32_t* __restrict index) {
  T color[kColors][3];
  for (int j = 0; j < kColors; ++j) {
    for (int i = 0; i < 3; ++i) color[j][i] = palette[3 * (k + j) + i];
  }
  for (int64_t l = 0; l < kLanes; ++l) {
    T least = best[l];
    int32_t at = index[l];
#pragma GCC unroll 4
    for (int j = 0; j < kColors; ++j) {
      const T distance = square_sum(r[l] - color[j][0], g[l] - color[j][1], b[l] - color[j][2]);
      at = distance < least ? static_cast<int32_t>(k) + j : at;
      least = distance < least ? distance : least;
    }
    best[l] = least;
    index[l] = at;
  }
}

template <typename T, typename Value>
void nearest_colors(int64_t pixels, const Value* red, const Value* green, const Value* blue,
                    const T* palette, int64_t colors, int32_t* labels) {
  for (int64_t p = 0; p < pixels; p += kLanes) {
    const int64_t lanes = pixels - p < kLanes ? pixels - p : kLanes;
    T r[kLanes] = {}, g[kLanes] = {}, b[kLanes] = {}, best[kLanes];
    int32_t index[kLanes] = {};
    for (int64_t l = 0; l < lanes; ++l) r[l] = intensity<T>(red[p + l]);
    for (int64_t l = 0; l < lanes; ++l) g[l] = intensity<T>(green[p + l]);
    for (int64_t l = 0; l < lanes; ++l) b[l] = intensity<T>(blue[p + l]);
    for (int64_t l = 0; l < kLanes; ++l) best[l] = T(__builtin_inf());
    int64_t k = 0;
    for (; k + 4 <= colors; k += 4) improve<4>(r, g, b, palette, k, best, index);
    for (; k < colors; ++k) improve<1>(r, g, b, palette, k, best, index);
    for (int64_t l = 0; l < lanes; ++l) labels[p + l] = index[l];
  }
}

template <typename T>
void nearest_color(int64_t pixels, const T* red, const T* green, const T* blue, const T* palette,
                   int64_t colors, int32_t* labels) {
  nearest_colors(pixels, red, green, blue, palette, colors, labels);
}

template <typename T>
void nearest_color_bytes(int64_t pixels, const uint8_t* red, const uint8_t* green,
                         const uint8_t* blue, const T* palette, int64_t colors, int32_t* labels) {
  nearest_colors(pixels, red, green, blue, palette, colors, labels);
}

}  // namespace colorseg::cpu::COLORSEG_ISA

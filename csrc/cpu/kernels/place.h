// Between feature maps in memory and flat maps: lines are placed into phases, and collected.
//
// Strided accesses without gaps (2 i and 2 i + 1 in one loop) are what GCC vectorises.
#pragma once
#include <cstring>

#include "geometry.h"

namespace colorseg::cpu::COLORSEG_ISA {

template <bool kAffine, bool kRelu>
inline float activate(float x, const Activation& a) {
  if (kAffine) x = (x - a.center) * a.scale + a.offset;
  return kRelu & (x < 0.0f) ? 0.0f : x;  // keeps NaN
}

template <bool kAffine, bool kRelu>
void place_line(const float* __restrict from, int64_t width, const Activation a,
                float* __restrict even, float* __restrict odd) {
  if (odd == nullptr) {
    for (int64_t x = 0; x < width; ++x) even[x] = activate<kAffine, kRelu>(from[x], a);
    return;
  }
  for (int64_t x = 0; x < width / 2; ++x) {
    const float left = from[2 * x], right = from[2 * x + 1];
    even[x] = activate<kAffine, kRelu>(left, a);
    odd[x] = activate<kAffine, kRelu>(right, a);
  }
  if (width % 2) even[width / 2] = activate<kAffine, kRelu>(from[width - 1], a);
}

// Places lines first .. last - 1 of a map of `height` dense lines; lines outside it become zeros.
inline void place(const float* from, int64_t height, int64_t width, int64_t first, int64_t last,
                  const Activation& a, const Lines& to) {
  const auto line = a.affine ? (a.relu ? place_line<true, true> : place_line<true, false>)
                             : (a.relu ? place_line<false, true> : place_line<false, false>);
  for (int64_t y = first; y < last; ++y) {
    const int64_t row = y >= 0 ? y / to.step : -((to.step - 1 - y) / to.step);
    float* even = to.data + row * to.pitch + (y - row * to.step) * to.step * to.phase_stride;
    float* odd = to.step == 2 ? even + to.phase_stride : nullptr;
    if (y >= 0 && y < height) {
      line(from + y * width, width, a, even, odd);
    } else {
      std::memset(even, 0, (width + to.step - 1) / to.step * sizeof(float));
      if (odd) std::memset(odd, 0, width / 2 * sizeof(float));
    }
  }
}

inline void collect_line(const float* __restrict even, const float* __restrict odd, int64_t width,
                         float* __restrict to) {
  if (odd == nullptr) {
    std::memcpy(to, even, width * sizeof(float));
    return;
  }
  for (int64_t x = 0; x < width / 2; ++x) to[2 * x] = even[x], to[2 * x + 1] = odd[x];
  if (width % 2) to[width - 1] = even[width / 2];
}

// to[x] = s[x] + s[x + 1], where s is the sum of two lines in phases.
inline void collect_box_line(const float* __restrict even0, const float* __restrict odd0,
                             const float* __restrict even1, const float* __restrict odd1,
                             int64_t width, float* __restrict to) {
  for (int64_t x = 0; x < width / 2; ++x) {
    const float odd = odd0[x] + odd1[x];
    to[2 * x] = (even0[x] + even1[x]) + odd;
    to[2 * x + 1] = (even0[x + 1] + even1[x + 1]) + odd;
  }
  if (width % 2)
    to[width - 1] = (even0[width / 2] + even1[width / 2]) + (odd0[width / 2] + odd1[width / 2]);
}

// Collects lines 0 .. height - 1 into a dense map; box: sums over 2 x 2 squares.
inline void collect(const Lines& from, int64_t height, int64_t width, bool box, float* to) {
  const auto even = [&](int64_t y) {
    return from.data + y / from.step * from.pitch + y % from.step * from.step * from.phase_stride;
  };
  for (int64_t y = 0; y < height; ++y, to += width) {
    if (box) {
      collect_box_line(even(y), even(y) + from.phase_stride, even(y + 1),
                       even(y + 1) + from.phase_stride, width, to);
    } else {
      collect_line(even(y), from.step == 2 ? even(y) + from.phase_stride : nullptr, width, to);
    }
  }
}

// to[y][x] = the sum of from[y - 1 .. y][x - 1 .. x], zero outside, for lines first .. last - 1;
// the result is one larger than (height, width), and `from` and `to` point at line 0 of their maps.
inline void box_sums(const float* from, int64_t height, int64_t width, int64_t first, int64_t last,
                     float* to) {
  for (int64_t y = first; y < last; ++y) {
    float* __restrict line = to + y * (width + 1);
    const float* above = y >= 1 && y <= height ? from + (y - 1) * width : nullptr;
    const float* below = y >= 0 && y < height ? from + y * width : nullptr;
    const float* either = above ? above : below;
    line[0] = line[width] = 0.0f;
    for (int64_t x = 0; x < width; ++x)
      line[x] = above && below ? above[x] + below[x] : either ? either[x] : 0.0f;
    for (int64_t x = width; x > 0; --x) line[x] += line[x - 1];
  }
}

inline void add(int64_t count, const float* __restrict x, float* __restrict y) {
  for (int64_t i = 0; i < count; ++i) y[i] += x[i];
}

}  // namespace colorseg::cpu::COLORSEG_ISA

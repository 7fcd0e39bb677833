// Between feature maps in memory and flat maps: lines are placed into phases, and collected.
//
// Strided accesses without gaps (2 i and 2 i + 1 in one loop) are what GCC vectorises.
#pragma once
#include <cstring>

#include "geometry.h"
#include "vector.h"

namespace colorseg::cpu::COLORSEG_ISA {

template <bool kAffine, bool kRelu, typename T>
inline T activate(T x, T center, T scale, T offset) {
  if (kAffine) x = (x - center) * scale + offset;
  return kRelu ? (x < T{} ? T{} : x) : x;  // keeps NaN
}

// Places lines first .. last - 1 of a map of `height` dense lines; lines outside it become zeros.
// kStep: 2 where lines and columns are split into phases.
template <bool kAffine, bool kRelu, int kStep>
void place_lines(const float* map, int64_t height, int64_t width, int64_t first, int64_t last,
                 const Activation& a, const Lines& to) {
  const Vector center = broadcast(a.center), scale = broadcast(a.scale),
               offset = broadcast(a.offset);
  const int64_t columns = width / kStep;  // of the narrower phase
  for (int64_t y = first; y < last; ++y) {
    const int64_t row = y >> (kStep - 1);  // rounds down, also in front of line 0
    float* even = to.data + row * to.pitch + (y - row * kStep) * kStep * to.phase_stride;
    float* odd = even + to.phase_stride;
    if (y < 0 || y >= height) {
      std::memset(even, 0, (width + kStep - 1) / kStep * sizeof(float));
      if (kStep == 2) std::memset(odd, 0, columns * sizeof(float));
      continue;
    }
    const float* from = map + y * width;
    const auto vector = [&](int64_t x) {
      return activate<kAffine, kRelu>(load(from + x), center, scale, offset);
    };
    const auto scalar = [&](int64_t x) {
      return activate<kAffine, kRelu>(from[x], a.center, a.scale, a.offset);
    };
    if (columns >= kWidth) {
      for_each_vector(columns, [&](int64_t x) {
        if (kStep == 1) return store(even + x, vector(x));
        const Vector left = vector(2 * x), right = vector(2 * x + kWidth);
        store(even + x, even_lanes(left, right));
        store(odd + x, odd_lanes(left, right));
      });
    } else {
      for (int64_t x = 0; x < columns; ++x) {
        even[x] = scalar(kStep * x);
        if (kStep == 2) odd[x] = scalar(2 * x + 1);
      }
    }
    if (width % kStep) even[columns] = scalar(width - 1);
  }
}

template <bool kAffine, bool kRelu>
void place_phases(const float* map, int64_t height, int64_t width, int64_t first, int64_t last,
                  const Activation& a, const Lines& to) {
  const auto lines = to.step == 2 ? place_lines<kAffine, kRelu, 2> : place_lines<kAffine, kRelu, 1>;
  lines(map, height, width, first, last, a, to);
}

inline void place(const float* map, int64_t height, int64_t width, int64_t first, int64_t last,
                  const Activation& a, const Lines& to) {
  const auto phases = a.affine ? (a.relu ? place_phases<true, true> : place_phases<true, false>)
                               : (a.relu ? place_phases<false, true> : place_phases<false, false>);
  phases(map, height, width, first, last, a, to);
}

inline void collect_line(const float* even, const float* odd, int64_t width, float* to) {
  if (odd == nullptr) {
    if (width >= kWidth)
      return for_each_vector(width, [&](int64_t x) { store(to + x, load(even + x)); });
    for (int64_t x = 0; x < width; ++x) to[x] = even[x];
    return;
  }
  if (width >= 2 * kWidth) {
    for_each_vector(width / 2, [&](int64_t x) {
      const Vector left = load(even + x), right = load(odd + x);
      store(to + 2 * x, interleave(left, right, 0));
      store(to + 2 * x + kWidth, interleave(left, right, kWidth / 2));
    });
  } else {
    for (int64_t x = 0; x < width / 2; ++x) to[2 * x] = even[x], to[2 * x + 1] = odd[x];
  }
  if (width % 2) to[width - 1] = even[width / 2];
}

// to[x] = s[x] + s[x + 1], where s is the sum of two lines in phases.
inline void collect_box_line(const float* even0, const float* odd0, const float* even1,
                             const float* odd1, int64_t width, float* to) {
  const auto even = [&](int64_t x) { return even0[x] + even1[x]; };
  const auto odd = [&](int64_t x) { return odd0[x] + odd1[x]; };
  const auto evens = [&](int64_t x) { return load(even0 + x) + load(even1 + x); };
  if (width >= 2 * kWidth) {
    for_each_vector(width / 2, [&](int64_t x) {
      const Vector middle = load(odd0 + x) + load(odd1 + x);
      const Vector left = evens(x) + middle, right = evens(x + 1) + middle;
      store(to + 2 * x, interleave(left, right, 0));
      store(to + 2 * x + kWidth, interleave(left, right, kWidth / 2));
    });
  } else {
    for (int64_t x = 0; x < width / 2; ++x)
      to[2 * x] = even(x) + odd(x), to[2 * x + 1] = even(x + 1) + odd(x);
  }
  if (width % 2) to[width - 1] = even(width / 2) + odd(width / 2);
}

template <int kStep, bool kBox>
void collect_lines(const Lines& from, int64_t height, int64_t width, float* to) {
  const auto even = [&](int64_t y) {
    return from.data + (y >> (kStep - 1)) * from.pitch + y % kStep * kStep * from.phase_stride;
  };
  for (int64_t y = 0; y < height; ++y, to += width) {
    const float *line = even(y), *next = even(y + 1);
    if (kBox)
      collect_box_line(line, line + from.phase_stride, next, next + from.phase_stride, width, to);
    else
      collect_line(line, kStep == 2 ? line + from.phase_stride : nullptr, width, to);
  }
}

// Collects lines 0 .. height - 1 into a dense map; box: sums over 2 x 2 squares.
inline void collect(const Lines& from, int64_t height, int64_t width, bool box, float* to) {
  const auto lines = box              ? collect_lines<2, true>
                     : from.step == 2 ? collect_lines<2, false>
                                      : collect_lines<1, false>;
  lines(from, height, width, to);
}

// The larger one, or the last NaN.
inline Vector maximum(Vector a, Vector b) { return (b > a) | (b != b) ? b : a; }

// Collects the maxima of 2 x 2 squares of a map without phases; height and width are those of `to`.
// Reads up to 2 * kWidth - 2 positions behind a line.
inline void collect_pooled(const Lines& from, int64_t height, int64_t width, float* to) {
  for (int64_t y = 0; y < height; ++y, to += width) {
    const float *top = from.data + 2 * y * from.pitch, *bottom = top + from.pitch;
    for (int64_t x = 0; x < width; x += kWidth) {
      const Vector left = maximum(load(top + 2 * x), load(bottom + 2 * x));
      const Vector right = maximum(load(top + 2 * x + kWidth), load(bottom + 2 * x + kWidth));
      const Vector pooled = maximum(even_lanes(left, right), odd_lanes(left, right));
      if (x + kWidth <= width)
        store(to + x, pooled);
      else
        std::memcpy(to + x, &pooled, (width - x) * sizeof(float));
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

inline double sum(int64_t count, const float* x) {
  constexpr int64_t kPartial = 64;
  float partial[kPartial] = {};
  int64_t i = 0;
  for (; i + kPartial <= count; i += kPartial) {
    for (int64_t l = 0; l < kPartial; ++l) partial[l] += x[i + l];
  }
  double total = 0;
  for (; i < count; ++i) total += x[i];
  for (int64_t l = 0; l < kPartial; ++l) total += partial[l];
  return total;
}

}  // namespace colorseg::cpu::COLORSEG_ISA

// Weight gradients of maps in channels_last: sums over pixels of the products of their channels.
//
// Tiles as in panels.h, kGradientRows channels of y times a panel of x; both sides are copied,
// since pixels of many channels are further apart than the caches can take.
#pragma once
#include <cstring>

#include "panels.h"

namespace colorseg::cpu::COLORSEG_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)  // 32 registers
constexpr int kGradientRows = 8;
#else
constexpr int kGradientRows = 4;
#endif
constexpr int64_t kChunk = 256;  // pixels at a time: a panel of x stays in L1
// Floats of a tile's channels of y.  Not a multiple of 4096 bytes: tiles are written side by side.
constexpr int64_t kTileOfY = kChunk * kGradientRows + kWidth;

// Floats of scratch that pixel_gradient needs.
inline int64_t pixel_gradient_scratch(int64_t y_channels) {
  return y_channels / kGradientRows * kTileOfY + kChunk * kPanel;
}

// out[r][c] += the sum over pixels of y[r] * x[c].
inline void add_gradient_tile(int64_t pixels, const float* y, const float* x, float* out,
                              int64_t out_stride) {
  Vector sum[kGradientRows][2] = {};
#pragma GCC unroll 2
  for (int64_t p = 0; p < pixels; ++p, y += kGradientRows, x += kPanel) {
    const Vector left = load(x), right = load(x + kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < kGradientRows; ++r) {
      const Vector value = broadcast(y[r]);
      sum[r][0] = multiply_add(value, left, sum[r][0]);
      sum[r][1] = multiply_add(value, right, sum[r][1]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kGradientRows; ++r, out += out_stride) {
    store(out, load(out) + sum[r][0]);
    store(out + kWidth, load(out + kWidth) + sum[r][1]);
  }
}

// Adds to rows [first, last) of the gradient, whose number is a multiple of kGradientRows.
inline void pixel_gradient(const WeightGradient& g, int64_t first, int64_t last, float* scratch) {
  const int64_t tiles = (last - first) / kGradientRows;
  float* const panel = scratch + tiles * kTileOfY;
  for (int64_t p = 0; p < g.pixels; p += kChunk) {
    const int64_t count = g.pixels - p < kChunk ? g.pixels - p : kChunk;
    for (int64_t i = 0; i < count; ++i) {
      const float* from = g.y + g.of_y[p + i] * g.y_channels + first;
      float* to = scratch + i * kGradientRows;
      for (int64_t t = 0; t < tiles; ++t, from += kGradientRows, to += kTileOfY)
        std::memcpy(to, from, kGradientRows * sizeof(float));
    }
    for (int64_t c = 0; c < g.x_channels; c += kPanel) {
      for (int64_t i = 0; i < count; ++i) {
        const float* from = g.x + g.of_x[p + i] * g.x_channels + c;
        store(panel + i * kPanel, load(from));
        store(panel + i * kPanel + kWidth, load(from + kWidth));
      }
      for (int64_t t = 0; t < tiles; ++t) {
        float* to = g.out + (first + t * kGradientRows) * g.out_stride + c;
        add_gradient_tile(count, scratch + t * kTileOfY, panel, to, g.out_stride);
      }
    }
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

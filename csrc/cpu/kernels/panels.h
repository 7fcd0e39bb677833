// Products of pixels in channels_last by packed weights, register-blocked: what 1x1 convolutions
// are, and Winograd's products.
//
// A tile is kPanelRows pixels times a panel of two vectors of output channels, all accumulators in
// registers; each step loads the weights of one input channel once and multiplies them by one
// broadcast value per pixel.
#pragma once
#include <utility>

#include "pixel_kernels.h"
#include "vector.h"

namespace colorseg::cpu::COLORSEG_ISA {

constexpr int64_t kPanel = 2 * kWidth;
#if defined(__AVX512F__)
constexpr int kPanelRows = 12;
#else
constexpr int kPanelRows = 6;
#endif
constexpr int64_t kPanelDepth = 512;  // input channels at a time: their weights stay in the caches

// One panel of weights of a 1x1 kernel, of [panel][input][channel].
inline void pack_panel(const WeightView& w, int64_t panel, float* packed) {
  packed += panel * w.in_channels * kPanel;
  for (int64_t c = 0; c < w.in_channels; ++c) {
    for (int64_t j = 0; j < kPanel; ++j) *packed++ = *w.at(panel * kPanel + j, c);
  }
}

// The same of what a 3x3 kernel is transformed to, in front kForms forms of lines times as many of
// columns; Transform::kernel makes those of one line, or of one column.
template <typename Transform>
void pack_forms(const WeightView& w, int64_t panel, float* packed) {
  constexpr int kForms = Transform::kForms;
  packed += panel * w.in_channels * kPanel;
  for (int64_t c = 0; c < w.in_channels; ++c, packed += kPanel) {
    for (int64_t o = 0; o < kPanel; o += kWidth) {
      float values[9][kWidth];
      for (int64_t l = 0; l < kWidth; ++l) {
        const float* kernel = w.at(panel * kPanel + o + l, c);
        for (int64_t t = 0; t < 9; ++t) values[t][l] = kernel[t * w.tap_stride];
      }
      Vector kernel[9], lines[kForms * 3], u[kForms];
      for (int t = 0; t < 9; ++t) kernel[t] = load(values[t]);
      for (int j = 0; j < 3; ++j) Transform::kernel(kernel + j, 3, lines + j, 3);
      for (int i = 0; i < kForms; ++i) {
        Transform::kernel(lines + 3 * i, 1, u, 1);
        for (int j = 0; j < kForms; ++j)
          store(packed + (kForms * i + j) * w.in_channels * w.out_channels + o, u[j]);
      }
    }
  }
}

inline void prefetch(const float* panel) {
  for (int64_t i = 0; i < kPanel; i += 16) __builtin_prefetch(panel + i);
}

// What is done with the sums of a pixel before they are stored.
inline Vector finished(Vector sum, const float* bias, const float* residual, bool relu) {
  if (bias) sum += load(bias);
  if (residual) sum += load(residual);
  return relu ? (sum < Vector{} ? Vector{} : sum) : sum;  // NaN stays
}

template <int kRows>
void multiply_panel_tile(const PanelProduct& p, const float* in, const float* weights,
                         int64_t depth, int64_t row, int64_t channel, bool first, bool last) {
  Vector sum[kRows][2] = {};
  float* const out = p.out + row * p.out_stride + channel;
  for (int r = 0; r < kRows && !first; ++r)
    sum[r][0] = load(out + r * p.out_stride), sum[r][1] = load(out + r * p.out_stride + kWidth);
  for (int r = 0; r < kRows && last; ++r) {  // arrives while the products are added up
    prefetch(out + r * p.out_stride);
    if (p.residual) prefetch(p.residual + (row + r) * p.out_stride + channel);
  }
  constexpr int kPointers = (kRows + 2) / 3;  // one for three rows: there are 16 registers
  const float* pixels[kPointers];
  for (int i = 0; i < kPointers; ++i) pixels[i] = in + 3 * i * p.in_stride;
#pragma GCC unroll 2
  for (int64_t c = 0; c < depth; ++c, weights += kPanel) {
    const Vector left = load(weights), right = load(weights + kWidth);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Vector x = broadcast(pixels[r / 3][r % 3 * p.in_stride]);
      sum[r][0] = multiply_add(x, left, sum[r][0]);
      sum[r][1] = multiply_add(x, right, sum[r][1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kPointers; ++i) ++pixels[i];
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 2; ++v) {
      const int64_t at = channel + v * kWidth, pixel = (row + r) * p.out_stride + at;
      store(p.out + pixel, last ? finished(sum[r][v], p.bias ? p.bias + at : nullptr,
                                           p.residual ? p.residual + pixel : nullptr, p.relu)
                                : sum[r][v]);
    }
  }
}

using PanelTile = void (*)(const PanelProduct&, const float* in, const float* weights,
                           int64_t depth, int64_t row, int64_t channel, bool first, bool last);

template <int... kRows>
PanelTile panel_tile(int64_t rows, std::integer_sequence<int, kRows...>) {
  static constexpr PanelTile tiles[] = {multiply_panel_tile<kRows + 1>...};
  return tiles[rows - 1];
}

inline void multiply_panels(const PanelProduct& product) {
  PanelProduct p = product;
  // where sums are stored in between, what they are to be added to must be in them from the start
  const bool adds = p.residual == p.out && p.in_channels > kPanelDepth;
  if (adds) p.residual = nullptr;
  // tiles of nearly the same number of rows, instead of a small one at the end
  const int64_t tiles = (p.rows + kPanelRows - 1) / kPanelRows;
  for (int64_t c = 0; c < p.in_channels; c += kPanelDepth) {
    const int64_t depth = p.in_channels - c < kPanelDepth ? p.in_channels - c : kPanelDepth;
    for (int64_t o = 0; o < p.out_channels; o += kPanel) {
      const float* weights = p.weights + o * p.in_channels + c * kPanel;
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t row = i * p.rows / tiles, rows = (i + 1) * p.rows / tiles - row;
        panel_tile(rows, std::make_integer_sequence<int, kPanelRows>())(
            p, p.in + row * p.in_stride + c, weights, depth, row, o, c == 0 && !adds,
            c + depth == p.in_channels);
      }
    }
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

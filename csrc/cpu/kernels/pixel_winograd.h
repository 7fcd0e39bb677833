// Winograd's F(2x2, 3x3), see winograd.h, in channels_last and for many channels: a lane is a
// channel, and the 16 products are those of panels.h.
//
// With a dilation the outputs of a square, and the inputs of its patch, lie as far apart.
#pragma once
#include <vector>

#include "panels.h"
#include "winograd.h"

namespace colorseg::cpu::COLORSEG_ISA {

// One panel of transformed weights, of [16][panel][input][channel].
inline void pack_pixel_winograd(const WeightView& w, int64_t panel, float* packed) {
  packed += panel * w.in_channels * kPanel;
  for (int64_t c = 0; c < w.in_channels; ++c, packed += kPanel) {
    for (int64_t o = 0; o < kPanel; o += kWidth) {
      float kernels[9][kWidth];
      for (int64_t l = 0; l < kWidth; ++l) {
        const float* kernel = w.at(panel * kPanel + o + l, c);
        for (int64_t t = 0; t < 9; ++t) kernels[t][l] = kernel[t * w.tap_stride];
      }
      Vector lines[4][3], u[4];
      for (int j = 0; j < 3; ++j)
        kernel_line(load(kernels[j]), load(kernels[3 + j]), load(kernels[6 + j]), &lines[0][j], 3);
      for (int i = 0; i < 4; ++i) {
        kernel_line(lines[i][0], lines[i][1], lines[i][2], u, 1);
        for (int j = 0; j < 4; ++j)
          store(packed + (4 * i + j) * w.in_channels * w.out_channels + o, u[j]);
      }
    }
  }
}

// Floats of scratch that pixel_winograd needs.
inline int64_t pixel_winograd_scratch(int64_t squares, int64_t in_channels, int64_t out_channels) {
  return 16 * squares * (in_channels + out_channels + 2 * kWidth) + in_channels;
}

// What is at (y, x) + (i, j) * dilation for i, j < side, or `outside`.
template <int kSide, typename Value>
void locate(const PixelWinograd& w, Value* map, const int64_t* size, int64_t channels, int64_t n,
            int64_t y, int64_t x, Value* outside, Value** at) {
  for (int64_t i = 0; i < kSide; ++i) {
    for (int64_t j = 0; j < kSide; ++j) {
      const int64_t row = y + i * w.dilation[0], column = x + j * w.dilation[1];
      const bool inside = row >= 0 && row < size[0] && column >= 0 && column < size[1];
      at[i * kSide + j] =
          inside ? map + ((n * size[0] + row) * size[1] + column) * channels : outside;
    }
  }
}

// v = B^T d B of one patch: its 16 entries lie `step` apart.
inline void transform_patch(const float* const* at, int64_t channels, float* v, int64_t step) {
  for (int64_t c = 0; c < channels; c += kWidth) {
    Vector d[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) d[i] = load(at[i] + c);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) patch_line(d[j], d[4 + j], d[8 + j], d[12 + j], t + j, 4);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      patch_line(t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3], d + 4 * i, 1);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) store(v + i * step + c, d[i]);
  }
}

// A^T m A of one square, to those of its 4 places that are not null.  Products that were left out
// (see Order) go into no other place.
inline void transform_square(const PixelWinograd& w, const float* m, int64_t step,
                             float* const* at) {
  for (int64_t c = 0; c < w.out_channels; c += kWidth) {
    Vector v[16], lines[2][4], y[4];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) v[i] = load(m + i * step + c);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) square_line(v[j], v[4 + j], v[8 + j], v[12 + j], &lines[0][j], 4);
    for (int i = 0; i < 2; ++i)
      square_line(lines[i][0], lines[i][1], lines[i][2], lines[i][3], y + 2 * i, 1);
    for (int i = 0; i < 4; ++i) {
      if (at[i] == nullptr) continue;
      const float* residual = w.residual ? w.residual + (at[i] - w.y) + c : nullptr;
      store(at[i] + c, finished(y[i], w.bias ? w.bias + c : nullptr, residual, w.relu));
    }
  }
}

struct Square {
  int64_t n, y, x;
  bool below, right;  // whether its second row and column are inside of y
};

inline Square square_at(const PixelWinograd& w, int64_t index) {
  const int64_t in_image = w.square_rows * w.square_columns;
  const int64_t y = w.rows[index % in_image / w.square_columns];
  const int64_t x = w.columns[index % w.square_columns];
  return {index / in_image, y, x, y + w.dilation[0] < w.y_size[0], x + w.dilation[1] < w.y_size[1]};
}

// Squares in an order in which those that need a product lie side by side: the products of the last
// row of entries are for the second row alone, likewise of columns.
struct Order {
  std::vector<Square> squares;
  int64_t first[5] = {};  // of: no second row, both, no second column, neither

  Order(const PixelWinograd& w, int64_t begin, int64_t count) : squares(count) {
    for (int64_t i = 0; i < count; ++i) ++first[kind(square_at(w, begin + i)) + 1];
    for (int i = 0; i < 4; ++i) first[i + 1] += first[i];
    int64_t next[4] = {first[0], first[1], first[2], first[3]};
    for (int64_t i = 0; i < count; ++i) {
      const Square square = square_at(w, begin + i);
      squares[next[kind(square)]++] = square;
    }
  }
  static int kind(const Square& s) { return s.below ? (s.right ? 1 : 2) : (s.right ? 0 : 3); }
  int64_t begin(int64_t row) const { return first[row == 3 ? 1 : 0]; }
  int64_t end(int64_t row, int64_t column) const {
    return first[column == 3 ? 2 : row == 3 ? 3 : 4];
  }
};

// The squares [first, first + count).
inline void pixel_winograd(const PixelWinograd& w, int64_t first, int64_t count, float* scratch) {
  // not a power of two: the pixels of a tile are read side by side
  const int64_t in_stride = w.in_channels + kWidth, out_stride = w.out_channels + kWidth;
  float* const patches = scratch;
  float* const products = patches + 16 * count * in_stride;
  float* const zeros = products + 16 * count * out_stride;
  for (int64_t c = 0; c < w.in_channels; ++c) zeros[c] = 0;
  const Order order(w, first, count);
  for (int64_t i = 0; i < count; ++i) {
    const Square& s = order.squares[i];
    const float* at[16];
    locate<4, const float>(w, w.x, w.x_size, w.in_channels, s.n, s.y - w.padding[0],
                           s.x - w.padding[1], zeros, at);
    transform_patch(at, w.in_channels, patches + i * in_stride, count * in_stride);
  }
  for (int64_t i = 0; i < 16; ++i) {
    const int64_t begin = order.begin(i / 4), end = order.end(i / 4, i % 4);
    const int64_t at = i * count + begin;
    multiply_panels({patches + at * in_stride, in_stride, end - begin, w.in_channels,
                     w.weights + i * w.in_channels * w.out_channels, w.out_channels,
                     products + at * out_stride, out_stride, nullptr, nullptr, false});
  }
  for (int64_t i = 0; i < count; ++i) {
    const Square& s = order.squares[i];
    float* at[4];
    locate<2, float>(w, w.y, w.y_size, w.out_channels, s.n, s.y, s.x, nullptr, at);
    transform_square(w, products + i * out_stride, count * out_stride, at);
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

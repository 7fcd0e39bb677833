// Winograd's F(2x2, 3x3), see winograd.h, and F(4x4, 3x3) in channels_last and for many channels: a
// lane is a channel, and the products are those of panels.h.
//
// With a dilation the outputs of a square, and the inputs of its patch, lie as far apart.
#pragma once
#include <vector>

#include "panels.h"
#include "winograd.h"

namespace colorseg::cpu::COLORSEG_ISA {

// One line of the transforms of F(2x2).
struct Square2 {
  static constexpr int kSide = 2, kPatch = 4, kForms = kPatch, kProducts = kPatch * kPatch;
  static void kernel(const Vector* g, int64_t step, Vector* u, int64_t to) {
    kernel_line(g[0], g[step], g[2 * step], u, to);
  }
  static void patch(const Vector* d, int64_t step, Vector* v, int64_t to) {
    patch_line(d[0], d[step], d[2 * step], d[3 * step], v, to);
  }
  static void square(const Vector* m, int64_t step, Vector* y, int64_t to) {
    square_line(m[0], m[step], m[2 * step], m[3 * step], y, to);
  }
};

// And of F(4x4), by Cook and Toom from the points 0, 3/4, -3/4, 3/2, -3/2 and infinity.  Those of
// Lavin and Gray, 1 and 2, give twice the error; multiplying by these is exact, too.
struct Square4 {
  static constexpr int kSide = 4, kPatch = 6, kForms = kPatch, kProducts = kPatch * kPatch;
  static void kernel(const Vector* g, int64_t step, Vector* u, int64_t to) {
    const Vector a = g[0], b = g[step], c = g[2 * step];
    u[0] = (64.0f / 81) * a;
    const Vector near = (-128.0f / 243) * a - (8.0f / 27) * c, middle = (32.0f / 81) * b;
    u[to] = near - middle, u[2 * to] = near + middle;
    const Vector far = (32.0f / 243) * a + (8.0f / 27) * c, outer = (16.0f / 81) * b;
    u[3 * to] = far + outer, u[4 * to] = far - outer;
    u[5 * to] = c;
  }
  static void patch(const Vector* d, int64_t step, Vector* v, int64_t to) {
    const auto at = [&](int i) { return d[i * step]; };
    v[0] = 1.265625f * at(0) - 2.8125f * at(2) + at(4);
    const Vector near = at(4) - 2.25f * at(2), odd = 0.75f * at(3) - 1.6875f * at(1);
    v[to] = near + odd, v[2 * to] = near - odd;
    const Vector far = at(4) - 0.5625f * at(2), wide = 1.5f * at(3) - 0.84375f * at(1);
    v[3 * to] = far + wide, v[4 * to] = far - wide;
    v[5 * to] = 1.265625f * at(1) - 2.8125f * at(3) + at(5);
  }
  static void square(const Vector* m, int64_t step, Vector* y, int64_t to) {
    const auto at = [&](int i) { return m[i * step]; };
    const Vector near = at(1) + at(2), odd = at(1) - at(2), far = at(3) + at(4);
    const Vector wide = at(3) - at(4);
    y[0] = at(0) + near + far;
    y[to] = 0.75f * odd + 1.5f * wide;
    y[2 * to] = 0.5625f * near + 2.25f * far;
    y[3 * to] = 0.421875f * odd + 3.375f * wide + at(5);
  }
};

// Floats of scratch that pixel_winograd needs.
template <typename Square>
int64_t pixel_winograd_scratch(int64_t squares, int64_t in_channels, int64_t out_channels) {
  return Square::kProducts * squares * (in_channels + out_channels + 2 * kWidth) + in_channels;
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

// v = B^T d B of one patch: its entries lie `step` apart.
template <typename Square>
void transform_patch(const float* const* at, int64_t channels, float* v, int64_t step) {
  constexpr int kPatch = Square::kPatch;
  for (int64_t c = 0; c < channels; c += kWidth) {
    Vector d[kPatch * kPatch], t[kPatch * kPatch];
#pragma GCC unroll 36
    for (int i = 0; i < kPatch * kPatch; ++i) d[i] = load(at[i] + c);
#pragma GCC unroll 6
    for (int j = 0; j < kPatch; ++j) Square::patch(d + j, kPatch, t + j, kPatch);
#pragma GCC unroll 6
    for (int i = 0; i < kPatch; ++i) Square::patch(t + kPatch * i, 1, d + kPatch * i, 1);
#pragma GCC unroll 36
    for (int i = 0; i < kPatch * kPatch; ++i) store(v + i * step + c, d[i]);
  }
}

// A^T m A of one square, to those of its places that are not null.  Products that were left out
// (see Order) go into no other place.
template <typename Square>
void transform_square(const PixelWinograd& w, const float* m, int64_t step, float* const* at) {
  constexpr int kPatch = Square::kPatch, kSide = Square::kSide;
  for (int64_t c = 0; c < w.out_channels; c += kWidth) {
    Vector v[kPatch * kPatch], lines[kSide * kPatch], y[kSide * kSide];
#pragma GCC unroll 36
    for (int i = 0; i < kPatch * kPatch; ++i) v[i] = load(m + i * step + c);
#pragma GCC unroll 6
    for (int j = 0; j < kPatch; ++j) Square::square(v + j, kPatch, lines + j, kPatch);
#pragma GCC unroll 4
    for (int i = 0; i < kSide; ++i) Square::square(lines + kPatch * i, 1, y + kSide * i, 1);
    for (int i = 0; i < kSide * kSide; ++i) {
      if (at[i] == nullptr) continue;
      const float* residual = w.residual ? w.residual + (at[i] - w.y) + c : nullptr;
      store(at[i] + c, finished(y[i], w.bias ? w.bias + c : nullptr, residual, w.relu));
    }
  }
}

struct Corner {  // of a square
  int64_t n, y, x;
  bool below, right;  // whether its last row and column are inside of y
};

inline Corner corner_at(const PixelWinograd& w, int64_t side, int64_t index) {
  const int64_t in_image = w.square_rows * w.square_columns;
  const int64_t y = w.rows[index % in_image / w.square_columns];
  const int64_t x = w.columns[index % w.square_columns];
  return {index / in_image, y, x, y + (side - 1) * w.dilation[0] < w.y_size[0],
          x + (side - 1) * w.dilation[1] < w.y_size[1]};
}

// Squares in an order in which those that need a product lie side by side: the products of the last
// row of entries are for the last row alone, likewise of columns.
struct Order {
  std::vector<Corner> corners;
  int64_t first[5] = {};  // of: no last row, both, no last column, neither

  Order(const PixelWinograd& w, int64_t side, int64_t begin, int64_t count) : corners(count) {
    for (int64_t i = 0; i < count; ++i) ++first[kind(corner_at(w, side, begin + i)) + 1];
    for (int i = 0; i < 4; ++i) first[i + 1] += first[i];
    int64_t next[4] = {first[0], first[1], first[2], first[3]};
    for (int64_t i = 0; i < count; ++i) {
      const Corner corner = corner_at(w, side, begin + i);
      corners[next[kind(corner)]++] = corner;
    }
  }
  static int kind(const Corner& c) { return c.below ? (c.right ? 1 : 2) : (c.right ? 0 : 3); }
  int64_t begin(bool last_row) const { return first[last_row ? 1 : 0]; }
  int64_t end(bool last_row, bool last_column) const {
    return first[last_column ? 2 : last_row ? 3 : 4];
  }
};

// The squares [first, first + count).
template <typename Square>
void pixel_winograd(const PixelWinograd& w, int64_t first, int64_t count, float* scratch) {
  constexpr int kPatch = Square::kPatch, kSide = Square::kSide;
  // not a power of two: the pixels of a tile are read side by side
  const int64_t in_stride = w.in_channels + kWidth, out_stride = w.out_channels + kWidth;
  float* const patches = scratch;
  float* const products = patches + Square::kProducts * count * in_stride;
  float* const zeros = products + Square::kProducts * count * out_stride;
  for (int64_t c = 0; c < w.in_channels; ++c) zeros[c] = 0;
  const Order order(w, kSide, first, count);
  for (int64_t i = 0; i < count; ++i) {
    const Corner& s = order.corners[i];
    const float* at[Square::kProducts];
    locate<kPatch, const float>(w, w.x, w.x_size, w.in_channels, s.n, s.y - w.padding[0],
                                s.x - w.padding[1], zeros, at);
    transform_patch<Square>(at, w.in_channels, patches + i * in_stride, count * in_stride);
  }
  for (int64_t i = 0; i < Square::kProducts; ++i) {
    const bool last_row = i / kPatch == kPatch - 1, last_column = i % kPatch == kPatch - 1;
    const int64_t begin = order.begin(last_row), end = order.end(last_row, last_column);
    const int64_t at = i * count + begin;
    multiply_panels({patches + at * in_stride, in_stride, end - begin, w.in_channels,
                     w.weights + i * w.in_channels * w.out_channels, w.out_channels,
                     products + at * out_stride, out_stride, nullptr, nullptr, false});
  }
  for (int64_t i = 0; i < count; ++i) {
    const Corner& s = order.corners[i];
    float* at[kSide * kSide];
    locate<kSide, float>(w, w.y, w.y_size, w.out_channels, s.n, s.y, s.x, nullptr, at);
    transform_square<Square>(w, products + i * out_stride, count * out_stride, at);
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

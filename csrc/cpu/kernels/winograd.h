// Winograd's F(2x2, 3x3): a 3x3 convolution of stride 1 with 16 instead of 36 multiplications per
// 2 x 2 outputs (Lavin and Gray, arXiv:1509.09308).
//
// A lane is a 2 x 2 square of outputs; two runs of columns make a vector of squares, so rows of
// whole vectors are read and written in place.  Tiles of squares stay in the cache through all
// three steps: transform the patches, 16 products, transform back.
#pragma once
#include "multiply.h"

namespace colorseg::cpu::COLORSEG_ISA {

constexpr int64_t kTile = kVectors * kWidth;  // squares
// Floats of one channel's transformed patches, [16][kTile].  Not a multiple of 4096 bytes: channels
// are read one after the other.
constexpr int64_t kPatches = 16 * kTile + kWidth;

// One line of G g, of B^T d and of A^T m; what they make lies `step` apart.
template <typename Float>
inline void kernel_line(Float a, Float b, Float c, Float* u, int64_t step) {
  u[0] = a, u[step] = 0.5f * (a + b + c), u[2 * step] = 0.5f * (a - b + c), u[3 * step] = c;
}
inline void patch_line(Vector a, Vector b, Vector c, Vector d, Vector* t, int64_t step) {
  t[0] = a - c, t[step] = b + c, t[2 * step] = c - b, t[3 * step] = b - d;
}
inline void square_line(Vector a, Vector b, Vector c, Vector d, Vector* y, int64_t step) {
  y[0] = a + b + c, y[step] = b - c - d;
}

// G g G^T of one 3x3 kernel, `step` apart (9 values from k on; -1 from the last one back).
inline void transform_kernel(const float* k, int64_t step, float* u) {
  float rows[4][3];
  for (int64_t j = 0; j < 3; ++j)
    kernel_line(k[step * j], k[step * (3 + j)], k[step * (6 + j)], &rows[0][j], 3);
  for (int64_t i = 0; i < 4; ++i) kernel_line(rows[i][0], rows[i][1], rows[i][2], u + 4 * i, 1);
}

// Transformed weights [block][16][input][channel]; flipped: of the data gradient.
inline void pack_winograd(const float* weight, int64_t out_channels, int64_t out_stride,
                          int64_t in_channels, int64_t in_stride, bool flipped, float* packed) {
  for (int64_t o = 0; o < out_channels; o += block_at(o, out_channels)) {
    const int64_t block = block_at(o, out_channels);
    for (int64_t c = 0; c < in_channels; ++c) {
      for (int64_t j = 0; j < block; ++j) {
        const float* kernel = weight + (o + j) * out_stride + c * in_stride;
        float u[16];
        transform_kernel(flipped ? kernel + 8 : kernel, flipped ? -1 : 1, u);
        for (int64_t i = 0; i < 16; ++i) packed[(i * in_channels + c) * block + j] = u[i];
      }
    }
    packed += 16 * in_channels * block;
  }
}

// Two runs of kWidth columns, the lanes of one vector of 2 x 2 squares: where they begin.
struct Columns {
  int64_t left, right;
};

// Runs of kWidth columns.
inline int64_t squares_of(const Runs& squares) {
  return squares.rows * squares.segments * ((squares.columns + kWidth - 1) / kWidth);
}

// The columns of vector `index`; where their number is odd, the last ones stand for two.
inline Columns columns_at(const Runs& squares, int64_t index) {
  const int64_t in_segment = (squares.columns + kWidth - 1) / kWidth;
  const int64_t in_row = squares.segments * in_segment, count = squares_of(squares);
  const auto at = [&](int64_t i) {
    const int64_t run = i % in_row;
    return i / in_row * squares.row + run / in_segment * squares.segment +
           run % in_segment * kWidth;
  };
  return {at(2 * index), at(2 * index + 1 < count ? 2 * index + 1 : 2 * index)};
}

// One row of d B, for the patches that begin at `in`.
inline void transform_row(const float* in, const Columns& at, Vector* t) {
  const float *left = in + at.left, *right = in + at.right;
  const Vector first[2] = {load(left), load(right)}, last[2] = {load(left + 2), load(right + 2)};
  const Vector a = even_lanes(first[0], first[1]), b = odd_lanes(first[0], first[1]),
               c = even_lanes(last[0], last[1]), d = odd_lanes(last[0], last[1]);
  patch_line(a, b, c, d, t, 1);
}

// v = B^T d B of the 4 x 4 patches d that begin at `in`, an entry every kTile floats.
inline void transform_patches(const float* in, const Columns& at, int64_t row, float* v) {
  Vector t[4][4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) transform_row(in + i * row, at, t[i]);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    Vector column[4];
    patch_line(t[0][j], t[1][j], t[2][j], t[3][j], column, 1);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) store(v + (4 * i + j) * kTile, column[i]);
  }
}

// The 2 x 2 squares A^T m A + bias.
inline void transform_back(const float* m, Vector bias, float* out, const Columns& at,
                           int64_t row) {
  Vector lines[2][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    square_line(load(m + j * kTile), load(m + (4 + j) * kTile), load(m + (8 + j) * kTile),
                load(m + (12 + j) * kTile), &lines[0][j], 4);
  }
  const auto line = [&](const Vector* t, float* to) {
    Vector y[2];
    square_line(t[0], t[1], t[2], t[3], y, 1);
    const Vector even = y[0] + bias, odd = y[1] + bias;
    store(to + at.right, interleave(even, odd, kWidth / 2));
    store(to + at.left, interleave(even, odd, 0));
  };
  line(lines[0], out);
  line(lines[1], out + row);
}

// Floats of scratch that winograd needs.
inline int64_t winograd_scratch(int64_t in_channels) { return (in_channels + kBlock) * kPatches; }

// squares: its rows are pairs of rows of the map; patch: where the patch of the first one begins.
inline void winograd(const FlatMap& in, int64_t patch, const Runs& squares, const float* packed,
                     const float* bias, const FlatMap& out, float* scratch) {
  static const int32_t here = 0;
  const int64_t all = (squares_of(squares) + 1) / 2, row = squares.row / 2;
  float* products = scratch + in.channels * kPatches;
  for (int64_t first = 0; first < all; first += kVectors) {
    const int64_t vectors = all - first < kVectors ? all - first : kVectors;
    Columns at[kVectors];
    for (int64_t v = 0; v < vectors; ++v) at[v] = columns_at(squares, first + v);
    for (int64_t c = 0; c < in.channels; ++c) {
      const float* from = in.data + c * in.channel_stride + patch;
      for (int64_t v = 0; v < vectors; ++v)
        transform_patches(from, at[v], row, scratch + c * kPatches + v * kWidth);
    }
    const float* w = packed;
    for (int64_t o = 0; o < out.channels;) {
      const int64_t block = block_at(o, out.channels);
      for (int64_t i = 0; i < 16; ++i, w += in.channels * block) {
        multiply_block<Floats>(block, vectors,
                               {scratch + i * kTile, in.channels, kPatches, &here, 1, w, kNoBias,
                                products + i * kTile, kPatches});
      }
      for (int64_t j = 0; j < block; ++j) {
        const Vector start = bias ? broadcast(bias[o + j]) : Vector{};
        float* to = out.data + (o + j) * out.channel_stride;
        for (int64_t v = 0; v < vectors; ++v)
          transform_back(products + j * kPatches + v * kWidth, start, to, at[v], row);
      }
      o += block;
    }
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

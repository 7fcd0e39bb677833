// The weight gradient through Winograd's F(2x2, 3x3): the adjoint of winograd.h's forward product,
// 16 instead of 36 multiplications per 2 x 2 square.
//
// y = A^T [(G w G^T) . (B^T d B)] A for the patch d of each square, so the gradient of w is
// G^T [the sum over squares of (A g A^T) . (B^T d B)] G for the square g of y's gradient.  Entries
// are transformed in two halves, so that what is transformed stays in L2.
#pragma once
#include "correlate.h"
#include "winograd.h"

namespace colorseg::cpu::COLORSEG_ISA {

constexpr int64_t kHalf = 8;               // entries transformed at a time: two rows of the 4 x 4
constexpr int64_t kSquares = 16 * kWidth;  // squares at a time
constexpr int64_t kHalfPatches = kHalf * kSquares + kWidth;  // floats of a channel, see kPatches

// Rows 2 * half and 2 * half + 1 of B^T d B.
template <int kHalfIndex>
void transform_half_patches(const float* in, const Columns& at, int64_t row, float* v) {
  Vector t[3][4];  // rows 0 to 2 of the patch, or 1 to 3
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) transform_row(in + (i + kHalfIndex) * row, at, t[i]);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    store(v + j * kSquares, kHalfIndex ? t[1][j] - t[0][j] : t[0][j] - t[2][j]);
    store(v + (4 + j) * kSquares, kHalfIndex ? t[0][j] - t[2][j] : t[1][j] + t[2][j]);
  }
}

// The same rows of A g A^T; only the squares of `mask` count.
template <int kHalfIndex>
void transform_half_squares(const float* in, const Columns& at, int64_t row, Indices mask,
                            float* v) {
  Vector t[2][2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const Vector left = load(in + at.left + i * row), right = load(in + at.right + i * row);
    t[i][0] = (Vector)((Indices)even_lanes(left, right) & mask);
    t[i][1] = (Vector)((Indices)odd_lanes(left, right) & mask);
  }
  const Vector zero{};
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    Vector line[2];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j)
      line[j] =
          kHalfIndex ? (i ? zero - t[1][j] : t[0][j] - t[1][j]) : (i ? t[0][j] + t[1][j] : t[0][j]);
    float* to = v + 4 * i * kSquares;
    store(to, line[0]);
    store(to + kSquares, line[0] + line[1]);
    store(to + 2 * kSquares, line[0] - line[1]);
    store(to + 3 * kSquares, zero - line[1]);
  }
}

// Calls body(channel of a, block, channel of b, count, place in the partial sums) for every tile of
// one entry.
template <typename Body>
inline int64_t for_each_product(int64_t a_channels, int64_t b_channels, Body body) {
  int64_t at = 0;
  for (int64_t i = 0; i < a_channels; i += block_at(i, a_channels)) {
    const int64_t block = block_at(i, a_channels);
    for (int64_t j = 0; j < b_channels; j += kGroupTaps) {
      const int64_t count = b_channels - j < kGroupTaps ? b_channels - j : kGroupTaps;
      body(i, block, j, count, at);
      at += partial_size(block, count);
    }
  }
  return at;
}

inline int64_t products_of_entry(int64_t a_channels, int64_t b_channels) {
  return for_each_product(a_channels, b_channels,
                          [](int64_t, int64_t, int64_t, int64_t, int64_t) {});
}

// Floats of partial sums that winograd_correlate adds to, and of its scratch.
inline int64_t winograd_correlation_size(int64_t a_channels, int64_t b_channels) {
  return 16 * products_of_entry(a_channels, b_channels);
}
inline int64_t winograd_correlation_scratch(int64_t channels) { return channels * kHalfPatches; }

template <int kHalfIndex>
void correlate_half(const FlatMap& y, const FlatMap& x, int64_t patch, const Runs& squares,
                    int64_t first, int64_t vectors, float* partial, float* scratch) {
  const int64_t row = squares.row / 2, count = squares_of(squares);
  float *of_y = scratch, *of_x = scratch + y.channels * kHalfPatches;
  for (int64_t v = 0; v < vectors; ++v) {
    const Columns at = columns_at(squares, first + v);
    const Indices mask = first_lanes(2 * (first + v) + 1 < count ? kWidth : kWidth / 2);
    for (int64_t c = 0; c < y.channels; ++c)
      transform_half_squares<kHalfIndex>(y.data + c * y.channel_stride, at, row, mask,
                                         of_y + c * kHalfPatches + v * kWidth);
    for (int64_t c = 0; c < x.channels; ++c)
      transform_half_patches<kHalfIndex>(x.data + c * x.channel_stride + patch, at, row,
                                         of_x + c * kHalfPatches + v * kWidth);
  }
  const TapGroup channels[] = {
      {1, {}, {0}}, {2, {}, {0, kHalfPatches}}, {3, {}, {0, kHalfPatches, 2 * kHalfPatches}}};
  for (int64_t e = 0; e < kHalf; ++e) {
    const float *a = of_y + e * kSquares, *b = of_x + e * kSquares;
    partial += for_each_product(
        y.channels, x.channels,
        [&](int64_t i, int64_t block, int64_t j, int64_t together, int64_t at) {
          correlate_block(block, a + i * kHalfPatches, kHalfPatches, b + j * kHalfPatches,
                          channels[together - 1], vectors * kWidth, partial + at);
        });
  }
}

// Adds the products of the transformed maps over all squares to partial sums, [16][tiles].
inline void winograd_correlate(const FlatMap& y, const FlatMap& x, int64_t patch,
                               const Runs& squares, float* partial, float* scratch) {
  constexpr int64_t kMost = kSquares / kWidth;
  const int64_t all = (squares_of(squares) + 1) / 2;
  float* const lower = partial + kHalf * products_of_entry(y.channels, x.channels);
  for (int64_t first = 0; first < all; first += kMost) {
    const int64_t vectors = all - first < kMost ? all - first : kMost;
    correlate_half<0>(y, x, patch, squares, first, vectors, partial, scratch);
    correlate_half<1>(y, x, patch, squares, first, vectors, lower, scratch);
  }
}

// G^T m G of [4][4] vectors, into [3][3].
inline void transform_gradient(const Vector* m, Vector* gradient) {
  const Vector half = broadcast(0.5f);
  Vector rows[3][4];
  for (int j = 0; j < 4; ++j) {
    const Vector sum = half * (m[4 + j] + m[8 + j]);
    rows[0][j] = m[j] + sum, rows[1][j] = half * (m[4 + j] - m[8 + j]),
    rows[2][j] = sum + m[12 + j];
  }
  for (int i = 0; i < 3; ++i, gradient += 3) {
    const Vector *r = rows[i], sum = half * (r[1] + r[2]);
    gradient[0] = r[0] + sum, gradient[1] = half * (r[1] - r[2]), gradient[2] = sum + r[3];
  }
}

// gradient[i * a_stride + j * b_stride + k] = what the partial sums stand for.  The transform is
// linear: it comes in front of the sum over a quarter of the lanes.
inline void finish_winograd_correlation(int64_t a_channels, int64_t b_channels,
                                        const float* partial, float* gradient, int64_t a_stride,
                                        int64_t b_stride) {
  const int64_t entry = products_of_entry(a_channels, b_channels);
  for_each_product(
      a_channels, b_channels, [&](int64_t i, int64_t block, int64_t j, int64_t count, int64_t at) {
        for (int64_t first = 0; first < block * count; first += 4) {
          Vector m[16], of_taps[12] = {};
          for (int64_t e = 0; e < 16; ++e) m[e] = load(partial + e * entry + at + first * kQuarter);
          transform_gradient(m, of_taps);
          float sums[12][4];
          for (int t = 0; t < 12; t += 4) whole_sums(of_taps + t, sums[t]);
          for (int64_t index = first; index < first + 4 && index < block * count; ++index) {
            float* to = gradient + (i + index / count) * a_stride + (j + index % count) * b_stride;
            for (int t = 0; t < 9; ++t) to[t] = sums[t][index - first];
          }
        }
      });
}

}  // namespace colorseg::cpu::COLORSEG_ISA

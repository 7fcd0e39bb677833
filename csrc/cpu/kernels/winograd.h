// Winograd's F(2x2, 3x3): a 3x3 convolution of stride 1 with 16 instead of 36 multiplications per
// 2 x 2 outputs (Lavin and Gray, arXiv:1509.09308).
//
// Both maps are in 2 x 2 phases, so the 4 x 4 patch of an output square is 16 vectors at constant
// distances.  Tiles of positions stay in the cache through all three steps: transform the patches,
// 16 products, transform back.
#pragma once
#include "multiply.h"

namespace colorseg::cpu::COLORSEG_ISA {

constexpr int64_t kTile = kVectors * kWidth;  // positions

// G g G^T of one 3x3 kernel, `step` apart (9 values from k on; -1 from the last one back).
inline void transform_kernel(const float* k, int64_t step, float* u) {
  float rows[4][3];
  for (int64_t j = 0; j < 3; ++j) {
    const float a = k[step * j], b = k[step * (3 + j)], c = k[step * (6 + j)];
    rows[0][j] = a, rows[1][j] = 0.5f * (a + b + c), rows[2][j] = 0.5f * (a - b + c),
    rows[3][j] = c;
  }
  for (int64_t i = 0; i < 4; ++i) {
    const float a = rows[i][0], b = rows[i][1], c = rows[i][2];
    u[4 * i] = a, u[4 * i + 1] = 0.5f * (a + b + c), u[4 * i + 2] = 0.5f * (a - b + c),
          u[4 * i + 3] = c;
  }
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

// v = B^T d B; the result for patch entry i goes to v + i * stride.
inline void transform_patch(const float* in, const Patch& patch, float* v, int64_t stride) {
  Vector d[4][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Vector a = load(in + patch.offset[j]), b = load(in + patch.offset[4 + j]),
                 c = load(in + patch.offset[8 + j]), e = load(in + patch.offset[12 + j]);
    d[0][j] = a - c, d[1][j] = b + c, d[2][j] = c - b, d[3][j] = b - e;
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    store(v + (4 * i) * stride, d[i][0] - d[i][2]);
    store(v + (4 * i + 1) * stride, d[i][1] + d[i][2]);
    store(v + (4 * i + 2) * stride, d[i][2] - d[i][1]);
    store(v + (4 * i + 3) * stride, d[i][1] - d[i][3]);
  }
}

// The 2 x 2 outputs A^T m A + bias, one per phase.
inline void transform_back(const float* m, int64_t stride, Vector bias, float* out,
                           int64_t phase_stride) {
  Vector top[4], bottom[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Vector a = load(m + j * stride), b = load(m + (4 + j) * stride),
                 c = load(m + (8 + j) * stride), d = load(m + (12 + j) * stride);
    top[j] = a + b + c, bottom[j] = b - c - d;
  }
  store(out, top[0] + top[1] + top[2] + bias);
  store(out + phase_stride, top[1] - top[2] - top[3] + bias);
  store(out + 2 * phase_stride, bottom[0] + bottom[1] + bottom[2] + bias);
  store(out + 3 * phase_stride, bottom[1] - bottom[2] - bottom[3] + bias);
}

// Floats of scratch that winograd needs.
inline int64_t winograd_scratch(int64_t in_channels) { return 16 * kTile * (in_channels + kBlock); }

inline void winograd(const FlatMap& in, const Patch& patch, const float* packed, const float* bias,
                     int64_t positions, const FlatMap& out, float* scratch) {
  static const int32_t here = 0;
  const int64_t plane = in.channels * kTile;  // of one patch entry
  float* products = scratch + 16 * plane;
  for (int64_t p = 0; p < positions; p += kTile) {
    const int64_t left = (positions - p + kWidth - 1) / kWidth;
    const int64_t vectors = left < kVectors ? left : kVectors;
    for (int64_t c = 0; c < in.channels; ++c) {
      for (int64_t v = 0; v < vectors; ++v) {
        transform_patch(in.data + c * in.channel_stride + p + v * kWidth, patch,
                        scratch + c * kTile + v * kWidth, plane);
      }
    }
    const float* w = packed;
    for (int64_t o = 0; o < out.channels;) {
      const int64_t block = block_at(o, out.channels), size = block * kTile;
      for (int64_t i = 0; i < 16; ++i, w += in.channels * block) {
        multiply_block(block, vectors,
                       {scratch + i * plane, in.channels, kTile, &here, 1, w, kNoBias,
                        products + i * size, kTile});
      }
      for (int64_t j = 0; j < block; ++j) {
        const Vector start = bias ? broadcast(bias[o + j]) : Vector{};
        float* to = out.data + (o + j) * out.channel_stride + p;
        for (int64_t v = 0; v < vectors; ++v) {
          transform_back(products + j * kTile + v * kWidth, size, start, to + v * kWidth,
                         out.phase_stride);
        }
      }
      o += block;
    }
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

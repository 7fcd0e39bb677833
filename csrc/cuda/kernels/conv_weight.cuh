// Weights of own convolutions as the B operand of tensor core products, in the order in which lanes
// read them.
#pragma once
#include "conv_tile.cuh"

namespace colorseg::cuda {

// What a lane has of a matrix of kStepBytes of input channels x 8 result channels; in strict
// float32 a number is the sum of two that tf32 has.
template <bool kStrict>
struct alignas(8) WeightFragment {
  uint32_t high[2];
};
template <>
struct alignas(16) WeightFragment<true> {
  uint32_t high[2], low[2];
};

// Groups of 8 result channels that a block takes at a time, and all of them with the padding.
__host__ __device__ inline int block_weight_tiles(const Channels& out, bool strict) {
  const int tiles = (out.padded + 7) / 8;
  return tiles <= 1 ? 1 : tiles <= 3 ? 3 : tiles <= 4 || strict ? 4 : 8;
}
__host__ __device__ inline int weight_tiles(const Channels& out, bool strict) {
  const int tiles = (out.padded + 7) / 8, block = block_weight_tiles(out, strict);
  return (tiles + block - 1) / block * block;
}

// x as the sum of a number that tf32 has, to_tf32(x), and a rest, whose last two bits tensor cores
// cut off: 2^-21 of x at most.  The rest is NaN where x is, or is infinite.
__device__ inline void split(float x, uint32_t& high, uint32_t& low) {
  high = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;  // without to_tf32's look at NaN
  low = __float_as_uint(x - __uint_as_float(high));
}

// 16 rows of A times a row of matrices of the weight.  Tensor cores cut off what they add up; in
// strict float32 they start from 0 every time, and float32 additions round.
template <typename T, bool kStrict, int kTilesN>
__device__ void multiply_row(const uint32_t (&a)[4], const WeightFragment<kStrict> (&b)[kTilesN],
                             float (&sums)[kTilesN][4]) {
  if constexpr (kStrict) {
    uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) split(__uint_as_float(a[i]), high[i], low[i]);
#pragma unroll
    for (int n = 0; n < kTilesN; ++n) {
      float part[4];
      multiply_add<T>(part, low, b[n].high[0], b[n].high[1], {0, 0, 0, 0});
      multiply_add<T>(part, high, b[n].low[0], b[n].low[1], part);
      multiply_add<T>(part, high, b[n].high[0], b[n].high[1], part);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] += part[i];
    }
  } else {
#pragma unroll
    for (int n = 0; n < kTilesN; ++n)
      multiply_add<T>(sums[n], a, b[n].high[0], b[n].high[1], sums[n]);
  }
}

}  // namespace colorseg::cuda

// What a block of weight_gradient.cu has of the input and of the gradient: tiles of both in shared
// memory, and how lanes find a tap's operands there.
#pragma once
#include "conv_tiling.h"
#include "conv_weight.cuh"

namespace colorseg::cuda {

constexpr int kMostTapWarps = 9, kMostThreads = kMostTapWarps * kWarp, kBlocksEach = 2;
constexpr int kSlackBytes = 256;  // lanes of channels that do not exist read behind a row

// Groups of taps that a block takes, one for each warp.
__host__ __device__ inline int tap_groups(const ConvTaps& t) {
  return (t.count + kMostTapWarps - 1) / kMostTapWarps;
}
// At least two, since load_window needs a thread for each vector of a pixel; one without a tap only
// loads.
inline int tap_warps(const ConvTaps& t) {
  const int warps = (t.count + tap_groups(t) - 1) / tap_groups(t);
  return warps < 2 ? 2 : warps;
}

struct GradientMemory {
  int x_row, grad_row, x, grad, offsets;  // bytes of a pixel, of the tiles, and of the offsets
  __host__ __device__ int offsets_at() const { return x + grad + kSlackBytes; }
  __host__ __device__ int total() const { return offsets_at() + offsets; }
};

template <typename T>
__host__ __device__ Channels grad_channels(const Convolution<T>& p) {
  return channels_of<T>(p.out.counts[0], 0);
}

template <typename T>
__host__ __device__ GradientMemory gradient_memory_of(const Convolution<T>& p) {
  const int x_row = pixel_bytes<T>(p.in), grad_row = pixel_bytes<T>(grad_channels(p));
  const int pixels = tile_rows(p.taps, p.tiling) * tile_columns(p.taps, p.tiling)
                     << p.tiling.log_images;
  return {x_row, grad_row, pixels * x_row, p.tiling.positions() * p.taps.phases() * grad_row,
          p.tiling.positions() * 8};
}

// Where a position of a tile is, in bytes from where that of a tap begins: the same in every tile.
struct Offsets {
  int x, grad;
};
__device__ inline Offsets offsets_of(const ConvTaps& t, const Tiling& g,
                                     const GradientMemory& memory, int position) {
  const Position q = position_of(g, position);
  const int columns = tile_columns(t, g), image = tile_rows(t, g) * columns;
  const int grad_columns = t.out_step << g.log_columns;
  const int grad_image = (t.out_step << g.log_rows) * grad_columns;
  return {
      (q.image * image + t.in_step * (q.row * columns + q.column)) * memory.x_row,
      (q.image * grad_image + t.out_step * (q.row * grad_columns + q.column)) * memory.grad_row};
}

// How lanes find the operands of a tap in the tiles.
struct Operands {
  const Offsets* offsets;  // of all positions, in shared memory
  const unsigned char *x, *grad;
  __device__ const unsigned char* x_at(int position) const { return x + offsets[position].x; }
  __device__ const unsigned char* grad_at(int position) const {
    return grad + offsets[position].grad;
  }
};

// A: gradients of kTilesM times 16 channels, at kStepBytes / sizeof(T) positions from `first` on.
template <typename T, int kTilesM>
__device__ void load_gradients(const Operands& o, int first, int lane, uint32_t (&a)[kTilesM][4]) {
  if constexpr (sizeof(T) == 2) {
    const unsigned char* from = o.grad_at(first + lane % 8 + lane / 16 * 8) + lane / 8 % 2 * 16;
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) load_matrices_transposed(a[m], from + m * 32);
  } else {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto* from =
          reinterpret_cast<const uint32_t*>(o.grad_at(first + half * 4 + lane % 4)) + lane / 4;
#pragma unroll
      for (int m = 0; m < kTilesM; ++m)
        a[m][2 * half] = from[m * 16], a[m][2 * half + 1] = from[m * 16 + 8];
    }
  }
}

// B: the input at the same positions, in kTilesN times 8 channels.
template <typename T, bool kStrict, int kTilesN>
__device__ void load_inputs(const Operands& o, int first, int lane,
                            WeightFragment<kStrict> (&b)[kTilesN]) {
  if constexpr (sizeof(T) == 2) {
    const unsigned char* from = o.x_at(first + lane % 16) + lane / 16 * 16;
#pragma unroll
    for (int n = 0; n < kTilesN; n += 2) {
      uint32_t pair[4];
      load_matrices_transposed(pair, from + n * 16);
      b[n].high[0] = pair[0], b[n].high[1] = pair[1];
      if (n + 1 < kTilesN) b[n + 1].high[0] = pair[2], b[n + 1].high[1] = pair[3];
    }
  } else {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto* from =
          reinterpret_cast<const uint32_t*>(o.x_at(first + half * 4 + lane % 4)) + lane / 4;
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
        if constexpr (kStrict)
          split(__uint_as_float(from[n * 8]), b[n].high[half], b[n].low[half]);
        else
          b[n].high[half] = from[n * 8];
      }
    }
  }
}

__device__ inline int phase_of(const ConvTaps& taps, int t) {
  int phase = 0;
  while (t >= taps.first[phase + 1]) ++phase;
  return phase;
}

}  // namespace colorseg::cuda

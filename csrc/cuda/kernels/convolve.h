// The library's own CUDA convolutions, torch-free: sums of matrix products on tensor cores, of maps
// in channels_last.  One kernel does plain, strided, transposed and upsampling convolutions and
// their data gradients: they differ in a table of taps.
#pragma once
#include <type_traits>

#include "batch_norm.h"

namespace colorseg::cuda {

constexpr int kMostTaps = 64;

// Result out_step * q + (py, px) of a position q adds up, over the taps t of phase
// py * out_step + px, the input at in_step * q + (dy[t], dx[t]) times a matrix: the sum of the
// weight's own taps that `sources[t]` has a bit for.
struct ConvTaps {
  int in_step, out_step, count;
  int first[5];  // of each phase, and behind the last
  int8_t dy[kMostTaps], dx[kMostTaps];
  uint64_t sources[kMostTaps];
  int top, left, height, width;  // the smallest dy and dx, and how many rows and columns they span
  __host__ __device__ int phases() const { return out_step * out_step; }
};

// Channels of one or two maps side by side; each map begins at a whole vector of 16 bytes.
struct Channels {
  int counts[2], begin, padded;  // begin: of the second map; padded: all of it
  __host__ __device__ int which(int at) const { return at >= begin ? 1 : 0; }
  // The channel at a place, counted through both maps; -1 in the padding.
  __host__ __device__ int channel(int at) const {
    const int i = which(at), c = at - i * begin;
    return c < counts[i] ? i * counts[0] + c : -1;
  }
};

template <typename T>
__host__ __device__ Channels channels_of(int first, int second) {
  constexpr int kVector = 16 / sizeof(T);
  const int begin = (first + kVector - 1) / kVector * kVector;
  return {{first, second}, begin, begin + (second + kVector - 1) / kVector * kVector};
}

// Blocks take `blocks` equal shares of tiles: images x rows x columns of positions, powers of two.
struct Tiling {
  int log_images, log_rows, log_columns;
  int row_tiles, column_tiles, tiles, blocks;
  bool keeps_weight;  // in shared memory
  __host__ __device__ int positions() const { return 1 << (log_images + log_rows + log_columns); }
};

// A map that is convolved: relu(affine(x)), with zeros around it.
template <typename T>
struct ConvSource {
  const T* x;
  const ChannelAffine<float>* affine;  // or null
  bool relu;
};

// Where a result goes: + bias, 2x2 max-pool, + y, or what a ReLU lets pass, in this order; and what
// is summed up of it.  Null: not wanted.
template <typename T>
struct ConvTarget {
  T* y;
  bool adds;         // to what is in y
  Moments* moments;  // [tiling.blocks][channels]
  // of a data gradient: the forward pass read map through map_affine and a ReLU
  const T* map;
  const ChannelAffine<float>* map_affine;
  bool map_relu;
  GradientSums* sums;  // [tiling.blocks][channels]
};

template <typename T>
struct Convolution {
  ConvTaps taps;
  int64_t n;
  int in_height, in_width, out_height, out_width;
  Channels in, out;
  ConvSource<T> sources[2];
  ConvTarget<T> targets[2];
  const void* weight;  // packed
  const float* bias;   // or null
  bool pool;           // of taps of one phase
  bool strict;         // float32 is computed in float32, not in tf32
  uint8_t* codes;      // argmax of the max-pool, or null
  Tiling tiling;
};

// Chooses p.tiling for the current device; false where it has no kernel.
template <typename T>
bool plan(Convolution<T>& p);

// A weight and where it goes in the order in which lanes read it.  Channel k of `in`, channel n of
// `out` and a tap have it at k * k_stride + n * n_stride + tap.
template <typename W>
struct Packing {
  ConvTaps taps;
  Channels in, out;
  const W* weight;
  int64_t k_stride, n_stride;
  void* packed;
};
constexpr int kMostPackings = 8;  // at a time
template <typename W>
struct Packings {
  int count;
  Packing<W> each[kMostPackings];
};

// Elements of 4 bytes of a packed weight for maps of T.
template <typename T>
int64_t packed_size(const ConvTaps& taps, const Channels& in, const Channels& out, bool strict);

// W: T or float.
template <typename T, typename W>
void pack_weights(const Packings<W>& packings, bool strict, Stream);

template <typename T>
void convolve(const Convolution<T>& p, Stream);

// The gradient of the weight of a forward convolution p, of which the sources and `tiling` count;
// grad: of its result, (n, out_height, out_width, channels).
template <typename T>
struct WeightGradient {
  Convolution<T> p;
  const T* grad;
  int weight_taps;  // of the weight itself
};

template <typename T>
bool plan(WeightGradient<T>& w);

// Elements of the scratch.
template <typename T>
int64_t partial_size(const WeightGradient<T>& w);

// grad_weight is laid out as in Packing.
template <typename T, typename W>
void weight_gradient(const WeightGradient<T>& w, int64_t k_stride, int64_t n_stride, float* partial,
                     W* grad_weight, Stream);

}  // namespace colorseg::cuda

// Puts weights into the order of conv_weight.cuh, and adds up the taps that an upsampling
// convolution reads from the same pixel.
#include <algorithm>

#include "conv_weight.cuh"

namespace colorseg::cuda {
namespace {

constexpr int kPackThreads = 128;

// The sum of the weight's taps that tap t of p stands for; k and n are places in `in` and `out`.
template <typename W>
__device__ float entry(const Packing<W>& p, int t, int k, int n) {
  const int from = k < p.in.padded ? p.in.channel(k) : -1;
  const int to = n < p.out.padded ? p.out.channel(n) : -1;
  if (from < 0 || to < 0) return 0;
  float sum = 0;
  for (uint64_t left = p.taps.sources[t], tap = 0; left != 0; left >>= 1, ++tap) {
    if (left & 1) sum += widen(p.weight[from * p.k_stride + to * p.n_stride + tap]);
  }
  return sum;
}

__device__ inline uint32_t pair(__half first, __half second) {
  return __half_as_ushort(first) | uint32_t(__half_as_ushort(second)) << 16;
}
__device__ inline uint32_t pair(__nv_bfloat16 first, __nv_bfloat16 second) {
  return __bfloat16_as_ushort(first) | uint32_t(__bfloat16_as_ushort(second)) << 16;
}

template <typename T>
__host__ __device__ int steps_of(const Channels& in) {
  return pixel_bytes<T>(in) / kStepBytes;
}

// A thread for each fragment of a lane: [taps][steps][tiles][lanes]; a row of blocks per weight.
template <typename T, typename W, bool kStrict>
__global__ void __launch_bounds__(kPackThreads) pack(const __grid_constant__ Packings<W> packings) {
  await_previous();
  const Packing<W>& p = packings.each[blockIdx.y];
  const int steps = steps_of<T>(p.in), tiles = weight_tiles(p.out, kStrict);
  const int64_t i = int64_t(blockIdx.x) * kPackThreads + threadIdx.x;
  if (i >= int64_t(p.taps.count) * steps * tiles * kWarp) return;
  const int lane = static_cast<int>(i % kWarp), tile = static_cast<int>(i / kWarp % tiles);
  const int step = static_cast<int>(i / kWarp / tiles % steps);
  const int t = static_cast<int>(i / kWarp / tiles / steps), n = tile * 8 + lane / 4;
  constexpr int kPerStep = kStepBytes / sizeof(T);
  WeightFragment<kStrict> fragment;
  for (int half = 0; half < 2; ++half) {
    const int k = step * kPerStep + half * kPerStep / 2 + lane % 4 * (4 / sizeof(T));
    const float value = entry(p, t, k, n);
    if constexpr (sizeof(T) == 2) {
      const float second = entry(p, t, k + 1, n);
      fragment.high[half] = pair(narrow<T>(value), narrow<T>(second));
    } else if constexpr (kStrict) {
      uint32_t rest;
      split(value, fragment.high[half], rest);
      // rounded, not cut off: half the error, at no cost here
      fragment.low[half] = __float_as_uint(to_tf32(__uint_as_float(rest)));
    } else {
      fragment.high[half] = __float_as_uint(to_tf32(value));
    }
  }
  static_cast<WeightFragment<kStrict>*>(p.packed)[i] = fragment;
}

}  // namespace

template <typename T>
int64_t packed_size(const ConvTaps& taps, const Channels& in, const Channels& out, bool strict) {
  const int64_t matrices = int64_t(taps.count) * steps_of<T>(in) + 1;  // a lane reads ahead
  strict = strict && sizeof(T) == 4;
  return matrices * weight_tiles(out, strict) * kWarp * (strict ? 4 : 2);
}

template <typename T, typename W>
void pack_weights(const Packings<W>& packings, bool strict, Stream stream) {
  strict = strict && sizeof(T) == 4;
  int64_t most = 0;
  for (int i = 0; i < packings.count; ++i) {
    const Packing<W>& p = packings.each[i];
    const int64_t tiles = weight_tiles(p.out, strict);
    most = std::max(most, p.taps.count * steps_of<T>(p.in) * tiles * kWarp);
  }
  const dim3 grid(static_cast<unsigned>((most + kPackThreads - 1) / kPackThreads), packings.count);
  auto kernel = pack<T, W, false>;
  if constexpr (sizeof(T) == 4) {
    if (strict) kernel = pack<T, W, true>;
  }
  launch(kernel, grid, dim3(kPackThreads), 0, stream, packings);
}

#define COLORSEG_INSTANTIATE_PACK(T, W) \
  template void pack_weights<T>(const Packings<W>&, bool, Stream);
COLORSEG_INSTANTIATE_PACK(float, float)
COLORSEG_INSTANTIATE_PACK(__half, __half)
COLORSEG_INSTANTIATE_PACK(__half, float)
COLORSEG_INSTANTIATE_PACK(__nv_bfloat16, __nv_bfloat16)
COLORSEG_INSTANTIATE_PACK(__nv_bfloat16, float)
#define COLORSEG_INSTANTIATE(T) \
  template int64_t packed_size<T>(const ConvTaps&, const Channels&, const Channels&, bool);
COLORSEG_INSTANTIATE(float)
COLORSEG_INSTANTIATE(__half)
COLORSEG_INSTANTIATE(__nv_bfloat16)

}  // namespace colorseg::cuda

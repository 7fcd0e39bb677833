// Puts weights into the order of conv_weight.cuh, and adds up the taps that an upsampling
// convolution reads from the same pixel.
#include "conv_weight.cuh"

namespace colorseg::cuda {
namespace {

constexpr int kPackThreads = 128;

// The sum of the weight's taps that tap t of p stands for; k and n are places in `in` and `out`.
template <typename T, typename W>
__device__ float entry(const Convolution<T>& p, int t, int k, int n, const W* weight,
                       int64_t k_stride, int64_t n_stride) {
  const int from = k < p.in.padded ? p.in.channel(k) : -1;
  const int to = n < p.out.padded ? p.out.channel(n) : -1;
  if (from < 0 || to < 0) return 0;
  float sum = 0;
  for (uint64_t left = p.taps.sources[t], tap = 0; left != 0; left >>= 1, ++tap) {
    if (left & 1) sum += widen(weight[from * k_stride + to * n_stride + tap]);
  }
  return sum;
}

__device__ inline uint32_t pair(__half first, __half second) {
  return __half_as_ushort(first) | uint32_t(__half_as_ushort(second)) << 16;
}
__device__ inline uint32_t pair(__nv_bfloat16 first, __nv_bfloat16 second) {
  return __bfloat16_as_ushort(first) | uint32_t(__bfloat16_as_ushort(second)) << 16;
}

// A thread for each fragment of a lane: [taps][steps][tiles][lanes].
template <typename T, typename W, bool kStrict>
__global__ void __launch_bounds__(kPackThreads)
    pack(const __grid_constant__ Convolution<T> p, int steps, int tiles, const W* weight,
         int64_t k_stride, int64_t n_stride, WeightFragment<kStrict>* packed) {
  const int64_t i = int64_t(blockIdx.x) * kPackThreads + threadIdx.x;
  if (i >= int64_t(p.taps.count) * steps * tiles * kWarp) return;
  const int lane = static_cast<int>(i % kWarp), tile = static_cast<int>(i / kWarp % tiles);
  const int step = static_cast<int>(i / kWarp / tiles % steps);
  const int t = static_cast<int>(i / kWarp / tiles / steps), n = tile * 8 + lane / 4;
  constexpr int kPerStep = kStepBytes / sizeof(T);
  WeightFragment<kStrict> fragment;
  for (int half = 0; half < 2; ++half) {
    const int k = step * kPerStep + half * kPerStep / 2 + lane % 4 * (4 / sizeof(T));
    const float value = entry(p, t, k, n, weight, k_stride, n_stride);
    if constexpr (sizeof(T) == 2) {
      const float second = entry(p, t, k + 1, n, weight, k_stride, n_stride);
      fragment.high[half] = pair(narrow<T>(value), narrow<T>(second));
    } else if constexpr (kStrict) {
      split(value, fragment.high[half], fragment.low[half]);
    } else {
      fragment.high[half] = __float_as_uint(to_tf32(value));
    }
  }
  packed[i] = fragment;
}

template <typename T>
int steps_of(const Convolution<T>& p) {
  return pixel_bytes<T>(p.in) / kStepBytes;
}

}  // namespace

template <typename T>
int64_t packed_size(const Convolution<T>& p, bool strict) {
  const int64_t matrices = int64_t(p.taps.count) * steps_of(p) + 1;  // a lane reads ahead
  strict = strict && sizeof(T) == 4;
  return matrices * weight_tiles(p.out, strict) * kWarp * (strict ? 4 : 2);
}

template <typename T, typename W>
void pack_weight(const Convolution<T>& p, bool strict, const W* weight, int64_t k_stride,
                 int64_t n_stride, void* packed, Stream stream) {
  const int steps = steps_of(p), tiles = weight_tiles(p.out, strict && sizeof(T) == 4);
  const int64_t count = int64_t(p.taps.count) * steps * tiles * kWarp;
  const dim3 grid(static_cast<unsigned>((count + kPackThreads - 1) / kPackThreads));
  if constexpr (sizeof(T) == 4) {
    if (strict)
      return launch(pack<T, W, true>, grid, dim3(kPackThreads), 0, stream, p, steps, tiles, weight,
                    k_stride, n_stride, static_cast<WeightFragment<true>*>(packed));
  }
  launch(pack<T, W, false>, grid, dim3(kPackThreads), 0, stream, p, steps, tiles, weight, k_stride,
         n_stride, static_cast<WeightFragment<false>*>(packed));
}

#define COLORSEG_INSTANTIATE_PACK(T, W) \
  template void pack_weight(const Convolution<T>&, bool, const W*, int64_t, int64_t, void*, Stream);
COLORSEG_INSTANTIATE_PACK(float, float)
COLORSEG_INSTANTIATE_PACK(__half, __half)
COLORSEG_INSTANTIATE_PACK(__half, float)
COLORSEG_INSTANTIATE_PACK(__nv_bfloat16, __nv_bfloat16)
COLORSEG_INSTANTIATE_PACK(__nv_bfloat16, float)
template int64_t packed_size(const Convolution<float>&, bool);
template int64_t packed_size(const Convolution<__half>&, bool);
template int64_t packed_size(const Convolution<__nv_bfloat16>&, bool);

}  // namespace colorseg::cuda

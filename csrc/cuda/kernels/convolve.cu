// Convolutions on tensor cores: a block loads a tile of the input, its warps multiply 16 positions
// at a time, of a shifted tile for each tap, with the weight, and what follows is done to the
// products before they leave the multiprocessor.
#include "conv_epilogue.cuh"
#include "conv_tiling.h"
#include "conv_weight.cuh"

namespace colorseg::cuda {
namespace {

constexpr int kConvWarps = kConvThreads / kWarp;
constexpr int kBlocksEach = 2;               // of a multiprocessor: registers suffice for no more
constexpr int kMostWeightBytes = 64 * 1024;  // of a weight that blocks keep in shared memory

// How p uses shared memory, in bytes.
struct Memory {
  int row, tile, stage, sums, weight;
  bool shared;  // products overwrite the tile: no phase comes after them
  __host__ __device__ int stage_at() const { return shared ? 0 : tile; }
  __host__ __device__ int sums_at() const {
    return shared ? (tile > stage ? tile : stage) : tile + stage;
  }
  __host__ __device__ int weight_at() const { return sums_at() + sums; }
  __host__ __device__ int total() const { return weight_at() + weight; }
};

// Of the part of a packed weight that a block reads.
template <typename T, bool kStrict, int kTilesN>
__host__ __device__ int weight_bytes(const Convolution<T>& p) {
  const int steps = pixel_bytes<T>(p.in) / kStepBytes;
  return (p.taps.count * steps + 1) * kTilesN * kWarp *
         static_cast<int>(sizeof(WeightFragment<kStrict>));
}

template <typename T, bool kStrict, int kTilesN>
__host__ __device__ Memory memory_of(const Convolution<T>& p) {
  const int row = pixel_bytes<T>(p.in);
  const int pixels = tile_rows(p.taps, p.tiling) * tile_columns(p.taps, p.tiling)
                     << p.tiling.log_images;
  const int stage = p.tiling.positions() * stage_stride<kTilesN * 8>() * 4;
  const int weight = weight_bytes<T, kStrict, kTilesN>(p);
  return {row,
          pixels * row,
          stage,
          epilogue_floats<T, kTilesN * 8>() * 4,
          p.tiling.keeps_weight ? weight : 0,
          p.taps.phases() == 1};
}

// The block's columns of the weight, step after step.
template <typename T, bool kStrict, int kTilesN>
struct BlockWeight {
  const WeightFragment<kStrict>* first;
  int stride;  // from a step to the next one

  // In memory; `shared`, if it is not null, gets a copy, there behind await_copies and a barrier.
  __device__ BlockWeight(const Convolution<T>& p, int steps, unsigned char* shared) {
    using Weight = WeightFragment<kStrict>;
    constexpr int kCount = kTilesN * kWarp;
    stride = static_cast<int>(gridDim.y) * kCount;
    first = static_cast<const Weight*>(p.weight) + static_cast<int>(blockIdx.y) * kCount;
    if (!shared) return;
    constexpr int kPart = 16 / sizeof(Weight);
    auto* to = reinterpret_cast<Weight*>(shared);
    const int count = (p.taps.count * steps + 1) * kCount;
    for (int i = static_cast<int>(threadIdx.x) * kPart; i < count; i += kConvThreads * kPart)
      copy_async(to + i, first + i / kCount * stride + i % kCount, true);
    first = to, stride = kCount;
  }
};

// The products of a phase, for kTilesM times 16 positions of a warp, kSteps of a tap at a time.
// rows: where this lane's rows of the tile begin.
template <typename T, bool kStrict, int kTilesM, int kTilesN, int kSteps>
__device__ void multiply(const Convolution<T>& p, int phase, int row_bytes,
                         const BlockWeight<T, kStrict, kTilesN>& block_weight,
                         const unsigned char* const (&rows)[kTilesM],
                         float (&sums)[kTilesM][kTilesN][4]) {
  using Weight = WeightFragment<kStrict>;
  const int steps = row_bytes / kStepBytes, columns = tile_columns(p.taps, p.tiling);
  const Weight* weight =
      block_weight.first + threadIdx.x % kWarp + p.taps.first[phase] * steps * block_weight.stride;
  Weight next[kTilesN];
#pragma unroll
  for (int n = 0; n < kTilesN; ++n) next[n] = weight[n * kWarp];
  for (int t = p.taps.first[phase]; t < p.taps.first[phase + 1]; ++t) {
    const int at = ((p.taps.dy[t] - p.taps.top) * columns + p.taps.dx[t] - p.taps.left) * row_bytes;
#pragma unroll(kSteps)
    for (int step = 0; step < steps; ++step) {
      Weight b[kTilesN];
      weight += block_weight.stride;  // one behind the last is there, too
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) b[n] = next[n], next[n] = weight[n * kWarp];
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
        uint32_t a[4];
        load_matrices(a, rows[m] + at + step * kStepBytes);
        multiply_row<T, kStrict>(a, b, sums[m]);
      }
    }
  }
}

template <typename T, bool kStrict, int kTilesM, int kTilesN, bool kGradient>
__global__ void __launch_bounds__(kConvThreads, kBlocksEach)
    convolve_tiles(const __grid_constant__ Convolution<T> p) {
  await_previous();
  constexpr bool kTf32 = sizeof(T) == 4 && !kStrict;
  // vectors that a thread has on their way, as registers allow
  constexpr int kUnroll = sizeof(T) == 4 && kTilesN < 8 ? 4 : 2;
  // one at a time moves every weight from register to register, but needs fewer
  constexpr int kSteps = kStrict && kGradient && kTilesN == 4 ? 1 : 2;
  constexpr int kColumns = kTilesN * 8, kStride = stage_stride<kColumns>();
  auto* shared = shared_memory<unsigned char>();
  const Memory memory = memory_of<T, kStrict, kTilesN>(p);
  auto* stage = reinterpret_cast<float*>(shared + memory.stage_at());
  Epilogue<T, kColumns, kGradient> epilogue(p, reinterpret_cast<float*>(shared + memory.sums_at()));
  const BlockWeight<T, kStrict, kTilesN> weight(
      p, memory.row / kStepBytes, memory.weight > 0 ? shared + memory.weight_at() : nullptr);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  const int columns = tile_columns(p.taps, p.tiling), image = tile_rows(p.taps, p.tiling) * columns;
  const unsigned char* rows[kTilesM];
#pragma unroll
  for (int m = 0; m < kTilesM; ++m) {
    const Position q = position_of(p.tiling, (warp * kTilesM + m) * 16 + lane % 16);
    const int pixel = q.image * image + p.taps.in_step * (q.row * columns + q.column);
    rows[m] = shared + pixel * memory.row + lane / 16 * 16;
  }
  for (int tile = static_cast<int>(blockIdx.x); tile < p.tiling.tiles;
       tile += static_cast<int>(gridDim.x)) {
    const Place at = place_of(p.tiling, tile);
    const Window window{at.image,
                        p.n,
                        p.taps.in_step * at.row + p.taps.top,
                        p.taps.in_step * at.column + p.taps.left,
                        1 << p.tiling.log_images,
                        image / columns,
                        columns,
                        p.in_height,
                        p.in_width};
    __syncthreads();  // the tile or the products before may still be read
    load_window<T, kTf32, kUnroll>(window, p.in, p.sources[0], p.sources[1], memory.row, shared);
    await_copies();
    __syncthreads();
    for (int phase = 0; phase < p.taps.phases(); ++phase) {
      float sums[kTilesM][kTilesN][4] = {};
      multiply<T, kStrict, kTilesM, kTilesN, kSteps>(p, phase, memory.row, weight, rows, sums);
      __syncthreads();  // all have read the tile, or the phase before
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
        float* to = stage + ((warp * kTilesM + m) * 16 + lane / 4) * kStride + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < kTilesN; ++n) {
          to[n * 8] = sums[m][n][0], to[n * 8 + 1] = sums[m][n][1];
          to[n * 8 + 8 * kStride] = sums[m][n][2], to[n * 8 + 8 * kStride + 1] = sums[m][n][3];
        }
      }
      __syncthreads();
      epilogue.take(at, phase, stage);
    }
  }
  epilogue.store(stage);
}

template <typename T, bool kStrict, int kTilesM, int kTilesN>
bool plan_tiles(Convolution<T>& p, bool keeps_weight) {
  p.tiling = tiling_of(p, 16 * kConvWarps * kTilesM);
  p.tiling.keeps_weight = keeps_weight;
  return share_tiles(p.tiling, memory_of<T, kStrict, kTilesN>(p).total(), kBlocksEach);
}

// Large tiles read less of the rim and of the weight; small ones are more blocks.
template <bool kStrict, int kTilesN>
constexpr int kLargeTilesM = kTilesN <= 4 && !kStrict ? 2 : 1;

template <typename T, bool kStrict, int kTilesN>
bool plan(Convolution<T>& p) {
  const auto fits = [&](bool keeps_weight) {
    return (plan_tiles<T, kStrict, kLargeTilesM<kStrict, kTilesN>, kTilesN>(p, keeps_weight) &&
            p.tiling.tiles >= 2 * device_limits().multiprocessors) ||
           plan_tiles<T, kStrict, 1, kTilesN>(p, keeps_weight);
  };
  const bool small = weight_bytes<T, kStrict, kTilesN>(p) <= kMostWeightBytes;
  return (small && fits(true)) || fits(false);
}

template <typename T, bool kStrict, int kTilesN>
void run(const Convolution<T>& p, Stream stream) {
  constexpr int kLarge = kLargeTilesM<kStrict, kTilesN>;
  const bool small = p.tiling.positions() == 16 * kConvWarps;
  const ConvTarget<T>* to = p.targets;
  const bool gradient = to[0].adds || to[0].map || to[1].adds || to[1].map;
  const auto kernel = gradient ? small ? convolve_tiles<T, kStrict, 1, kTilesN, true>
                                       : convolve_tiles<T, kStrict, kLarge, kTilesN, true>
                      : small  ? convolve_tiles<T, kStrict, 1, kTilesN, false>
                               : convolve_tiles<T, kStrict, kLarge, kTilesN, false>;
  const dim3 grid(static_cast<unsigned>(p.tiling.blocks),
                  static_cast<unsigned>(weight_tiles(p.out, kStrict) / kTilesN));
  launch(kernel, grid, dim3(kConvThreads), memory_of<T, kStrict, kTilesN>(p).total(), stream, p);
}

// body(bool strict, int tiles of a block) with values that are known to the compiler.
template <typename T, typename Body>
auto with_constants(const Convolution<T>& p, const Body& body) {
  using std::integral_constant;
  const auto with_tiles = [&](auto is_strict) {
    switch (block_weight_tiles(p.out, is_strict.value)) {
      case 1:
        return body(is_strict, integral_constant<int, 1>());
      case 3:
        return body(is_strict, integral_constant<int, 3>());
      case 4:
        return body(is_strict, integral_constant<int, 4>());
      default:
        return body(is_strict, integral_constant<int, is_strict.value ? 4 : 8>());
    }
  };
  if constexpr (sizeof(T) == 4) {
    if (p.strict) return with_tiles(std::true_type());
  }
  return with_tiles(std::false_type());
}

}  // namespace

template <typename T>
bool plan(Convolution<T>& p) {
  return with_constants(
      p, [&](auto is_strict, auto tiles) { return plan<T, is_strict.value, tiles.value>(p); });
}

template <typename T>
void convolve(const Convolution<T>& p, Stream stream) {
  with_constants(
      p, [&](auto is_strict, auto tiles) { run<T, is_strict.value, tiles.value>(p, stream); });
}

#define COLORSEG_INSTANTIATE(T)        \
  template bool plan(Convolution<T>&); \
  template void convolve(const Convolution<T>&, Stream);
COLORSEG_INSTANTIATE(float)
COLORSEG_INSTANTIATE(__half)
COLORSEG_INSTANTIATE(__nv_bfloat16)

}  // namespace colorseg::cuda

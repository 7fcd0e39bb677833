// The gradient of a convolution's weight: of each tap a product [channels of y][channels of x] over
// the positions of tiles, a tap for each warp.  Blocks keep their sums to the end, and a second
// kernel adds them up in their order.
#include "weight_gradient_tile.cuh"

namespace colorseg::cuda {
namespace {

constexpr int kSumRows = 8;

// partial: [blocks][taps][gridDim.y][kTilesM][kTilesN][4][lanes].
template <typename T, bool kStrict, int kTilesM, int kTilesN>
__global__ void __launch_bounds__(kMostThreads, kTilesM* kTilesN <= 8 ? kBlocksEach : 1)
    multiply_tiles(const __grid_constant__ WeightGradient<T> w, float* partial) {
  await_previous();
  const Convolution<T>& p = w.p;
  auto* shared = shared_memory<unsigned char>();
  const GradientMemory memory = gradient_memory_of(p);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  const int t = static_cast<int>(blockIdx.z) * static_cast<int>(blockDim.x / kWarp) + warp;
  const bool active = t < p.taps.count;
  const int phase = active ? phase_of(p.taps, t) : 0, out_step = p.taps.out_step;
  const int rows = tile_rows(p.taps, p.tiling), columns = tile_columns(p.taps, p.tiling);
  const int grad_rows = out_step << p.tiling.log_rows;
  const int grad_columns = out_step << p.tiling.log_columns;
  const int x_blocks = (p.in.padded + kTilesN * 8 - 1) / (kTilesN * 8);
  const int x_channel = static_cast<int>(blockIdx.y) % x_blocks * kTilesN * 8;
  const int grad_channel = static_cast<int>(blockIdx.y) / x_blocks * kTilesM * 16;
  const int offset =
      active ? (p.taps.dy[t] - p.taps.top) * columns + p.taps.dx[t] - p.taps.left : 0;
  const int grad_offset = phase / out_step * grad_columns + phase % out_step;
  auto* offsets = reinterpret_cast<Offsets*>(shared + memory.offsets_at());
  for (int i = static_cast<int>(threadIdx.x); i < p.tiling.positions(); i += blockDim.x)
    offsets[i] = offsets_of(p.taps, p.tiling, memory, i);  // read behind the first barrier
  const Operands operands{
      offsets, shared + offset * memory.x_row + x_channel * int(sizeof(T)),
      shared + memory.x + grad_offset * memory.grad_row + grad_channel * int(sizeof(T))};
  constexpr bool kTf32 = sizeof(T) == 4 && !kStrict;
  // vectors that a thread has on their way, as registers allow
  constexpr int kUnroll = (sizeof(T) == 2 && kTilesM * kTilesN == 8) ? 1 : 2;
  constexpr int kStep = kStepBytes / sizeof(T);
  float sums[kTilesM][kTilesN][4] = {};
  for (int tile = static_cast<int>(blockIdx.x); tile < p.tiling.tiles;
       tile += static_cast<int>(gridDim.x)) {
    const Place at = place_of(p.tiling, tile);
    const int images = 1 << p.tiling.log_images;
    const Window x{at.image,
                   p.n,
                   p.taps.in_step * at.row + p.taps.top,
                   p.taps.in_step * at.column + p.taps.left,
                   images,
                   rows,
                   columns,
                   p.in_height,
                   p.in_width};
    const Window grad{at.image,  p.n,          out_step * at.row, out_step * at.column, images,
                      grad_rows, grad_columns, p.out_height,      p.out_width};
    const ConvSource<T> source{w.grad, nullptr, false};
    __syncthreads();  // the tile before may still be read
    const auto load_grad = [&] {
      load_window<T, kTf32, kUnroll>(grad, grad_channels(p), source, source, memory.grad_row,
                                     shared + memory.x);
    };
    // it needs no registers while it is on its way, but in strict float32 there are none to spare
    if constexpr (!kStrict) load_grad();
    load_window<T, kTf32, kUnroll>(x, p.in, p.sources[0], p.sources[1], memory.x_row, shared);
    if constexpr (kStrict) load_grad();
    await_copies();
    __syncthreads();
    for (int first = 0; active && first < p.tiling.positions(); first += kStep) {
      uint32_t a[kTilesM][4];
      WeightFragment<kStrict> b[kTilesN];
      load_gradients<T>(operands, first, lane, a);
      load_inputs<T>(operands, first, lane, b);
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) multiply_row<T, kStrict>(a[m], b, sums[m]);
    }
  }
  if (!active) return;
  float* to = partial +
              ((int64_t(blockIdx.x) * p.taps.count + t) * gridDim.y + blockIdx.y) *
                  (kTilesM * kTilesN * 4 * kWarp) +
              lane;
#pragma unroll
  for (int i = 0; i < kTilesM * kTilesN * 4; ++i)
    to[i * kWarp] = sums[i / 4 / kTilesN][i / 4 % kTilesN][i % 4];
}

// A block adds up 32 neighbors of one of the weight's taps (blockIdx.y), for the channels of
// blockIdx.z.
template <typename T, typename W, int kTilesM, int kTilesN>
__global__ void __launch_bounds__(kWarp* kSumRows)
    add_partials(const __grid_constant__ WeightGradient<T> w, const float* partial,
                 int64_t k_stride, int64_t n_stride, W* grad_weight) {
  await_previous();
  constexpr int kCount = kTilesM * kTilesN * 4 * kWarp;
  const Convolution<T>& p = w.p;
  const int lane = threadIdx.x % kWarp, row = static_cast<int>(threadIdx.x) / kWarp;
  const int i = static_cast<int>(blockIdx.x) * kWarp + lane;
  double sum = 0;
  for (int t = 0; t < p.taps.count; ++t) {
    if (!(p.taps.sources[t] >> blockIdx.y & 1)) continue;
    for (int block = row; block < p.tiling.blocks; block += kSumRows)
      sum += partial[((int64_t(block) * p.taps.count + t) * gridDim.z + blockIdx.z) * kCount + i];
  }
  auto* shared = shared_memory<double>();
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (row > 0) return;
  for (int r = 1; r < kSumRows; ++r) sum += shared[r * kWarp + lane];
  const int x_blocks = (p.in.padded + kTilesN * 8 - 1) / (kTilesN * 8);
  const int z = static_cast<int>(blockIdx.z), r = i / kWarp % 4, tile = i / kWarp / 4;
  const int n = z / x_blocks * kTilesM * 16 + tile / kTilesN * 16 + lane / 4 + r / 2 * 8;
  const int place = z % x_blocks * kTilesN * 8 + tile % kTilesN * 8 + lane % 4 * 2 + r % 2;
  const int k = place < p.in.padded ? p.in.channel(place) : -1;
  if (k >= 0 && n < p.out.counts[0])
    grad_weight[k * k_stride + n * n_stride + blockIdx.y] = narrow<W>(static_cast<float>(sum));
}

// Of a block; more would not leave registers for its sums.
template <typename T>
int tiles_n(const Convolution<T>& p) {
  return p.in.padded <= 8 ? 1 : p.in.padded <= 32 || sizeof(T) == 4 ? 4 : 8;
}
template <typename T>
int tiles_m(const Convolution<T>& p) {
  return p.out.counts[0] <= 32 || tiles_n(p) != 4 ? 2 : 4;
}

template <typename T>
int channel_blocks(const Convolution<T>& p) {
  const int m = tiles_m(p) * 16, n = tiles_n(p) * 8;
  return (p.out.counts[0] + m - 1) / m * ((p.in.padded + n - 1) / n);
}

template <typename T>
bool plan_tiles(Convolution<T>& p, int positions) {
  p.tiling = tiling_of(p, positions);
  return share_tiles(p.tiling, gradient_memory_of(p).total(), kBlocksEach);
}

template <typename T, typename W, bool kStrict, int kTilesM, int kTilesN>
void run(const WeightGradient<T>& w, int64_t k_stride, int64_t n_stride, float* partial,
         W* grad_weight, Stream stream) {
  const auto channels = static_cast<unsigned>(channel_blocks(w.p));
  const auto taps = static_cast<unsigned>(w.weight_taps);
  const dim3 grid(static_cast<unsigned>(w.p.tiling.blocks), channels,
                  static_cast<unsigned>(tap_groups(w.p.taps)));
  launch(multiply_tiles<T, kStrict, kTilesM, kTilesN>, grid,
         dim3(static_cast<unsigned>(tap_warps(w.p.taps) * kWarp)), gradient_memory_of(w.p).total(),
         stream, w, partial);
  launch(add_partials<T, W, kTilesM, kTilesN>, dim3(kTilesM * kTilesN * 4, taps, channels),
         dim3(kWarp * kSumRows), kWarp * kSumRows * sizeof(double), stream, w, partial, k_stride,
         n_stride, grad_weight);
}

template <typename T, typename W, bool kStrict>
void run(const WeightGradient<T>& w, int64_t k_stride, int64_t n_stride, float* partial,
         W* grad_weight, Stream stream) {
  const auto run_kernel = [&](auto m, auto n) {
    run<T, W, kStrict, m.value, n.value>(w, k_stride, n_stride, partial, grad_weight, stream);
  };
  using std::integral_constant;
  const integral_constant<int, 2> two;
  const integral_constant<int, 4> four;
  if (tiles_n(w.p) == 1) return run_kernel(two, integral_constant<int, 1>());
  if constexpr (sizeof(T) == 2) {
    if (tiles_n(w.p) == 8) return run_kernel(two, integral_constant<int, 8>());
  }
  tiles_m(w.p) == 2 ? run_kernel(two, four) : run_kernel(four, four);
}

}  // namespace

template <typename T>
bool plan(WeightGradient<T>& w) {
  // fewer positions where the tiles would leave no room for a second block
  return (plan_tiles(w.p, 128) &&
          gradient_memory_of(w.p).total() <= device_limits().shared_bytes / 2) ||
         plan_tiles(w.p, 64);
}

template <typename T>
int64_t partial_size(const WeightGradient<T>& w) {
  return int64_t(w.p.tiling.blocks) * w.p.taps.count * channel_blocks(w.p) * tiles_m(w.p) *
         tiles_n(w.p) * 4 * kWarp;
}

template <typename T, typename W>
void weight_gradient(const WeightGradient<T>& w, int64_t k_stride, int64_t n_stride, float* partial,
                     W* grad_weight, Stream stream) {
  if constexpr (sizeof(T) == 4) {
    if (w.p.strict) return run<T, W, true>(w, k_stride, n_stride, partial, grad_weight, stream);
  }
  run<T, W, false>(w, k_stride, n_stride, partial, grad_weight, stream);
}

#define COLORSEG_INSTANTIATE(T)           \
  template bool plan(WeightGradient<T>&); \
  template int64_t partial_size(const WeightGradient<T>&);
COLORSEG_INSTANTIATE(float)
COLORSEG_INSTANTIATE(__half)
COLORSEG_INSTANTIATE(__nv_bfloat16)

#define COLORSEG_INSTANTIATE_WEIGHT(T, W) \
  template void weight_gradient(const WeightGradient<T>&, int64_t, int64_t, float*, W*, Stream);
COLORSEG_INSTANTIATE_WEIGHT(float, float)
COLORSEG_INSTANTIATE_WEIGHT(__half, __half)
COLORSEG_INSTANTIATE_WEIGHT(__half, float)
COLORSEG_INSTANTIATE_WEIGHT(__nv_bfloat16, __nv_bfloat16)
COLORSEG_INSTANTIATE_WEIGHT(__nv_bfloat16, float)

}  // namespace colorseg::cuda

// Soft IoU: one pass over the logits for the sums, one for the gradient, which of two classes reads
// one kept number per pixel in their place.
#include "pixels.cuh"

namespace colorseg::cuda {
namespace {

constexpr int kPerThread = kChunkPixels / kThreads;

// Softmax of one pixel, from two passes over its logits.
template <typename T>
struct Softmax {
  using A = Arithmetic<T>;
  Pixel<const T> z;
  A most, inverse;
  __device__ Softmax(const Pixel<const T>& z, int channels) : z(z), most(widen(z[0])) {
    for (int c = 1; c < channels; ++c) most = fmax(most, widen(z[c]));
    A sum = A(0);
    for (int c = 0; c < channels; ++c) sum += exp(widen(z[c]) - most);
    inverse = A(1) / sum;
  }
  __device__ A operator[](int c) const { return exp(widen(z[c]) - most) * inverse; }
};

// parts: per class the intersection, the probability and the target of one chunk.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) add_pixels(SoftIouLoss<T, A> p) {
  const PixelMap& map = p.map;
  const int channels = static_cast<int>(map.channels);
  const Chunk chunk = chunk_of(map, blockIdx.x);
  int label[kPerThread];
  A most[kPerThread], inverse[kPerThread];
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int i = chunk.first + threadIdx.x + j * kThreads;
    label[j] = kIgnored, most[j] = inverse[j] = A(0);
    if (i >= chunk.last) continue;
    const int64_t at = chunk.image * map.pixels + i;
    const Softmax<T> x(pixel_of(map, p.logits, chunk.image, i), channels);
    label[j] = label_at(p.labels, map, chunk.image, i);
    most[j] = x.most, inverse[j] = x.inverse;
    if (p.bytes) p.bytes[at] = static_cast<uint8_t>(label[j]);
    if (p.slopes) {
      const A slope = x[0] * x[1];
      p.slopes[at] = narrow<T>(label[j] < 0 ? A(0) : label[j] == 1 ? slope : -slope);
    }
  }
  double* shared = shared_memory<double>();
  for (int k = 0; k < p.classes.count; ++k) {
    const int id = p.classes.ids[k];
    A inside = A(0), probability = A(0);
    int target = 0;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      if (label[j] < 0) continue;
      const int i = chunk.first + threadIdx.x + j * kThreads;
      const A z = widen(pixel_of(map, p.logits, chunk.image, i)[id]);
      const A x = exp(z - most[j]) * inverse[j];
      probability += x;
      if (label[j] == id) inside += x, ++target;
    }
    double* to = p.parts + (int64_t(blockIdx.x) * p.classes.count + k) * 3;
    const double sums[3] = {block_sum(double(inside), shared),
                            block_sum(double(probability), shared),
                            block_sum(double(target), shared)};
    for (int s = 0; s < 3 && threadIdx.x == 0; ++s) to[s] = sums[s];
  }
}

// A block per row (image, or the batch) and class adds up chunks: intersection and union.
template <typename T, typename A>
__global__ void add_chunks(SoftIouLoss<T, A> p) {
  const int classes = p.classes.count, k = blockIdx.x % classes;
  const int64_t row = blockIdx.x / classes,
                per_image = (p.map.pixels + kChunkPixels - 1) / kChunkPixels;
  const int64_t chunks = p.per_image ? per_image : per_image * p.map.n;
  double sums[3] = {0, 0, 0};
  for (int64_t i = threadIdx.x; i < chunks; i += blockDim.x) {
    const double* part = p.parts + ((row * chunks + i) * classes + k) * 3;
    for (int s = 0; s < 3; ++s) sums[s] += part[s];
  }
  double* shared = shared_memory<double>();
  for (int s = 0; s < 3; ++s) sums[s] = block_sum(sums[s], shared);
  if (threadIdx.x != 0) return;
  p.sums[2 * blockIdx.x] = sums[0];
  p.sums[2 * blockIdx.x + 1] = sums[1] + sums[2] - sums[0];
}

// The weight of class k, scaled to mean 1.
template <typename T, typename A>
__device__ double weight_of(const SoftIouLoss<T, A>& p, int k) {
  if (p.weight == nullptr) return 1;
  double total = 0;
  for (int c = 0; c < p.classes.count; ++c) total += double(p.weight[c]);
  return double(p.weight[k]) * p.classes.count / total;
}

// 1 - (I + s) / (U + s'), see SoftIou in csrc/soft_iou_loss.h.
template <typename T, typename A>
__global__ void losses_of(SoftIouLoss<T, A> p, int64_t count, bool reduced, A* losses) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    const double intersection = p.sums[2 * i] + p.smooth_numerator;
    const double all = p.sums[2 * i + 1] + p.smooth_denominator;
    const double loss =
        weight_of(p, static_cast<int>(i % p.classes.count)) * (1 - intersection / all);
    sum += loss;
    if (!reduced) losses[i] = A(loss);
  }
  sum = block_sum(sum, shared_memory<double>());
  if (reduced && threadIdx.x == 0) *losses = A(p.mean ? sum / double(count) : sum);
}

// Per row and channel dL/d(probability) where it is and where it is not the target, (rows,
// channels, 2); a block per row.
template <typename T, typename A>
__global__ void slopes_of(SoftIouLoss<T, A> p, const A* upstream, bool each, A* slopes) {
  const int channels = static_cast<int>(p.map.channels), classes = p.classes.count;
  const double share = p.mean ? 1.0 / (double(gridDim.x) * double(classes)) : 1.0;
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    A inside = A(0), outside = A(0);
    for (int k = 0; k < classes; ++k) {  // a class may be listed twice
      if (p.classes.ids[k] != c) continue;
      const int64_t i = int64_t(blockIdx.x) * classes + k;
      const double g = double(upstream[each ? i : 0]) * share * weight_of(p, k);
      const double all = p.sums[2 * i + 1] + p.smooth_denominator;
      inside += A(g * (-1 / all));
      outside += A(g * ((p.sums[2 * i] + p.smooth_numerator) / (all * all)));
    }
    A* to = slopes + (int64_t(blockIdx.x) * channels + c) * 2;
    to[0] = inside, to[1] = outside;
  }
}

// dL/dz_1 = x_0 x_1 (d_1 - d_0) = -dL/dz_0, where the last factor has a value per label.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    backward_of_two(SoftIouLoss<T, A> p, const A* slopes, T* gradient) {
  const PixelMap& map = p.map;
  const Chunk chunk = chunk_of(map, blockIdx.x);
  const A* d = slopes + (p.per_image ? 4 * chunk.image : 0);
  const A at0 = d[0] - d[3], at1 = d[2] - d[1];
  for (int i = chunk.first + threadIdx.x; i < chunk.last; i += blockDim.x) {
    const A slope = widen(p.slopes[chunk.image * map.pixels + i]);
    const A value = slope == A(0) ? A(0) : slope * (slope > A(0) ? at1 : at0);
    const Pixel<T> to = pixel_of(map, gradient, chunk.image, i);
    to[1] = narrow<T>(value);
    to[0] = narrow<T>(-value);
  }
}

// With x = softmax(z) and d_k = dL/dx_k: dL/dz_c = x_c (d_c - sum_k x_k d_k).
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    backward(SoftIouLoss<T, A> p, const A* slopes, T* gradient) {
  const PixelMap& map = p.map;
  const int channels = static_cast<int>(map.channels);
  const Chunk chunk = chunk_of(map, blockIdx.x);
  const A* d = slopes + (p.per_image ? 2 * channels * chunk.image : 0);
  for (int i = chunk.first + threadIdx.x; i < chunk.last; i += blockDim.x) {
    const int label = label_at(p.labels, map, chunk.image, i);
    const Softmax<T> x(pixel_of(map, p.logits, chunk.image, i), channels);
    A mean = A(0);
    for (int c = 0; c < channels; ++c) mean += x[c] * d[2 * c + (c != label)];
    const Pixel<T> to = pixel_of(map, gradient, chunk.image, i);
    for (int c = 0; c < channels; ++c) {
      const A value = x[c] * (d[2 * c + (c != label)] - mean);
      to[c] = narrow<T>(label < 0 ? A(0) : value);
    }
  }
}

}  // namespace

template <typename T, typename A>
void soft_iou(const SoftIouLoss<T, A>& p, bool reduced, A* losses, Stream stream) {
  const size_t shared = kMostWarps * sizeof(double);
  const int64_t count = (p.per_image ? p.map.n : 1) * int64_t(p.classes.count);
  launch(add_pixels<T, A>, chunk_grid(p.map), dim3(kThreads), shared, stream, p);
  launch(add_chunks<T, A>, dim3(static_cast<unsigned>(count)), dim3(256), shared, stream, p);
  launch(losses_of<T, A>, dim3(1), dim3(256), shared, stream, p, count, reduced, losses);
}

template <typename T, typename A>
void soft_iou_backward(const SoftIouLoss<T, A>& p, const A* upstream, bool each, A* slopes,
                       T* gradient, Stream stream) {
  const int64_t rows = p.per_image ? p.map.n : 1;
  launch(slopes_of<T, A>, dim3(static_cast<unsigned>(rows)), dim3(kThreads), 0, stream, p, upstream,
         each, slopes);
  launch(p.slopes ? backward_of_two<T, A> : backward<T, A>, chunk_grid(p.map), dim3(kThreads), 0,
         stream, p, static_cast<const A*>(slopes), gradient);
}

#define COLORSEG_INSTANTIATE(T)                                                               \
  template void soft_iou(const SoftIouLoss<T, Arithmetic<T>>&, bool, Arithmetic<T>*, Stream); \
  template void soft_iou_backward(const SoftIouLoss<T, Arithmetic<T>>&, const Arithmetic<T>*, \
                                  bool, Arithmetic<T>*, T*, Stream);
COLORSEG_INSTANTIATE(float)
COLORSEG_INSTANTIATE(double)
COLORSEG_INSTANTIATE(__half)
COLORSEG_INSTANTIATE(__nv_bfloat16)

}  // namespace colorseg::cuda

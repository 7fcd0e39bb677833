// Soft IoU: one pass over the logits for the sums, one for the gradient, which of two classes reads
// one kept number per pixel in their place.
#include "pixels.cuh"

namespace colorseg::cuda {
namespace {

constexpr int kBatch = 4;  // pixels of a thread at a time
constexpr int kWarps = kPixelThreads / kWarp;

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

// The probabilities of two classes.
template <typename A>
struct TwoShares {
  A x[2];
  __device__ TwoShares(A z0, A z1) {
    const A most = fmax(z0, z1), infinite = most - most;  // NaN of an infinity, as in softmax
    const A e = exp(infinite - fabs(z1 - z0)), larger = A(1) / (A(1) + e), smaller = e * larger;
    x[0] = z1 < z0 ? larger : smaller, x[1] = z1 < z0 ? smaller : larger;
  }
};

// parts: per class the intersection, the probability and the target of one chunk.
template <typename T, typename A>
__global__ void __launch_bounds__(kPixelThreads) add_pixels_of_two(SoftIouLoss<T, A> p) {
  await_previous();
  const PixelMap& map = p.map;
  const Chunk chunk = chunk_of(map, blockIdx.x);
  double sums[6] = {0, 0, 0, 0, 0, 0};  // three of each class
  int counts[2] = {0, 0};
  for (int first = chunk.first + threadIdx.x; first < chunk.last; first += kBatch * kPixelThreads) {
    A z[kBatch][2], part[4] = {0, 0, 0, 0};  // conversions to double take their time
    int64_t raw[kBatch];
    int pixels[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {  // behind the end, the last one is read and does not count
      const int i = first + b * kPixelThreads;
      pixels[b] = i < chunk.last ? i : chunk.last - 1;
      const Pixel<const T> pixel = pixel_of(map, p.logits, chunk.image, pixels[b]);
      z[b][0] = widen(pixel[0]), z[b][1] = widen(pixel[1]);
    }
    raw_labels(p.labels, map, chunk.image, pixels, raw);
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (first + b * kPixelThreads >= chunk.last) break;
      const TwoShares<A> shares(z[b][0], z[b][1]);
      const int label = checked_label(p.labels, map, raw[b]);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        part[2 * c] += label == c ? shares.x[c] : A(0);
        part[2 * c + 1] += label >= 0 ? shares.x[c] : A(0);
        counts[c] += label == c;
      }
      if (p.slopes == nullptr) continue;
      const A slope = label < 0 ? A(0) : shares.x[0] * shares.x[1];
      p.slopes[chunk.image * map.pixels + pixels[b]] = narrow<T>(label == 1 ? slope : -slope);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i / 2 * 3 + i % 2] += part[i];
  }
  sums[2] = counts[0], sums[5] = counts[1];
  block_sums(sums, shared_memory<double>());
  for (int k = threadIdx.x; k < p.classes.count; k += kPixelThreads) {
    double* to = p.parts + (int64_t(blockIdx.x) * p.classes.count + k) * 3;
    const bool second = p.classes.ids[k] == 1;
    for (int s = 0; s < 3; ++s) to[s] = second ? sums[3 + s] : sums[s];
  }
}

// The same of any classes; shared: [kWarps][classes][3].
template <typename T, typename A>
__global__ void __launch_bounds__(kPixelThreads) add_pixels(SoftIouLoss<T, A> p) {
  await_previous();
  const PixelMap& map = p.map;
  const int channels = static_cast<int>(map.channels), classes = p.classes.count;
  const Chunk chunk = chunk_of(map, blockIdx.x);
  double* shared = shared_memory<double>();
  double* own = shared + threadIdx.x / kWarp * classes * 3;
  for (int first = chunk.first; first < chunk.last; first += kBatch * kPixelThreads) {
    int label[kBatch];
    A most[kBatch], inverse[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int i = first + threadIdx.x + b * kPixelThreads;
      label[b] = kIgnored, most[b] = inverse[b] = A(0);
      if (i >= chunk.last) continue;
      const Softmax<T> x(pixel_of(map, p.logits, chunk.image, i), channels);
      label[b] = label_at(p.labels, map, chunk.image, i);
      most[b] = x.most, inverse[b] = x.inverse;
      if (p.bytes) p.bytes[chunk.image * map.pixels + i] = static_cast<uint8_t>(label[b]);
    }
    for (int k = 0; k < classes; ++k) {
      const int id = p.classes.ids[k];
      A inside = A(0), probability = A(0);
      int target = 0;
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (label[b] < 0) continue;
        const int i = first + threadIdx.x + b * kPixelThreads;
        const A z = widen(pixel_of(map, p.logits, chunk.image, i)[id]);
        const A x = exp(z - most[b]) * inverse[b];
        probability += x;
        if (label[b] == id) inside += x, ++target;
      }
      const double sums[3] = {double(warp_sum(inside)), double(warp_sum(probability)),
                              double(warp_sum(target))};
      for (int s = 0; s < 3 && threadIdx.x % kWarp == 0; ++s)
        own[3 * k + s] = first == chunk.first ? sums[s] : own[3 * k + s] + sums[s];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < 3 * classes; i += kPixelThreads) {
    double sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp * 3 * classes + i];
    p.parts[int64_t(blockIdx.x) * classes * 3 + i] = sum;
  }
}

template <typename T, typename A>
__host__ __device__ int64_t row_chunks(const SoftIouLoss<T, A>& p) {
  return (p.per_image ? 1 : p.map.n) * image_chunks(p.map);
}

// A block per row (image, or the batch) and class adds up chunks: intersection and union.
template <typename T, typename A>
__global__ void add_chunks(SoftIouLoss<T, A> p) {
  await_previous();
  const int classes = p.classes.count, k = blockIdx.x % classes;
  const int64_t row = blockIdx.x / classes, chunks = row_chunks(p);
  double sums[3] = {0, 0, 0};
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < chunks; i += blockDim.x) {
    const double* part = p.parts + ((row * chunks + i) * classes + k) * 3;
#pragma unroll
    for (int s = 0; s < 3; ++s) sums[s] += part[s];
  }
  block_sums(sums, shared_memory<double>());
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
  await_previous();
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
  await_previous();
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
__global__ void __launch_bounds__(kPixelThreads)
    backward_of_two(SoftIouLoss<T, A> p, const A* slopes, T* gradient) {
  await_previous();
  const PixelMap& map = p.map;
  const Chunk chunk = chunk_of(map, blockIdx.x);
  const A* d = slopes + (p.per_image ? 4 * chunk.image : 0);
  const A at0 = d[0] - d[3], at1 = d[2] - d[1];
  A slope[kBatch];
  for_pixels<kBatch>(
      chunk, [&](int b, int i) { slope[b] = widen(p.slopes[chunk.image * map.pixels + i]); },
      [&](int b, int i) {
        const A value = slope[b] == A(0) ? A(0) : slope[b] * (slope[b] > A(0) ? at1 : at0);
        const Pixel<T> to = pixel_of(map, gradient, chunk.image, i);
        to[1] = narrow<T>(value);
        to[0] = narrow<T>(-value);
      });
}

// With x = softmax(z) and d_k = dL/dx_k: dL/dz_c = x_c (d_c - sum_k x_k d_k).
template <typename T, typename A>
__global__ void __launch_bounds__(kPixelThreads)
    backward(SoftIouLoss<T, A> p, const A* slopes, T* gradient) {
  await_previous();
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
  const size_t shared = 3 * kMostWarps * sizeof(double);
  const int64_t count = (p.per_image ? p.map.n : 1) * int64_t(p.classes.count);
  if (p.map.channels == 2) {
    launch(add_pixels_of_two<T, A>, chunk_grid(p.map), dim3(kPixelThreads), 2 * shared, stream, p);
  } else {
    launch(add_pixels<T, A>, chunk_grid(p.map), dim3(kPixelThreads),
           sizeof(double) * kWarps * 3 * p.classes.count, stream, p);
  }
  launch(add_chunks<T, A>, dim3(static_cast<unsigned>(count)),
         dim3(row_chunks(p) > 8 * kWarp ? 1024 : kWarp), shared, stream, p);
  launch(losses_of<T, A>, dim3(1), dim3(256), shared, stream, p, count, reduced, losses);
}

template <typename T, typename A>
void soft_iou_backward(const SoftIouLoss<T, A>& p, const A* upstream, bool each, A* slopes,
                       T* gradient, Stream stream) {
  const int64_t rows = p.per_image ? p.map.n : 1;
  launch(slopes_of<T, A>, dim3(static_cast<unsigned>(rows)), dim3(kPixelThreads), 0, stream, p,
         upstream, each, slopes);
  launch(p.slopes ? backward_of_two<T, A> : backward<T, A>, chunk_grid(p.map), dim3(kPixelThreads),
         0, stream, p, static_cast<const A*>(slopes), gradient);
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

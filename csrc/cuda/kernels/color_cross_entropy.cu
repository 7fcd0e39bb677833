// Cross-entropy: each logit is read once and, with the gradient in the same pass, written once, so
// that it is bound by memory.  A pixel's channels stay in registers where their number is known.
#include <type_traits>

#include "targets.cuh"
#include "vectors.cuh"

namespace colorseg::cuda {
namespace {

// Unrolled loops for the colors of the library's palettes; in float64 the registers do not suffice.
constexpr int kColors = 24;
template <typename A>
constexpr int kUnrolled = sizeof(A) == sizeof(float) ? kColors : 0;
template <typename A>
bool unrolls(const PixelMap& map) {
  return map.channels == kUnrolled<A>;
}

// Whether a pixel's channels are whole vectors in memory, as in channels_last.
template <typename T, int kChannels>
__device__ bool has_vectors(const Pixel<T>& pixel) {
  using V = Vector<std::remove_const_t<T>>;
  return kChannels > 0 && kChannels % V::kCount == 0 && pixel.stride == 1 &&
         reinterpret_cast<uintptr_t>(pixel.data) % sizeof(V) == 0;
}

// The logits of one pixel, from registers or (kChannels = 0) read again at each use.
template <typename T, int kChannels>
struct PixelLogits {
  using A = Arithmetic<T>;
  A values[kChannels];
  A inverse;  // of the sum of exponentials
  __device__ PixelLogits(const Pixel<const T>& from, int) {
    if (has_vectors<const T, kChannels>(from)) {
      constexpr int kVector = Vector<T>::kCount;
#pragma unroll
      for (int v = 0; v < kChannels / kVector; ++v) {
        const Vector<T> vector = reinterpret_cast<const Vector<T>*>(from.data)[v];
#pragma unroll
        for (int i = 0; i < kVector; ++i) values[v * kVector + i] = widen(vector.values[i]);
      }
      return;
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) values[c] = widen(from[c]);
  }
  __device__ A operator[](int c) const { return values[c]; }
  static __device__ constexpr int channels() { return kChannels; }
  // Returns the sum of exp(z - most); from then on there are probabilities in place of logits.
  __device__ A exponentiate(A most) {
    A sum = A(0);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) values[c] = exp(values[c] - most), sum += values[c];
    inverse = A(1) / sum;
    return sum;
  }
  __device__ A probability(int c, A) const { return values[c] * inverse; }
};
template <typename T>
struct PixelLogits<T, 0> {
  using A = Arithmetic<T>;
  Pixel<const T> from;
  int count;
  __device__ PixelLogits(const Pixel<const T>& from, int channels) : from(from), count(channels) {}
  __device__ A operator[](int c) const { return widen(from[c]); }
  __device__ int channels() const { return count; }
  __device__ A exponentiate(A most) const {
    A sum = A(0);
    for (int c = 0; c < count; ++c) sum += exp(widen(from[c]) - most);
    return sum;
  }
  __device__ A probability(int c, A lse) const { return exp(widen(from[c]) - lse); }
};

// The share of each class in the label smoothing, s / C, and W: the sum of the class weights, or
// the number of classes.
template <typename A>
struct Smoothing {
  A share = A(0), total = A(0);
  template <typename T>
  __device__ explicit Smoothing(const CrossEntropy<T, A>& p) {
    if (p.smoothing == A(0)) return;
    share = p.smoothing / A(p.map.channels), total = A(p.weight ? 0 : p.map.channels);
    for (int c = 0; p.weight && c < p.map.channels; ++c) total += p.weight[c];
  }
};

// What is stored of each channel, by whole vectors where they fit.
template <typename T, int kChannels, typename Value>
__device__ void write_pixel(const Pixel<T>& to, int channels, const Value& value) {
  if (has_vectors<T, kChannels>(to)) {
    constexpr int kVector = Vector<T>::kCount;
#pragma unroll
    for (int v = 0; v < kChannels / kVector; ++v) {
      Vector<T> vector;
#pragma unroll
      for (int i = 0; i < kVector; ++i) vector.values[i] = narrow<T>(value(v * kVector + i));
      reinterpret_cast<Vector<T>*>(to.data)[v] = vector;
    }
    return;
  }
  if constexpr (kChannels > 0) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) to[c] = narrow<T>(value(c));
  } else {
    for (int c = 0; c < channels; ++c) to[c] = narrow<T>(value(c));
  }
}

// d/dz_c = g ((1 - s) (sum_i w_i q_i p_c - w_c q_c) + s / C (W p_c - w_c)) with the target q, and 0
// where the label is ignored
template <int kChannels, typename T, typename A, typename Target, typename Probability>
__device__ void write_gradient(const CrossEntropy<T, A>& p, const Probability& probability,
                               int label, const Target& target, const Smoothing<A>& smoothing, A g,
                               const Pixel<T>& to) {
  const int channels = static_cast<int>(p.map.channels);
  if (label < 0) return write_pixel<T, kChannels>(to, channels, [](int) { return A(0); });
  const A even = g * smoothing.share, toward = g * (A(1) - p.smoothing);
  const A scale = toward * target.total + even * smoothing.total;
  const auto slope = [&](int c) { return scale * probability(c) - toward * target.weighted(c); };
  if (p.smoothing == A(0)) return write_pixel<T, kChannels>(to, channels, slope);
  write_pixel<T, kChannels>(
      to, channels, [&](int c) { return slope(c) - even * (p.weight ? p.weight[c] : A(1)); });
}

// Of the largest logit, or the first NaN: as torch.argmax.
template <typename A>
struct Largest {
  A value;
  int index;
};
template <typename Logits>
__device__ Largest<typename Logits::A> largest(const Logits& z) {
  Largest<typename Logits::A> most = {z[0], 0};
#pragma unroll
  for (int c = 1; c < z.channels(); ++c) {
    if (z[c] > most.value) most = {z[c], c};
  }
  return most;
}
template <typename T>
__device__ int first_nan(const Pixel<const T>& z, int channels, int otherwise) {
  for (int c = 0; c < channels; ++c) {
    if (widen(z[c]) != widen(z[c])) return c;
  }
  return otherwise;
}

// Blocks of a multiprocessor that registers are to suffice for.
template <int kChannels>
constexpr int kBlocksEach = kChannels == 0 ? 6 : 5;

template <typename T, typename A, int kChannels, typename Target>
__global__ void __launch_bounds__(kPixelThreads, kBlocksEach<kChannels>)
    forward(CrossEntropy<T, A> p) {
  await_previous();
  const PixelMap& map = p.map;
  const int channels = static_cast<int>(map.channels);
  const Chunk chunk = chunk_of(map, blockIdx.x);
  const Smoothing<A> smoothing(p);
  // a mean's divisor before it is known: right unless there are weights or ignored pixels
  const A common = p.mean ? A(1.0 / (double(map.n) * double(map.pixels))) : A(1);
  double sums[4] = {0, 0, 0, 0};
  for (int i = chunk.first + threadIdx.x; i < chunk.last; i += blockDim.x) {
    const int64_t at = chunk.image * map.pixels + i;
    const Pixel<const T> pixel = pixel_of(map, p.logits, chunk.image, i);
    PixelLogits<T, kChannels> z(pixel, channels);
    const int label = label_at(p.labels, map, chunk.image, i);
    const Target target(p, chunk.image, i, label);
    const Largest<A> most = largest(z);
    const A lse = most.value + log(z.exponentiate(most.value));
    const int argmax = lse == lse ? most.index : first_nan(pixel, channels, most.index);
    A loss = target.loss(lse, target.toward(pixel, channels));
    if (p.smoothing != A(0)) {
      A weighted = A(0);
      for (int c = 0; c < channels; ++c)
        weighted += (p.weight ? p.weight[c] : A(1)) * widen(pixel[c]);
      loss = (A(1) - p.smoothing) * loss + smoothing.share * (smoothing.total * lse - weighted);
    }
    if (label >= 0) sums[0] += loss, sums[1] += target.w, sums[2] += 1, sums[3] += argmax == label;
    p.log_sum_exp[at] = lse;
    if (p.loss) p.loss[at] = label < 0 ? A(0) : loss;
    if (p.argmax) p.argmax[at] = argmax;
    if (p.gradient)
      write_gradient<kChannels>(
          p, [&](int c) { return z.probability(c, lse); }, label, target, smoothing, common,
          pixel_of(map, p.gradient, chunk.image, i));
  }
  block_sums(sums, shared_memory<double>());
  if (threadIdx.x == 0) p.sums[blockIdx.x] = {sums[0], sums[1], sums[2], sums[3]};
}

// One block adds up the chunks.
template <typename A>
__global__ void finish(const CrossEntropySums* parts, int64_t chunks, double pixels, bool mean,
                       CrossEntropyResults<A> results) {
  await_previous();
  double added[4] = {0, 0, 0, 0};
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < chunks; i += blockDim.x) {
    const CrossEntropySums part = parts[i];
    added[0] += part.loss, added[1] += part.weight, added[2] += part.valid;
    added[3] += part.correct;
  }
  block_sums(added, shared_memory<double>());
  const CrossEntropySums sums = {added[0], added[1], added[2], added[3]};
  if (threadIdx.x != 0) return;
  const bool none = sums.valid == 0;  // all ignored: 0, where torch gives NaN
  *results.loss = A(mean ? (none ? 0 : sums.loss / sums.weight) : sums.loss);
  *results.normalizer = sums.weight;
  *results.correct = static_cast<int64_t>(sums.correct);
  *results.valid = static_cast<int64_t>(sums.valid);
  *results.correction = A(mean && !none ? pixels / sums.weight : 1);
}

template <typename T, typename A, int kChannels, typename Target>
__global__ void __launch_bounds__(kPixelThreads)
    backward(CrossEntropy<T, A> p, const A* upstream, bool each, const double* normalizer) {
  await_previous();
  const PixelMap& map = p.map;
  const Chunk chunk = chunk_of(map, blockIdx.x);
  const Smoothing<A> smoothing(p);
  const A common = each ? A(0) : A(double(*upstream) / (normalizer ? *normalizer : 1.0));
  for (int i = chunk.first + threadIdx.x; i < chunk.last; i += blockDim.x) {
    const int64_t at = chunk.image * map.pixels + i;
    const PixelLogits<T, kChannels> z(pixel_of(map, p.logits, chunk.image, i),
                                      static_cast<int>(map.channels));
    const int label = label_at(p.labels, map, chunk.image, i);
    const Target target(p, chunk.image, i, label);
    const A lse = p.log_sum_exp[at];
    write_gradient<kChannels>(
        p, [&](int c) { return exp(z[c] - lse); }, label, target, smoothing,
        each ? upstream[at] : common, pixel_of(map, p.gradient, chunk.image, i));
  }
}

template <typename T, typename A>
__global__ void multiply(int64_t count, const A* factor_, T* values) {
  await_previous();
  const A factor = *factor_;
  if (factor == A(1)) return;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
    values[i] = narrow<T>(widen(values[i]) * factor);
}

}  // namespace

template <typename T, typename A>
void scale(int64_t count, const A* factor, T* values, Stream stream) {
  launch(multiply<T, A>, flat_grid(count), dim3(256), 0, stream, count, factor, values);
}

template <typename T, typename A>
void cross_entropy(const CrossEntropy<T, A>& p, const CrossEntropyResults<A>& results,
                   Stream stream) {
  const size_t shared = 4 * kMostWarps * sizeof(double);
  const auto kernel = p.soft.neighbors    ? forward<T, A, 0, SoftTarget<A>>
                      : unrolls<A>(p.map) ? forward<T, A, kUnrolled<A>, HardTarget<A>>
                                          : forward<T, A, 0, HardTarget<A>>;
  launch(kernel, chunk_grid(p.map), dim3(kPixelThreads), shared, stream, p);
  launch(finish<A>, dim3(1), dim3(1024), shared, stream, p.sums, pixel_chunks(p.map),
         double(p.map.n) * double(p.map.pixels), p.mean, results);
  if (p.gradient && p.mean)
    scale(p.map.n * p.map.channels * p.map.pixels, results.correction, p.gradient, stream);
}

template <typename T, typename A>
void cross_entropy_backward(const CrossEntropy<T, A>& p, const A* upstream, bool each,
                            const double* normalizer, Stream stream) {
  const auto kernel = p.soft.neighbors    ? backward<T, A, 0, SoftTarget<A>>
                      : unrolls<A>(p.map) ? backward<T, A, kUnrolled<A>, HardTarget<A>>
                                          : backward<T, A, 0, HardTarget<A>>;
  launch(kernel, chunk_grid(p.map), dim3(kPixelThreads), 0, stream, p, upstream, each, normalizer);
}

#define COLORSEG_INSTANTIATE(T)                                                            \
  template void cross_entropy(const CrossEntropy<T, Arithmetic<T>>&,                       \
                              const CrossEntropyResults<Arithmetic<T>>&, Stream);          \
  template void cross_entropy_backward(const CrossEntropy<T, Arithmetic<T>>&,              \
                                       const Arithmetic<T>*, bool, const double*, Stream); \
  template void scale(int64_t, const Arithmetic<T>*, T*, Stream);
COLORSEG_INSTANTIATE(float)
COLORSEG_INSTANTIATE(double)
COLORSEG_INSTANTIATE(__half)
COLORSEG_INSTANTIATE(__nv_bfloat16)

}  // namespace colorseg::cuda

// Cross-entropy: each logit is read once and, with the gradient in the same pass, written once, so
// that it is bound by memory.  A pixel's channels stay in registers where their number is known.
#include <type_traits>

#include "pixels.cuh"
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
  static constexpr int kCount = kChannels;
  using A = Arithmetic<T>;
  A values[kChannels];
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
};
template <typename T>
struct PixelLogits<T, 0> {
  static constexpr int kCount = 0;
  using A = Arithmetic<T>;
  Pixel<const T> from;
  int count;
  __device__ PixelLogits(const Pixel<const T>& from, int channels) : from(from), count(channels) {}
  __device__ A operator[](int c) const { return widen(from[c]); }
  __device__ int channels() const { return count; }
};

// Sum of the class weights, or the number of classes: W of the label smoothing.
template <typename T, typename A>
__device__ A total_weight(const CrossEntropy<T, A>& p) {
  if (p.weight == nullptr) return A(p.map.channels);
  A total = A(0);
  for (int c = 0; c < p.map.channels; ++c) total += p.weight[c];
  return total;
}

// What a pixel should be: a class and its weight.
template <typename A>
struct HardTarget {
  int label;
  A w, total;  // its weight, also the sum of what it takes off the classes
  template <typename T>
  __device__ HardTarget(const CrossEntropy<T, A>& p, int64_t, int, int label)
      : label(label), w(p.weight && label >= 0 ? p.weight[label] : A(1)), total(w) {}
  // w_c q_c; what a logit adds to `toward`, other classes' infinities nothing; (1 - s) of the loss
  __device__ A weighted(int c) const { return c == label ? w : A(0); }
  __device__ A part(int c, A logit) const { return c == label ? logit : A(0); }
  __device__ A loss(A lse, A toward) const { return w * (lse - toward); }
};

// Soft targets: the palette colors up to the last neighbor in the order of (distance, index).
// Shares are computed anew at each use: arrays of neighbors would not stay in registers.
template <typename A>
struct SoftTarget {
  const A *palette, *weight;
  Rgb<A> rgb;
  A nearest, farthest, falloff, inverse;
  int last;
  A w = A(1), total;
  template <typename T>
  __device__ SoftTarget(const CrossEntropy<T, A>& p, int64_t image, int pixel, int)
      : palette(p.labels.palette),
        weight(p.weight),
        rgb(rgb_at(p.labels, p.map, image, pixel)),
        nearest(A(0)),
        farthest(A(-1)),
        falloff(p.soft.falloff),
        inverse(A(1)),
        last(-1),
        total(A(0)) {
    A sum = A(0);
    for (int j = 0; j < p.soft.neighbors; ++j) {
      A best = A(INFINITY);
      int index = 0;
      for (int c = 0; c < p.map.channels; ++c) {
        const A distance = rgb.distance(palette, c);
        if (!within(distance, c) && distance < best) best = distance, index = c;
      }
      farthest = best, last = index;
      if (j == 0) nearest = best;
      const A share = exp((best - nearest) * falloff);
      sum += share, total += share * (weight ? weight[index] : A(1));
    }
    inverse = A(1) / sum, total *= inverse;
  }
  __device__ bool within(A distance, int c) const {
    return distance < farthest || (distance == farthest && c <= last);
  }
  __device__ A weighted(int c) const {
    const A distance = rgb.distance(palette, c);
    if (!within(distance, c)) return A(0);
    return exp((distance - nearest) * falloff) * inverse * (weight ? weight[c] : A(1));
  }
  __device__ A part(int c, A logit) const { return weighted(c) * logit; }
  __device__ A loss(A lse, A toward) const { return total * lse - toward; }
};

// d/dz_c = g ((1 - s) (sum_i w_i q_i p_c - w_c q_c) + s / C (W p_c - w_c)) with the target q, and 0
// where the label is ignored
template <typename T, typename A, typename Logits, typename Target>
__device__ void write_gradient(const CrossEntropy<T, A>& p, const Logits& z, A lse, int label,
                               const Target& target, A total, A g, const Pixel<T>& to) {
  const A spread = p.smoothing / A(p.map.channels);
  const A toward = g * (A(1) - p.smoothing), scale = toward * target.total + g * spread * total;
  const auto slope = [&](int c) {
    A value = scale * exp(z[c] - lse);
    value -= toward * target.weighted(c);
    if (p.smoothing != A(0)) value -= g * spread * (p.weight ? p.weight[c] : A(1));
    return narrow<T>(label < 0 ? A(0) : value);
  };
  if (has_vectors<T, Logits::kCount>(to)) {
    constexpr int kVector = Vector<T>::kCount;
#pragma unroll
    for (int v = 0; v < Logits::kCount / kVector; ++v) {
      Vector<T> vector;
#pragma unroll
      for (int i = 0; i < kVector; ++i) vector.values[i] = slope(v * kVector + i);
      reinterpret_cast<Vector<T>*>(to.data)[v] = vector;
    }
    return;
  }
#pragma unroll
  for (int c = 0; c < z.channels(); ++c) to[c] = slope(c);
}

template <typename T, typename A, int kChannels, typename Target>
__global__ void __launch_bounds__(kThreads) forward(CrossEntropy<T, A> p) {
  const PixelMap& map = p.map;
  const Chunk chunk = chunk_of(map, blockIdx.x);
  const A total = p.smoothing != A(0) ? total_weight(p) : A(0);
  // a mean's divisor before it is known: right unless there are weights or ignored pixels
  const A common = p.mean ? A(1.0 / (double(map.n) * double(map.pixels))) : A(1);
  CrossEntropySums sums = {0, 0, 0, 0};
  for (int i = chunk.first + threadIdx.x; i < chunk.last; i += blockDim.x) {
    const int64_t at = chunk.image * map.pixels + i;
    const PixelLogits<T, kChannels> z(pixel_of(map, p.logits, chunk.image, i),
                                      static_cast<int>(map.channels));
    const int label = label_at(p.labels, map, chunk.image, i);
    const Target target(p, chunk.image, i, label);
    A most = z[0], best = z[0], toward = A(0), weighted = A(0);
    int argmax = 0;
#pragma unroll
    for (int c = 0; c < z.channels(); ++c) {
      const A value = z[c];
      most = fmax(most, value);
      if (value > best || (value != value && best == best)) best = value, argmax = c;
      toward += target.part(c, value);
      if (p.smoothing != A(0)) weighted += (p.weight ? p.weight[c] : A(1)) * value;
    }
    A sum = A(0);
#pragma unroll
    for (int c = 0; c < z.channels(); ++c) sum += exp(z[c] - most);
    const A lse = most + log(sum);
    A loss = target.loss(lse, toward);
    if (p.smoothing != A(0)) {
      loss = (A(1) - p.smoothing) * loss + p.smoothing / A(map.channels) * (total * lse - weighted);
    }
    if (label >= 0)
      sums.loss += loss, sums.weight += target.w, sums.valid += 1, sums.correct += argmax == label;
    p.log_sum_exp[at] = lse;
    if (p.loss) p.loss[at] = label < 0 ? A(0) : loss;
    if (p.argmax) p.argmax[at] = argmax;
    if (p.gradient)
      write_gradient(p, z, lse, label, target, total, common,
                     pixel_of(map, p.gradient, chunk.image, i));
  }
  double* shared = shared_memory<double>();
  sums.loss = block_sum(sums.loss, shared), sums.weight = block_sum(sums.weight, shared);
  sums.valid = block_sum(sums.valid, shared), sums.correct = block_sum(sums.correct, shared);
  if (threadIdx.x == 0) p.sums[blockIdx.x] = sums;
}

// One block adds up the chunks.
template <typename A>
__global__ void finish(const CrossEntropySums* parts, int64_t chunks, double pixels, bool mean,
                       CrossEntropyResults<A> results) {
  CrossEntropySums sums = {0, 0, 0, 0};
  for (int64_t i = threadIdx.x; i < chunks; i += blockDim.x) {
    sums.loss += parts[i].loss, sums.weight += parts[i].weight;
    sums.valid += parts[i].valid, sums.correct += parts[i].correct;
  }
  double* shared = shared_memory<double>();
  sums.loss = block_sum(sums.loss, shared), sums.weight = block_sum(sums.weight, shared);
  sums.valid = block_sum(sums.valid, shared), sums.correct = block_sum(sums.correct, shared);
  if (threadIdx.x != 0) return;
  const bool none = sums.valid == 0;  // all ignored: 0, where torch gives NaN
  *results.loss = A(mean ? (none ? 0 : sums.loss / sums.weight) : sums.loss);
  *results.normalizer = sums.weight;
  *results.correct = static_cast<int64_t>(sums.correct);
  *results.valid = static_cast<int64_t>(sums.valid);
  *results.correction = A(mean && !none ? pixels / sums.weight : 1);
}

template <typename T, typename A, int kChannels, typename Target>
__global__ void __launch_bounds__(kThreads)
    backward(CrossEntropy<T, A> p, const A* upstream, bool each, const double* normalizer) {
  const PixelMap& map = p.map;
  const Chunk chunk = chunk_of(map, blockIdx.x);
  const A total = p.smoothing != A(0) ? total_weight(p) : A(0);
  const A common = each ? A(0) : A(double(*upstream) / (normalizer ? *normalizer : 1.0));
  for (int i = chunk.first + threadIdx.x; i < chunk.last; i += blockDim.x) {
    const int64_t at = chunk.image * map.pixels + i;
    const PixelLogits<T, kChannels> z(pixel_of(map, p.logits, chunk.image, i),
                                      static_cast<int>(map.channels));
    const int label = label_at(p.labels, map, chunk.image, i);
    const Target target(p, chunk.image, i, label);
    write_gradient(p, z, p.log_sum_exp[at], label, target, total, each ? upstream[at] : common,
                   pixel_of(map, p.gradient, chunk.image, i));
  }
}

template <typename T, typename A>
__global__ void multiply(int64_t count, const A* factor_, T* values) {
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
  const size_t shared = kMostWarps * sizeof(double);
  const auto kernel = p.soft.neighbors    ? forward<T, A, 0, SoftTarget<A>>
                      : unrolls<A>(p.map) ? forward<T, A, kUnrolled<A>, HardTarget<A>>
                                          : forward<T, A, 0, HardTarget<A>>;
  launch(kernel, chunk_grid(p.map), dim3(kThreads), shared, stream, p);
  launch(finish<A>, dim3(1), dim3(512), shared, stream, p.sums, p.map.chunks(),
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
  launch(kernel, chunk_grid(p.map), dim3(kThreads), 0, stream, p, upstream, each, normalizer);
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

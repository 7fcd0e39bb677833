// Batch norm and ReLU forward: one sweep over a map for its statistics, one to normalise it.
#include <type_traits>

#include "channels.cuh"

namespace colorseg::cuda {
namespace {

// Deviations from the thread's first value, which keeps its digits where |mean| >> deviation.
template <typename T>
__global__ void __launch_bounds__(kChannelThreads)
    moments(PixelMap map, const T* x, Moments* parts) {
  await_previous();
  using A = Arithmetic<T>;
  const int64_t channel = channel_of(map);
  double count = 0, sum = 0, squares = 0;
  A shift = A(0);
  for_each_value(map, channel, [&](int64_t i) {
    const A value = widen(x[i]);
    if (count == 0 && isfinite(value)) shift = value;
    const double deviation = double(value - shift);
    count += 1, sum += deviation, squares += deviation * deviation;
  });
  Moments own = {};
  if (count > 0) own = {{count, double(shift) + sum / count, squares - sum * sum / count}};
  store_part(map, channel, own, shared_memory<Moments>(), parts);
}

// The same of a map in channels_last: deviations from the block's first value, a few of which are
// added up in float.
template <typename T>
__global__ void __launch_bounds__(kSweepThreads)
    moments_vectors(PixelMap map, const T* x, Moments* parts) {
  await_previous();
  constexpr int kCount = Vector<T>::kCount;
  const Chunk chunk(map);
  const auto shift_of = [&](int64_t channel) {
    const float value = widen(x[chunk.first * map.channels + channel]);
    return isfinite(value) ? value : 0.0f;
  };
  const int64_t channel = sweep_channel<T>(map);
  Vector<T> values[kSweepBatch];
  float shift[kCount], few[kCount] = {}, few_squares[kCount] = {};
  PairSums<T> own;
#pragma unroll
  for (int i = 0; i < kCount; ++i) shift[i] = shift_of(channel + i);
  sweep_chunk<T>(
      map, [&](int b, int64_t at) { values[b] = *reinterpret_cast<const Vector<T>*>(x + at); },
      [&](int b) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float deviation = widen(values[b].values[i]) - shift[i];
          few[i] += deviation, few_squares[i] += deviation * deviation;
        }
      },
      [&] {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          own.first[i] += few[i], own.second[i] += few_squares[i];
          few[i] = few_squares[i] = 0;
        }
      });
  add_pairs<T>(map, own, shared_memory<double>(), [&](int64_t c, double sum, double squares) {
    const double count = double(chunk.last - chunk.first), mean = sum / count;
    parts[int64_t(blockIdx.x) * map.channels + c] = {
        {count, double(shift_of(c)) + mean, squares - sum * mean}};
  });
}

template <typename A>
__device__ ChannelAffine<A> affine_of(double mean, double var, const BatchNorm<A>& bn, int64_t c) {
  const double scale = (bn.weight ? double(bn.weight[c]) : 1.0) / sqrt(var + bn.eps);
  return {A(mean), A(scale), bn.bias ? bn.bias[c] : A(0)};
}

template <typename A, int kThreads>
__global__ void __launch_bounds__(kChannelThreads)
    finish(int64_t channels, const Moments* parts, int64_t count, BatchNorm<A> bn, double* mean,
           double* var, ChannelAffine<A>* affine) {
  await_previous();
  const int64_t c = merge_channel<kThreads>();
  if (c >= channels) return;
  const Moments all = merged_parts<kThreads>(channels, c, parts, count, shared_memory<double>());
  if (threadIdx.x % kThreads != 0) return;
  mean[c] = all.values[1], var[c] = all.values[2] / all.values[0];
  affine[c] = affine_of(mean[c], var[c], bn, c);
}

// The same of running statistics.
template <typename A>
__global__ void take_running(int64_t channels, BatchNorm<A> bn, double* mean, double* var,
                             ChannelAffine<A>* affine) {
  await_previous();
  const int64_t c = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  mean[c] = bn.running_mean ? double(bn.running_mean[c]) : 0.0;
  var[c] = bn.running_var ? double(bn.running_var[c]) : 1.0;
  affine[c] = affine_of(mean[c], var[c], bn, c);
}

template <typename A>
__global__ void affines(int64_t channels, const double* mean, const double* var, BatchNorm<A> bn,
                        ChannelAffine<A>* affine) {
  await_previous();
  const int64_t c = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c < channels) affine[c] = affine_of(mean[c], var[c], bn, c);
}

template <typename T, typename A>
__global__ void __launch_bounds__(kChannelThreads)
    apply(PixelMap map, const T* x, const ChannelAffine<A>* affine, bool relu, const T* residual,
          int64_t width, T* y) {
  await_previous();
  const int64_t channel = channel_of(map);
  if (channel >= map.channels) return;
  const ChannelAffine<A> a = affine[channel];
  for_each_value(map, channel, [&](int64_t i) {
    const A value = (widen(x[i]) - a.center) * a.scale + a.offset;
    for_each_copy(map, i, width, [&](int64_t at) {
      const A sum = residual ? value + widen(residual[at]) : value;
      y[at] = narrow<T>(relu && sum < A(0) ? A(0) : sum);
    });
  });
}

// The same of a map in channels_last, which is not replicated.
template <typename T>
__global__ void __launch_bounds__(kSweepThreads, 2)
    apply_vectors(PixelMap map, const T* x, const ChannelAffine<float>* affine, bool relu,
                  const T* residual, T* y) {
  await_previous();
  constexpr int kCount = Vector<T>::kCount;
  ChannelAffine<float> a[kCount];
  load_affines(affine + sweep_channel<T>(map), a);
  Vector<T> values[kSweepBatch], added[kSweepBatch];
  sweep<T, kSweepBatch>(
      map,
      [&](int b, int64_t at) {
        values[b] = *reinterpret_cast<const Vector<T>*>(x + at);
        if (residual) added[b] = *reinterpret_cast<const Vector<T>*>(residual + at);
      },
      [&](int b, int64_t at) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          float value = (widen(values[b].values[i]) - a[i].center) * a[i].scale + a[i].offset;
          if (residual) value += widen(added[b].values[i]);
          values[b].values[i] = narrow<T>(relu && value < 0 ? 0.0f : value);
        }
        *reinterpret_cast<Vector<T>*>(y + at) = values[b];
      });
}

constexpr int kAffineThreads = 128;
dim3 affine_grid(int64_t channels) {
  return dim3(static_cast<unsigned>((channels + kAffineThreads - 1) / kAffineThreads));
}

}  // namespace

template <typename T>
void add_moments(const PixelMap& map, const T* x, Moments* parts, Stream stream) {
  if constexpr (!std::is_same_v<T, double>) {
    if (has_vectors<T>(map, {x}))
      return launch(moments_vectors<T>, chunk_grid<T>(map), dim3(kSweepThreads), kPairSumsBytes<T>,
                    stream, map, x, parts);
  }
  launch(moments<T>, channel_grid(map), dim3(kChannelThreads), kChannelThreads * sizeof(Moments),
         stream, map, x, parts);
}

template <typename A>
void finish_moments(int64_t channels, const Moments* parts, int64_t count, const BatchNorm<A>& bn,
                    double* mean, double* var, ChannelAffine<A>* affine, Stream stream) {
  if (count == 0)
    return launch(take_running<A>, affine_grid(channels), dim3(kAffineThreads), 0, stream, channels,
                  bn, mean, var, affine);
  launch_merge(finish<A, kWarp>, finish<A, kChannelThreads>, channels, parts, count, stream, bn,
               mean, var, affine);
}

template <typename A>
void affine_of(int64_t channels, const double* mean, const double* var, const BatchNorm<A>& bn,
               ChannelAffine<A>* affine, Stream stream) {
  launch(affines<A>, affine_grid(channels), dim3(kAffineThreads), 0, stream, channels, mean, var,
         bn, affine);
}

template <typename T, typename A>
void normalize(const PixelMap& map, const T* x, const ChannelAffine<A>* affine, bool relu,
               const T* residual, int64_t width, T* y, Stream stream) {
  if constexpr (!std::is_same_v<T, double>) {
    if (width == 0 && has_vectors<T>(map, {x, affine, residual, y}))
      return launch(apply_vectors<T>, sweep_grid<T>(map), dim3(kSweepThreads), 0, stream, map, x,
                    affine, relu, residual, y);
  }
  launch(apply<T, A>, channel_grid(map), dim3(kChannelThreads), 0, stream, map, x, affine, relu,
         residual, width, y);
}

#define COLORSEG_INSTANTIATE(T)                                                                 \
  template void add_moments(const PixelMap&, const T*, Moments*, Stream);                       \
  template void normalize(const PixelMap&, const T*, const ChannelAffine<Arithmetic<T>>*, bool, \
                          const T*, int64_t, T*, Stream);
COLORSEG_INSTANTIATE(float)
COLORSEG_INSTANTIATE(double)
COLORSEG_INSTANTIATE(__half)
COLORSEG_INSTANTIATE(__nv_bfloat16)

#define COLORSEG_INSTANTIATE_ARITHMETIC(A)                                                     \
  template void finish_moments(int64_t, const Moments*, int64_t, const BatchNorm<A>&, double*, \
                               double*, ChannelAffine<A>*, Stream);                            \
  template void affine_of(int64_t, const double*, const double*, const BatchNorm<A>&,          \
                          ChannelAffine<A>*, Stream);
COLORSEG_INSTANTIATE_ARITHMETIC(float)
COLORSEG_INSTANTIATE_ARITHMETIC(double)

}  // namespace colorseg::cuda

// Batch norm and ReLU backward: one sweep over the gradient and the map for two sums per channel,
// one for the gradient of the map.
#include <type_traits>

#include "channels.cuh"

namespace colorseg::cuda {
namespace {

// The gradient behind the ReLU of value i of x: zero where its input was not positive (NaN lets it
// through, as in torch), and summed over the copies of an upsampled value.
template <typename T, typename A>
__device__ A passed(const NormalizeBackward<T, A>& p, int64_t i, const ChannelAffine<A>& a, A x) {
  if (p.relu && (x - a.center) * a.scale + a.offset <= A(0)) return A(0);
  A sum = A(0);
  for_each_copy(p.map, i, p.width, [&](int64_t at) { sum += widen(p.grad[at]); });
  return sum;
}

template <typename T, typename A>
__global__ void __launch_bounds__(kChannelThreads)
    sums(NormalizeBackward<T, A> p, GradientSums* parts) {
  await_previous();
  const int64_t channel = channel_of(p.map);
  const ChannelAffine<A> a = channel < p.map.channels ? p.affine[channel] : ChannelAffine<A>{};
  GradientSums own = {};
  for_each_value(p.map, channel, [&](int64_t i) {
    const A x = widen(p.x[i]), g = passed(p, i, a, x);
    own.values[0] += double(g), own.values[1] += double(g * (x - a.center));
  });
  store_part(p.map, channel, own, shared_memory<GradientSums>(), parts);
}

// The same of a map in channels_last, which was not replicated.  A few values are added up in
// float.
template <typename T>
__global__ void __launch_bounds__(kSweepThreads, 2)
    sums_vectors(NormalizeBackward<T, float> p, GradientSums* parts) {
  await_previous();
  constexpr int kCount = Vector<T>::kCount;
  ChannelAffine<float> a[kCount];
  load_affines(p.affine + sweep_channel<T>(p.map), a);
  Vector<T> grads[kSweepBatch], maps[kSweepBatch];
  float few[kCount] = {}, few_products[kCount] = {};
  PairSums<T> own;
  sweep_chunk<T>(
      p.map,
      [&](int b, int64_t at) {
        grads[b] = *reinterpret_cast<const Vector<T>*>(p.grad + at);
        maps[b] = *reinterpret_cast<const Vector<T>*>(p.x + at);
      },
      [&](int b) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float deviation = widen(maps[b].values[i]) - a[i].center;
          float g = widen(grads[b].values[i]);
          if (p.relu && deviation * a[i].scale + a[i].offset <= 0) g = 0;
          few[i] += g, few_products[i] += g * deviation;
        }
      },
      [&] {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          own.first[i] += few[i], own.second[i] += few_products[i];
          few[i] = few_products[i] = 0;
        }
      });
  add_pairs<T>(p.map, own, shared_memory<double>(), [&](int64_t c, double g, double gx) {
    parts[int64_t(blockIdx.x) * p.map.channels + c] = {{g, gx}};
  });
}

template <typename A, int kThreads>
__global__ void __launch_bounds__(kChannelThreads)
    finish(int64_t channels, const GradientSums* parts, int64_t parts_count, const double* var,
           double eps, double values, bool batch_statistics, const ChannelAffine<A>* affine,
           A* grad_weight, A* grad_bias, ChannelAffine<A>* out) {
  await_previous();
  const int64_t c = merge_channel<kThreads>();
  if (c >= channels) return;
  const GradientSums all =
      merged_parts<kThreads>(channels, c, parts, parts_count, shared_memory<double>());
  if (threadIdx.x % kThreads != 0) return;
  const double g = all.values[0], gx = all.values[1], scale = affine[c].scale;
  const double square = var[c] + eps;
  if (grad_weight) grad_weight[c] = A(gx / sqrt(square));
  if (grad_bias) grad_bias[c] = A(g);
  const bool centered = batch_statistics && values > 0;
  out[c] = {A(centered ? -scale * gx / (values * square) : 0.0), A(scale),
            A(centered ? -scale * g / values : 0.0)};
}

template <typename T, typename A>
__global__ void __launch_bounds__(kChannelThreads)
    apply(NormalizeBackward<T, A> p, const ChannelAffine<A>* out, T* grad_x) {
  await_previous();
  const int64_t channel = channel_of(p.map);
  if (channel >= p.map.channels) return;
  const ChannelAffine<A> a = p.affine[channel], o = out[channel];
  for_each_value(p.map, channel, [&](int64_t i) {
    const A x = widen(p.x[i]), g = passed(p, i, a, x);
    A value = o.scale * g + o.offset;
    if (o.center != A(0)) value += o.center * (x - a.center);  // x may be NaN where it is constant
    grad_x[i] = narrow<T>(value);
  });
}

// The same of a map in channels_last, which was not replicated.
template <typename T>
__global__ void __launch_bounds__(kSweepThreads, 2)
    apply_vectors(NormalizeBackward<T, float> p, const ChannelAffine<float>* out, T* grad_x) {
  await_previous();
  constexpr int kCount = Vector<T>::kCount, kBatch = 3;  // more would spill registers
  const int channel = sweep_channel<T>(p.map);
  ChannelAffine<float> a[kCount], o[kCount];
  load_affines(p.affine + channel, a), load_affines(out + channel, o);
  Vector<T> grads[kBatch], maps[kBatch];
  sweep<T, kBatch>(
      p.map,
      [&](int b, int64_t at) {
        grads[b] = *reinterpret_cast<const Vector<T>*>(p.grad + at);
        maps[b] = *reinterpret_cast<const Vector<T>*>(p.x + at);
      },
      [&](int b, int64_t at) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float deviation = widen(maps[b].values[i]) - a[i].center;
          float g = widen(grads[b].values[i]);
          if (p.relu && deviation * a[i].scale + a[i].offset <= 0) g = 0;
          float value = a[i].scale * g + o[i].offset;
          if (o[i].center != 0) value += o[i].center * deviation;
          grads[b].values[i] = narrow<T>(value);
        }
        *reinterpret_cast<Vector<T>*>(grad_x + at) = grads[b];
      });
}

template <typename T>
__device__ T passed(T grad, T y) {
  using A = Arithmetic<T>;
  return narrow<T>(widen(y) <= A(0) ? A(0) : widen(grad));
}

template <typename T>
__global__ void relu_gradient(int64_t count, const T* grad, const T* y, T* to) {
  await_previous();
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
    to[i] = passed(grad[i], y[i]);
}

template <typename T>
__global__ void relu_gradient_vectors(int64_t vectors, const Vector<T>* grad, const Vector<T>* y,
                                      Vector<T>* to) {
  await_previous();
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < vectors; i += step) {
    const Vector<T> g = grad[i], of = y[i];
    Vector<T> result;
#pragma unroll
    for (int j = 0; j < Vector<T>::kCount; ++j)
      result.values[j] = passed(g.values[j], of.values[j]);
    to[i] = result;
  }
}

}  // namespace

template <typename T, typename A>
void add_gradients(const NormalizeBackward<T, A>& p, GradientSums* parts, Stream stream) {
  if constexpr (!std::is_same_v<T, double>) {
    if (p.width == 0 && has_vectors<T>(p.map, {p.grad, p.x, p.affine}))
      return launch(sums_vectors<T>, chunk_grid<T>(p.map), dim3(kSweepThreads), kPairSumsBytes<T>,
                    stream, p, parts);
  }
  launch(sums<T, A>, channel_grid(p.map), dim3(kChannelThreads),
         kChannelThreads * sizeof(GradientSums), stream, p, parts);
}

template <typename A>
void finish_gradients(int64_t channels, const GradientSums* parts, int64_t parts_count,
                      const double* var, double eps, double values, bool batch_statistics,
                      const ChannelAffine<A>* affine, A* grad_weight, A* grad_bias,
                      ChannelAffine<A>* out, Stream stream) {
  launch_merge(finish<A, kWarp>, finish<A, kChannelThreads>, channels, parts, parts_count, stream,
               var, eps, values, batch_statistics, affine, grad_weight, grad_bias, out);
}

template <typename T, typename A>
void apply_gradients(const NormalizeBackward<T, A>& p, const ChannelAffine<A>* out, T* grad_x,
                     Stream stream) {
  if constexpr (!std::is_same_v<T, double>) {
    if (p.width == 0 && has_vectors<T>(p.map, {p.grad, p.x, p.affine, out, grad_x}))
      return launch(apply_vectors<T>, sweep_grid<T>(p.map), dim3(kSweepThreads), 0, stream, p, out,
                    grad_x);
  }
  launch(apply<T, A>, channel_grid(p.map), dim3(kChannelThreads), 0, stream, p, out, grad_x);
}

template <typename T>
void relu_backward(int64_t count, const T* grad, const T* y, T* to, Stream stream) {
  using V = Vector<T>;
  if (count % V::kCount == 0 && are_aligned<T>({grad, y, to})) {
    const int64_t vectors = count / V::kCount;
    return launch(relu_gradient_vectors<T>, flat_grid(vectors), dim3(256), 0, stream, vectors,
                  reinterpret_cast<const V*>(grad), reinterpret_cast<const V*>(y),
                  reinterpret_cast<V*>(to));
  }
  launch(relu_gradient<T>, flat_grid(count), dim3(256), 0, stream, count, grad, y, to);
}

#define COLORSEG_INSTANTIATE(T)                                                                   \
  template void add_gradients(const NormalizeBackward<T, Arithmetic<T>>&, GradientSums*, Stream); \
  template void apply_gradients(const NormalizeBackward<T, Arithmetic<T>>&,                       \
                                const ChannelAffine<Arithmetic<T>>*, T*, Stream);                 \
  template void relu_backward(int64_t, const T*, const T*, T*, Stream);
COLORSEG_INSTANTIATE(float)
COLORSEG_INSTANTIATE(double)
COLORSEG_INSTANTIATE(__half)
COLORSEG_INSTANTIATE(__nv_bfloat16)

#define COLORSEG_INSTANTIATE_ARITHMETIC(A)                                                         \
  template void finish_gradients(int64_t, const GradientSums*, int64_t, const double*, double,     \
                                 double, bool, const ChannelAffine<A>*, A*, A*, ChannelAffine<A>*, \
                                 Stream);
COLORSEG_INSTANTIATE_ARITHMETIC(float)
COLORSEG_INSTANTIATE_ARITHMETIC(double)

}  // namespace colorseg::cuda

// Batch norm and ReLU backward: one sweep over the gradient and the map for two sums per channel,
// one for the gradient of the map.
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
  const int64_t channel = channel_of(p.map);
  const ChannelAffine<A> a = channel < p.map.channels ? p.affine[channel] : ChannelAffine<A>{};
  GradientSums own = {};
  for_each_value(p.map, channel, [&](int64_t i) {
    const A x = widen(p.x[i]), g = passed(p, i, a, x);
    own.values[0] += double(g), own.values[1] += double(g * (x - a.center));
  });
  store_part(p.map, channel, own, shared_memory<GradientSums>(), parts);
}

// A block per channel.
template <typename A>
__global__ void __launch_bounds__(kChannelThreads)
    finish(const GradientSums* parts, int64_t parts_count, const double* var, double eps,
           double values, bool batch_statistics, const ChannelAffine<A>* affine, A* grad_weight,
           A* grad_bias, ChannelAffine<A>* out) {
  const int64_t c = blockIdx.x;
  const GradientSums all =
      merged_parts(gridDim.x, c, parts, parts_count, shared_memory<GradientSums>());
  if (threadIdx.x != 0) return;
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

template <typename T>
__global__ void relu_gradient(int64_t count, const T* grad, const T* y, T* to) {
  using A = Arithmetic<T>;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
    to[i] = narrow<T>(widen(y[i]) <= A(0) ? A(0) : widen(grad[i]));
}

}  // namespace

template <typename T, typename A>
void add_gradients(const NormalizeBackward<T, A>& p, GradientSums* parts, Stream stream) {
  launch(sums<T, A>, channel_grid(p.map), dim3(kChannelThreads),
         kChannelThreads * sizeof(GradientSums), stream, p, parts);
}

template <typename A>
void finish_gradients(int64_t channels, const GradientSums* parts, int64_t parts_count,
                      const double* var, double eps, double values, bool batch_statistics,
                      const ChannelAffine<A>* affine, A* grad_weight, A* grad_bias,
                      ChannelAffine<A>* out, Stream stream) {
  launch(finish<A>, dim3(static_cast<unsigned>(channels)), dim3(kChannelThreads),
         kRows * sizeof(GradientSums), stream, parts, parts_count, var, eps, values,
         batch_statistics, affine, grad_weight, grad_bias, out);
}

template <typename T, typename A>
void apply_gradients(const NormalizeBackward<T, A>& p, const ChannelAffine<A>* out, T* grad_x,
                     Stream stream) {
  launch(apply<T, A>, channel_grid(p.map), dim3(kChannelThreads), 0, stream, p, out, grad_x);
}

template <typename T>
void relu_backward(int64_t count, const T* grad, const T* y, T* to, Stream stream) {
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

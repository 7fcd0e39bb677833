// The torch-free CUDA kernels around a convolution: statistics, max-pool, batch norm, ReLU and what
// undoes them, in sweeps over maps of either layout.
#pragma once
#include "kernels.h"

namespace colorseg::cuda {

// Positions of a channel that a block takes: of planes one channel's, else those of many at once.
// It depends on the map alone, so that sums have the same bits on every device.
__host__ __device__ inline int64_t channel_chunk(const PixelMap& map) {
  if (!map.channels_last) return 4096;
  const int64_t most_chunks = 1024, fewest = map.channels < 512 ? 64 : 128;
  const int64_t share = (map.n * map.pixels + most_chunks - 1) / most_chunks;
  return share > fewest ? share : fewest;
}
inline int64_t channel_chunks(const PixelMap& map) {
  return (map.n * map.pixels + channel_chunk(map) - 1) / channel_chunk(map);
}

// Count, mean and sum of squared deviations of some values; Chan, Golub and LeVeque merge them.
struct Moments {
  static constexpr int kCount = 3;
  double values[kCount];
};

// Sums of g and of g * (x - mean), where g is the gradient behind the ReLU.
struct GradientSums {
  static constexpr int kCount = 2;
  double values[kCount];
};

// relu((x - center) * scale + offset), an entry per channel.
template <typename A>
struct ChannelAffine {
  A center, scale, offset;
};

// Parameters of batch norm [channels]; weight and bias may be null.
template <typename A>
struct BatchNorm {
  const A *weight, *bias, *running_mean, *running_var;
  double eps;
};

// Per channel, in parts [channel_chunks][channels].
template <typename T>
void add_moments(const PixelMap& map, const T* x, Moments* parts, Stream);

// mean and var [channels] from parts [count][channels], or the running ones without any;
// and the affine.
template <typename A>
void finish_moments(int64_t channels, const Moments* parts, int64_t count, const BatchNorm<A>&,
                    double* mean, double* var, ChannelAffine<A>* affine, Stream);

// The affine alone, of a mean and a variance that are known.
template <typename A>
void affine_of(int64_t channels, const double* mean, const double* var, const BatchNorm<A>&,
               ChannelAffine<A>* affine, Stream);

// y = relu(affine(x) + residual); residual may be null.  `width`: y is replicated 2x2, of lines of
// x of that width; 0: it is not.
template <typename T, typename A>
void normalize(const PixelMap& map, const T* x, const ChannelAffine<A>* affine, bool relu,
               const T* residual, int64_t width, T* y, Stream);

// The gradient that passes the ReLU that made y.
template <typename T>
void relu_backward(int64_t count, const T* grad, const T* y, T* passed, Stream);

// Gradient of y, x and the affine of forward; `width` as in normalize.
template <typename T, typename A>
struct NormalizeBackward {
  PixelMap map;
  const T *grad, *x;
  const ChannelAffine<A>* affine;
  bool relu;
  int64_t width;
};

// parts: [channel_chunks][channels].
template <typename T, typename A>
void add_gradients(const NormalizeBackward<T, A>&, GradientSums* parts, Stream);

// From the sums [parts_count][channels]: gradients of weight and bias (null where not wanted), and
// `out`, with which the gradient of x is out.scale * g + out.center * (x - center) + out.offset.
// values: of a channel of y; batch_statistics: the mean and the variance depend on x.
template <typename A>
void finish_gradients(int64_t channels, const GradientSums* parts, int64_t parts_count,
                      const double* var, double eps, double values, bool batch_statistics,
                      const ChannelAffine<A>* affine, A* grad_weight, A* grad_bias,
                      ChannelAffine<A>* out, Stream);

template <typename T, typename A>
void apply_gradients(const NormalizeBackward<T, A>&, const ChannelAffine<A>* out, T* grad_x,
                     Stream);

// A 2x2 max-pool: z (n, channels, height, width) of lines of `full_width` and planes of `full`
// pixels; codes are the argmax, 2 bits each, in planes of whole bytes.
struct Pool {
  int64_t n, channels, height, width, full_width, full;
  bool channels_last;
  int64_t planes() const { return channels_last ? n : n * channels; }
  int64_t plane_values() const { return height * width * (channels_last ? channels : 1); }
  int64_t bytes() const { return planes() * ((plane_values() + 3) / 4); }
};

template <typename T>
void max_pool(const Pool& pool, const T* full, T* pooled, uint8_t* codes, Stream);

// Zeros wherever no maximum was; what no square covers is left as it is.
template <typename T>
void max_pool_backward(const Pool& pool, const T* grad_pooled, const uint8_t* codes, T* grad_full,
                       Stream);

}  // namespace colorseg::cuda

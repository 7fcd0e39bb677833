// The library's own convolution with a block's epilogue and its gradient's prologue fused to it.
#pragma once
#include <cmath>

#include "../conv_bn_relu.h"
#include "block.h"
#include "conv2d.h"

namespace colorseg::cpu {

// The map that batch norm sees, the max-pool's argmax, and the map's statistics if asked for.
struct Convolved {
  Tensor z, argmax;
  Moments moments;
};

Map map_of(const BlockShape& s, bool channels_last);

Convolved convolve_block(const OwnConvolution& own, const Tensor& weight,
                         const OptionalTensor& bias, const BlockShape& s, bool statistics);

// The plain convolution into a new map.
Tensor convolve_map(const OwnConvolution& own, const Tensor& weight, const OptionalTensor& bias);

// y = (x - mean) * gamma / sqrt(var + eps) + beta
template <typename T>
ChannelAffine<T> affine_of(const Moments& m, const OptionalTensor& weight,
                           const OptionalTensor& bias, double eps) {
  const int64_t channels = static_cast<int64_t>(m.mean.size());
  const auto gamma = doubles_of(weight, channels, 1), beta = doubles_of(bias, channels, 0);
  ChannelAffine<T> a(channels);
  for (int64_t c = 0; c < channels; ++c) {
    const double scale = gamma[c] / std::sqrt(m.var[c] + eps);
    a.center[c] = T(m.mean[c]);
    a.scale[c] = T(scale);
    a.offset[c] =
        T(beta[c] + (double(a.center[c]) - m.mean[c]) * scale);  // what rounding the mean left over
  }
  return a;
}

// grad_x = scale * (g - sum(g) / n - (x - mean) * sum(g (x - mean)) / (n (var + eps))); without
// batch statistics only scale * g.  Upsampling before BN changes nothing: both sums and n grow
// fourfold.
template <typename T>
ChannelAffine<T> gradient_affine(const ChannelAffine<T>& affine, const GradientSums& sums,
                                 const std::vector<double>& var, double eps, double count) {
  ChannelAffine<T> out(static_cast<int64_t>(var.size()));
  out.scale = affine.scale;
  for (size_t c = 0; c < var.size(); ++c) {
    const double scale = affine.scale[c];
    out.offset[c] = T(-scale * sums.g[c] / count);
    out.center[c] = T(-scale * sums.gx[c] / (count * (var[c] + eps)));
  }
  return out;
}

// sum(g (x - mean)) / sqrt(var + eps)
inline std::vector<double> gamma_gradient(const GradientSums& sums, const Moments& m, double eps) {
  std::vector<double> gradient(sums.gx);
  for (size_t c = 0; c < gradient.size(); ++c) gradient[c] /= std::sqrt(m.var[c] + eps);
  return gradient;
}

// What turns the gradient behind a block's ReLU, at the size of z, into that of the convolution.
struct BlockGradient {
  const BlockShape& shape;
  const float *grad, *z;
  const ChannelAffine<float>&affine, &out;
  bool relu, statistics;
  const uint8_t* argmax;  // or null

  const float* operator()(int64_t n, int64_t c, int64_t first, int64_t last, ConvScratch& s) const;
};

}  // namespace colorseg::cpu

// conv -> resample -> batch norm -> ReLU.  Around the convolution, forward reads its output once
// for pooling and statistics and once to normalise; backward reads the gradient and BN's input
// twice.
#include "../conv_bn_relu.h"

#include <cmath>

#include "aten_conv2d.h"
#include "block.h"

namespace colorseg::cpu {
namespace {

Map map_of(const BlockShape& s, bool channels_last) {
  const bool up = s.resample == Resample::kUpsample2;
  return {s.conv.n,
          s.conv.out_channels,
          s.height,
          s.width,
          up ? s.y_height : s.conv.out_height,
          up ? s.y_width : s.conv.out_width,
          channels_last};
}

Ints sizes_of(const Map& m) { return {m.n, m.channels, m.height, m.width}; }

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

// The map that is normalised, and the moments to do it with.
struct PreBatchNorm {
  Tensor x, argmax;
  Moments moments;
};

template <typename T>
PreBatchNorm prepare(const Map& map, const BlockShape& s, const Tensor& z,
                     const BatchNormOptions& bn) {
  PreBatchNorm p{z, new_tensor(z, {0}, ScalarType::Byte), {}};
  const bool statistics_needed = bn.batch_statistics && s.normalized() > 0;
  if (s.resample == Resample::kMaxPool2) {
    p.x = new_tensor(z, sizes_of(map), z.scalar_type(), map.channels_last);
    p.argmax = new_tensor(z, {map.planes() * map.packed_plane()}, ScalarType::Byte);
    p.moments = pool_and_statistics(map, z.const_data_ptr<T>(), p.x.mutable_data_ptr<T>(),
                                    p.argmax.mutable_data_ptr<uint8_t>(), statistics_needed);
  } else if (statistics_needed) {
    p.moments = statistics(map, z.const_data_ptr<T>());
  }
  if (!statistics_needed) {
    p.moments = {doubles_of(bn.running_mean, map.channels, 0),
                 doubles_of(bn.running_var, map.channels, 1)};
  }
  return p;
}

struct Block {
  Tensor y;
  PreBatchNorm pre;
};

// Without `keep`, batch norm and ReLU overwrite the map they read wherever y has its size.
Block forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
              const OptionalTensor& skip, const Prologue& prologue, const ConvOptions& o,
              Resample resample, const BatchNormOptions& bn, bool relu, bool keep) {
  const BlockShape s =
      check_conv_bn_relu(x, check_conv2d(x, weight, bias, skip, prologue, o), resample, bn);
  const bool channels_last = is_channels_last(x), up = resample == Resample::kUpsample2;
  const Map map = map_of(s, channels_last);
  const Tensor z = widened(aten_convolution(conv_input(x, skip, prologue, channels_last), weight,
                                            bias, o, channels_last));
  Block block{z, {z, z, {}}};
  dispatch_dtype(z, "conv_bn_relu", [&](auto zero) {
    using T = decltype(zero);
    block.pre = prepare<T>(map, s, z, bn);
    const Ints sizes{s.conv.n, s.conv.out_channels, s.y_height, s.y_width};
    block.y = keep || up ? new_tensor(z, sizes, z.scalar_type(), channels_last) : block.pre.x;
    normalize(map, block.pre.x.const_data_ptr<T>(),
              affine_of<T>(block.pre.moments, bn.weight, bn.bias, bn.eps), relu, up,
              block.y.mutable_data_ptr<T>());
  });
  block.y = to_dtype(block.y, x.scalar_type());
  return block;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_bn_relu(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& skip,
    const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
    const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& in_scale, const OptionalTensor& in_shift, bool in_relu, bool in_upsample,
    const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups, bool transposed,
    const Ints& output_padding, const std::string& resample, bool training, double eps, bool relu) {
  const Block block = forward(
      x, weight, bias, skip, {in_scale, in_shift, in_relu, in_upsample},
      {stride, padding, dilation, groups, transposed, output_padding}, resample_from(resample),
      {bn_weight, bn_bias, running_mean, running_var, training, eps}, relu, true);
  const Moments& m = block.pre.moments;
  return {block.y, block.pre.x, block.pre.argmax, vector_of(m.mean, x, ScalarType::Double),
          vector_of(m.var, x, ScalarType::Double)};
}

Tensor conv_bn_relu_inference(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& skip, const OptionalTensor& bn_weight,
                              const OptionalTensor& bn_bias, const OptionalTensor& running_mean,
                              const OptionalTensor& running_var, const OptionalTensor& in_scale,
                              const OptionalTensor& in_shift, bool in_relu, bool in_upsample,
                              const Ints& stride, const Ints& padding, const Ints& dilation,
                              int64_t groups, bool transposed, const Ints& output_padding,
                              const std::string& resample, double eps, bool relu) {
  return forward(x, weight, bias, skip, {in_scale, in_shift, in_relu, in_upsample},
                 {stride, padding, dilation, groups, transposed, output_padding},
                 resample_from(resample),
                 {bn_weight, bn_bias, running_mean, running_var, false, eps}, relu, false)
      .y;
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

struct BatchNormGradients {
  Tensor z, weight, bias;  // of the convolution's output, and of gamma and beta
  GradientSums sums;
};

template <typename T>
BatchNormGradients batch_norm_backward(const Map& map, const BlockShape& s, const Tensor& grad_y_,
                                       const Tensor& pre_bn, const Tensor& argmax, const Moments& m,
                                       const BatchNormOptions& bn, bool relu) {
  const bool up = s.resample == Resample::kUpsample2, pool = s.resample == Resample::kMaxPool2;
  const Tensor grad_y = dense(grad_y_, map.channels_last);
  Tensor grad_z = new_tensor(grad_y, {map.n, map.channels, s.conv.out_height, s.conv.out_width},
                             grad_y.scalar_type(), map.channels_last);
  if (pool && (s.conv.out_height % 2 || s.conv.out_width % 2))
    torch::stable::zero_(grad_z);  // no square covers the edge
  const auto affine = affine_of<T>(m, bn.weight, bn.bias, bn.eps);
  const T *g = grad_y.const_data_ptr<T>(), *x = pre_bn.const_data_ptr<T>();
  GradientSums sums = gradient_sums(map, g, x, affine, relu, up);
  gradient_apply(map, g, x, affine, relu, up,
                 gradient_affine(affine, sums, m.var, bn.eps, double(s.normalized())),
                 bn.batch_statistics, pool ? argmax.const_data_ptr<uint8_t>() : nullptr,
                 grad_z.mutable_data_ptr<T>());
  std::vector<double> weight(sums.gx);
  for (int64_t c = 0; c < map.channels; ++c) weight[c] /= std::sqrt(m.var[c] + bn.eps);
  return {grad_z, bn.weight ? vector_like(weight, *bn.weight) : nothing(grad_y),
          bn.bias ? vector_like(sums.g, *bn.bias) : nothing(grad_y), sums};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv_bn_relu_backward(
    const Tensor& grad_y, const Tensor& x, const Tensor& weight, const OptionalTensor& skip,
    const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, const Tensor& pre_bn,
    const Tensor& argmax, const Tensor& mean, const Tensor& var, const OptionalTensor& in_scale,
    const OptionalTensor& in_shift, bool in_relu, bool in_upsample, const Ints& stride,
    const Ints& padding, const Ints& dilation, int64_t groups, bool transposed,
    const Ints& output_padding, const std::string& resample, bool training, double eps, bool relu,
    bool needs_x, bool needs_skip, bool needs_weight, bool needs_bias) {
  const ConvOptions o{stride, padding, dilation, groups, transposed, output_padding};
  const Prologue prologue{in_scale, in_shift, in_relu, in_upsample};
  const BatchNormOptions bn{bn_weight, bn_bias, mean, var, training, eps};
  const bool channels_last = is_channels_last(x);
  const BlockShape s{check_conv2d(x, weight, {}, skip, prologue, o),
                     resample_from(resample),
                     pre_bn.size(2),
                     pre_bn.size(3),
                     grad_y.size(2),
                     grad_y.size(3)};
  const int64_t channels = s.conv.out_channels;
  const Moments moments{doubles_of(mean, channels, 0), doubles_of(var, channels, 1)};
  BatchNormGradients g;
  dispatch_dtype(x, "conv_bn_relu_backward", [&](auto zero) {
    using T = decltype(zero);
    g = batch_norm_backward<T>(map_of(s, channels_last), s, grad_y, pre_bn, argmax, moments, bn,
                               relu);
  });
  // Under batch statistics the convolution's bias cancels: its gradient is exactly 0.
  ConvGradients conv = aten_convolution_backward(
      g.z, x, weight, skip, prologue, o,
      {needs_x, needs_skip, needs_weight, needs_bias && !training}, channels_last);
  if (needs_bias && training) conv.bias = vector_like(std::vector<double>(channels), weight);
  return {conv.x,   conv.weight, conv.bias,     conv.skip,
          g.weight, g.bias,      conv.in_scale, conv.in_shift};
}

}  // namespace
}  // namespace colorseg::cpu

STABLE_TORCH_LIBRARY_IMPL(colorseg, CPU, m) {
  m.impl("conv_bn_relu", TORCH_BOX(&colorseg::cpu::conv_bn_relu));
  m.impl("conv_bn_relu_backward", TORCH_BOX(&colorseg::cpu::conv_bn_relu_backward));
  m.impl("conv_bn_relu_inference", TORCH_BOX(&colorseg::cpu::conv_bn_relu_inference));
}

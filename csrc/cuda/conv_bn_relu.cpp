// conv -> resample -> batch norm [-> + residual] -> ReLU, in sweeps over the result of ATen's
// convolution.
#include "channels.h"
#include "conv2d.h"

namespace colorseg::cuda {
namespace {

Pool pool_of(const BlockShape& s, bool channels_last) {
  return {s.conv.n,     s.conv.out_channels, s.height,
          s.width,      s.conv.out_width,    s.conv.out_height * s.conv.out_width,
          channels_last};
}

struct Block {
  Tensor y, z, argmax;  // z: the map that is normalised
  ChannelVectors vectors;
};

Block forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
              const OptionalTensor& skip, const OptionalTensor& residual_, const Prologue& prologue,
              const ConvOptions& o, Resample resample, const BatchNormOptions& bn, bool relu) {
  const ConvShape conv = check_conv2d(x, weight, bias, skip, prologue, o);
  const BlockShape s = check_conv_bn_relu(x, conv, resample, bn, residual_);
  const bool channels_last = is_channels_last(x), pool = resample == Resample::kMaxPool2;
  const OnDevice device(x);
  const Tensor full =
      convolution(conv_input(x, skip, prologue, channels_last), weight, bias, o, channels_last);
  const Pool of = pool_of(s, channels_last);
  Tensor z = full;
  const Tensor argmax = new_tensor(x, {pool ? of.bytes() : 0}, ScalarType::Byte);
  if (pool)
    z = new_tensor(x, {of.n, of.channels, of.height, of.width}, x.scalar_type(), channels_last);
  const PixelMap map = channel_map(z, channels_last);
  ChannelVectors vectors(x, map.channels);
  dispatch_element(x, "conv_bn_relu", [&](auto zero) {
    using T = decltype(zero);
    using A = ArithmeticType<T>;
    if (pool)
      max_pool(of, static_cast<const T*>(full.const_data_ptr()), pointer<T>(z),
               pointer<uint8_t>(argmax), device.stream());
    const BatchNormTensors<A> norm(x, bn);
    const bool counted = bn.batch_statistics && s.normalized() > 0;
    const Tensor parts =
        new_tensor(x, {counted ? channel_chunks(map) : 0, map.channels, 3}, ScalarType::Double);
    if (counted)
      add_moments(map, static_cast<const T*>(z.const_data_ptr()), pointer<Moments>(parts),
                  device.stream());
    finish_moments(map, static_cast<const Moments*>(pointer<Moments>(parts)), norm.view(),
                   pointer<double>(vectors.mean), pointer<double>(vectors.var), vectors.affine<A>(),
                   device.stream());
  });
  OptionalTensor residual;
  if (residual_) residual = dense(*residual_, channels_last);
  const Tensor y =
      normalized(z, vectors, relu, residual, resample == Resample::kUpsample2, channels_last);
  return {y, z, argmax, vectors};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_bn_relu(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& skip,
    const OptionalTensor& residual, const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
    const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& in_scale, const OptionalTensor& in_shift, bool in_relu, bool in_upsample,
    const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups, bool transposed,
    const Ints& output_padding, const std::string& resample, bool training, double eps, bool relu) {
  const Block block = forward(
      x, weight, bias, skip, residual, {in_scale, in_shift, in_relu, in_upsample},
      {stride, padding, dilation, groups, transposed, output_padding}, resample_from(resample),
      {bn_weight, bn_bias, running_mean, running_var, training, eps}, relu);
  return {block.y, block.z, block.argmax, block.vectors.mean, block.vectors.var};
}

Tensor conv_bn_relu_inference(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& skip, const OptionalTensor& residual,
                              const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
                              const OptionalTensor& running_mean, const OptionalTensor& running_var,
                              const OptionalTensor& in_scale, const OptionalTensor& in_shift,
                              bool in_relu, bool in_upsample, const Ints& stride,
                              const Ints& padding, const Ints& dilation, int64_t groups,
                              bool transposed, const Ints& output_padding,
                              const std::string& resample, double eps, bool relu) {
  return forward(x, weight, bias, skip, residual, {in_scale, in_shift, in_relu, in_upsample},
                 {stride, padding, dilation, groups, transposed, output_padding},
                 resample_from(resample),
                 {bn_weight, bn_bias, running_mean, running_var, false, eps}, relu)
      .y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
conv_bn_relu_backward(const Tensor& grad_y_, const Tensor& x, const Tensor& weight,
                      const OptionalTensor& skip, const OptionalTensor& y,
                      const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
                      const Tensor& pre_bn, const Tensor& argmax, const Tensor& mean,
                      const Tensor& var, const OptionalTensor& in_scale,
                      const OptionalTensor& in_shift, bool in_relu, bool in_upsample,
                      const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                      bool transposed, const Ints& output_padding, const std::string& resample_,
                      bool training, double eps, bool relu_, bool needs_x, bool needs_skip,
                      bool needs_weight, bool needs_bias) {
  const ConvOptions o{stride, padding, dilation, groups, transposed, output_padding};
  const Prologue prologue{in_scale, in_shift, in_relu, in_upsample};
  const Resample resample = resample_from(resample_);
  const bool channels_last = is_channels_last(x), pool = resample == Resample::kMaxPool2;
  const BlockShape s{check_conv2d(x, weight, {}, skip, prologue, o),
                     resample,
                     pre_bn.size(2),
                     pre_bn.size(3),
                     grad_y_.size(2),
                     grad_y_.size(3)};
  const OnDevice device(x);
  Tensor grad_y = dense(grad_y_, channels_last);
  ChannelVectors vectors(x, s.conv.out_channels);
  vectors.mean = mean, vectors.var = var;
  dispatch_element(x, "conv_bn_relu_backward", [&](auto zero) {
    using T = decltype(zero);
    using A = ArithmeticType<T>;
    const BatchNormTensors<A> norm(x, {bn_weight, bn_bias, {}, {}, training, eps});
    affine_of(s.conv.out_channels, static_cast<const double*>(mean.const_data_ptr()),
              static_cast<const double*>(var.const_data_ptr()), norm.view(), vectors.affine<A>(),
              device.stream());
    if (!y) return;
    // what passes the ReLU behind a residual is the gradient of both
    const Tensor result = dense(*y, channels_last), from = grad_y;
    grad_y = new_tensor(x, sizes_of(result), x.scalar_type(), channels_last);
    relu_backward(result.numel(), static_cast<const T*>(from.const_data_ptr()),
                  static_cast<const T*>(result.const_data_ptr()), pointer<T>(grad_y),
                  device.stream());
  });
  const NormalizedGradients n = normalized_backward(grad_y, pre_bn, vectors, eps, relu_ && !y,
                                                    resample == Resample::kUpsample2, training,
                                                    bn_weight, bn_bias, channels_last);
  Tensor grad_z = n.x;
  if (pool) {
    const Pool of = pool_of(s, channels_last);
    grad_z = new_tensor(x, {s.conv.n, s.conv.out_channels, s.conv.out_height, s.conv.out_width},
                        x.scalar_type(), channels_last);
    if (s.conv.out_height % 2 || s.conv.out_width % 2) torch::stable::zero_(grad_z);
    dispatch_element(x, "conv_bn_relu_backward", [&](auto zero) {
      using T = decltype(zero);
      max_pool_backward(of, static_cast<const T*>(n.x.const_data_ptr()),
                        static_cast<const uint8_t*>(argmax.const_data_ptr()), pointer<T>(grad_z),
                        device.stream());
    });
  }
  const Needs needs{needs_x, needs_skip, needs_weight, needs_bias && !training};
  ConvGradients conv =
      convolution_backward(grad_z, x, weight, skip, prologue, o, needs, channels_last);
  // Under batch statistics the convolution's bias cancels: its gradient is exactly 0.
  if (needs_bias && training) {
    conv.bias = new_tensor(x, {s.conv.out_channels}, weight.scalar_type());
    torch::stable::zero_(conv.bias);
  }
  return {conv.x,   conv.weight, conv.bias,     conv.skip,    y ? grad_y : nothing(x),
          n.weight, n.bias,      conv.in_scale, conv.in_shift};
}

}  // namespace
}  // namespace colorseg::cuda

STABLE_TORCH_LIBRARY_IMPL(colorseg, COLORSEG_CUDA_KEY, m) {
  m.impl("conv_bn_relu", TORCH_BOX(&colorseg::cuda::conv_bn_relu));
  m.impl("conv_bn_relu_backward", TORCH_BOX(&colorseg::cuda::conv_bn_relu_backward));
  m.impl("conv_bn_relu_inference", TORCH_BOX(&colorseg::cuda::conv_bn_relu_inference));
}

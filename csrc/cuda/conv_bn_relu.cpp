// conv -> resample -> batch norm [-> + residual] -> ReLU: the library's own convolution, with the
// max-pool and the statistics, or ATen's and sweeps over its result; then one sweep for the rest.
#include "conv2d.h"
#include "own_block.h"

namespace colorseg::cuda {
namespace {

// The map of a block whose convolution ATen does.
BlockMap aten_block_map(const Tensor& full, const BlockShape& s, const BatchNormOptions& bn,
                        bool channels_last) {
  Pooled z{full, nothing(full)};
  if (s.resample == Resample::kMaxPool2) z = max_pooled(full, s, channels_last);
  const bool counted = bn.batch_statistics && s.normalized() > 0;
  const Tensor parts = counted ? moments(z.map, channels_last) : nothing(z.map);
  return {z.map, z.argmax, finished_moments(z.map, parts, bn)};
}

struct Block {
  Tensor y;
  BlockMap map;
};

Block forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
              const OptionalTensor& skip, const OptionalTensor& residual_, const Prologue& prologue,
              const ConvOptions& o, Resample resample, const BatchNormOptions& bn, bool relu) {
  const ConvShape conv = check_conv2d(x, weight, bias, skip, prologue, o);
  const BlockShape s = check_conv_bn_relu(x, conv, resample, bn, residual_);
  const bool channels_last = is_channels_last(x);
  const OnDevice device(x);
  const auto own = own_convolution(x, weight, skip, prologue, o);
  const BlockMap map =
      own ? own_block_map(*own, s, bias, bn)
          : aten_block_map(convolution(conv_input(x, skip, prologue, channels_last), weight, bias,
                                       o, channels_last),
                           s, bn, channels_last);
  OptionalTensor residual;
  if (residual_) residual = dense(*residual_, channels_last);
  return {normalized(map.map, map.vectors, relu, residual, resample == Resample::kUpsample2,
                     channels_last),
          map};
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
  const BlockMap& map = block.map;
  return {block.y, map.map, map.argmax, map.vectors.mean, map.vectors.var};
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
  const bool channels_last = is_channels_last(x);
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
  const Tensor grad_z =
      resample == Resample::kMaxPool2 ? max_pooled_backward(n.x, argmax, s, channels_last) : n.x;
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

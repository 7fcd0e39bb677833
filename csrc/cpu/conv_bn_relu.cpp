// conv -> resample -> batch norm [-> + residual] -> ReLU.  Around the convolution, forward reads
// its output once for pooling and statistics and once to normalise; backward reads the gradient and
// BN's input twice.
#include "../conv_bn_relu.h"

#include "fused_block.h"

namespace colorseg::cpu {
namespace {

Ints sizes_of(const Map& m) { return {m.n, m.channels, m.height, m.width}; }

// ATen's convolution with the same epilogue as convolve_block, in sweeps over its result.
Convolved aten_block(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& skip, const Prologue& prologue, const ConvOptions& o,
                     const BlockShape& s, bool statistics_needed) {
  const bool channels_last = is_channels_last(x);
  const Map map = map_of(s, channels_last);
  const Tensor y = widened(any_layout_convolution(conv_input(x, skip, prologue, channels_last),
                                                  weight, bias, o, channels_last));
  Convolved p{y, new_tensor(y, {0}, ScalarType::Byte), {}};
  dispatch_dtype(y, "conv_bn_relu", [&](auto zero) {
    using T = decltype(zero);
    if (s.resample == Resample::kMaxPool2) {
      p.z = new_tensor(y, sizes_of(map), y.scalar_type(), channels_last);
      p.argmax = new_tensor(y, {map.planes() * map.packed_plane()}, ScalarType::Byte);
      p.moments = pool_and_statistics(map, y.const_data_ptr<T>(), p.z.mutable_data_ptr<T>(),
                                      p.argmax.mutable_data_ptr<uint8_t>(), statistics_needed);
    } else if (statistics_needed) {
      p.moments = statistics(map, y.const_data_ptr<T>());
    }
  });
  return p;
}

struct Block {
  Tensor y;
  Convolved pre;
};

// Without `keep`, batch norm and ReLU overwrite the map they read wherever y has its size.
Block forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
              const OptionalTensor& skip, const OptionalTensor& residual_, const Prologue& prologue,
              const ConvOptions& o, Resample resample, const BatchNormOptions& bn, bool relu,
              bool keep) {
  const ConvShape conv = check_conv2d(x, weight, bias, skip, prologue, o);
  const BlockShape s = check_conv_bn_relu(x, conv, resample, bn, residual_);
  const bool up = resample == Resample::kUpsample2;
  const bool statistics_needed = bn.batch_statistics && s.normalized() > 0;
  // where maps are kept for backward, ours makes up for it; a max-pool it takes in the same pass
  const bool alone = !keep && resample != Resample::kMaxPool2 && left_to_aten(s.conv, o, prologue);
  const auto own = alone ? std::optional<OwnConvolution>()
                         : own_convolution(x, weight, skip, prologue, o, s.conv);
  Block block{x, own ? convolve_block(*own, weight, bias, s, statistics_needed)
                     : aten_block(x, weight, bias, skip, prologue, o, s, statistics_needed)};
  if (!statistics_needed) {
    block.pre.moments = {doubles_of(bn.running_mean, s.conv.out_channels, 0),
                         doubles_of(bn.running_var, s.conv.out_channels, 1)};
  }
  const Map map = map_of(s, is_channels_last(x));
  const Tensor& z = block.pre.z;
  OptionalTensor residual;
  if (residual_) residual = widened(dense(*residual_, map.channels_last));
  dispatch_dtype(z, "conv_bn_relu", [&](auto zero) {
    using T = decltype(zero);
    const Ints sizes{s.conv.n, s.conv.out_channels, s.y_height, s.y_width};
    block.y = keep || up ? new_tensor(z, sizes, z.scalar_type(), map.channels_last) : z;
    normalize(map, z.const_data_ptr<T>(),
              affine_of<T>(block.pre.moments, bn.weight, bn.bias, bn.eps), relu, up,
              block.y.mutable_data_ptr<T>(), residual ? residual->const_data_ptr<T>() : nullptr);
  });
  block.y = to_dtype(block.y, x.scalar_type());
  return block;
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
      {bn_weight, bn_bias, running_mean, running_var, training, eps}, relu, true);
  const Moments& m = block.pre.moments;
  return {block.y, block.pre.z, block.pre.argmax, vector_of(m.mean, x, ScalarType::Double),
          vector_of(m.var, x, ScalarType::Double)};
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
                 {bn_weight, bn_bias, running_mean, running_var, false, eps}, relu, false)
      .y;
}

struct BatchNormGradients {
  Tensor z, weight, bias;  // of the convolution's output, and of gamma and beta
  GradientSums sums;
};

BatchNormGradients batch_norm_gradients(const GradientSums& sums, const Moments& m,
                                        const BatchNormOptions& bn, const Tensor& like) {
  return {like,
          bn.weight ? vector_like(gamma_gradient(sums, m, bn.eps), *bn.weight) : nothing(like),
          bn.bias ? vector_like(sums.g, *bn.bias) : nothing(like), sums};
}

// The gradient in front of an upsample: the sum over each 2x2 square.
Tensor squares(const Map& map, const Tensor& grad_y) {
  Tensor grad = new_tensor(grad_y, sizes_of(map), grad_y.scalar_type());
  const float* from = grad_y.const_data_ptr<float>();
  float* to = grad.mutable_data_ptr<float>();
  for_each_tile<float>(map, [&](const TileAt& tile, Scratch<float>) {
    kernels<float>().upsample2_backward(tile.shape, from + tile.full_offset, to + tile.offset);
  });
  return grad;
}

template <typename T>
BatchNormGradients batch_norm_backward(const Map& map, const BlockShape& s, const Tensor& grad_y,
                                       const Tensor& pre_bn, const Tensor& argmax, const Moments& m,
                                       const BatchNormOptions& bn, bool relu) {
  const bool up = s.resample == Resample::kUpsample2, pool = s.resample == Resample::kMaxPool2;
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
  return batch_norm_gradients(sums, m, bn, grad_z);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
conv_bn_relu_backward(const Tensor& grad_y_, const Tensor& x, const Tensor& weight,
                      const OptionalTensor& skip, const OptionalTensor& y,
                      const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
                      const Tensor& pre_bn, const Tensor& argmax, const Tensor& mean,
                      const Tensor& var, const OptionalTensor& in_scale,
                      const OptionalTensor& in_shift, bool in_relu, bool in_upsample,
                      const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                      bool transposed, const Ints& output_padding, const std::string& resample,
                      bool training, double eps, bool relu_, bool needs_x, bool needs_skip,
                      bool needs_weight, bool needs_bias) {
  const ConvOptions o{stride, padding, dilation, groups, transposed, output_padding};
  const Prologue prologue{in_scale, in_shift, in_relu, in_upsample};
  const BatchNormOptions bn{bn_weight, bn_bias, mean, var, training, eps};
  const bool channels_last = is_channels_last(x);
  const BlockShape s{check_conv2d(x, weight, {}, skip, prologue, o),
                     resample_from(resample),
                     pre_bn.size(2),
                     pre_bn.size(3),
                     grad_y_.size(2),
                     grad_y_.size(3)};
  const int64_t channels = s.conv.out_channels;
  const Moments moments{doubles_of(mean, channels, 0), doubles_of(var, channels, 1)};
  const Needs needs{needs_x, needs_skip, needs_weight, needs_bias && !training};
  BatchNormGradients g;
  ConvGradients conv;
  Tensor grad_y = dense(grad_y_, channels_last);
  const bool relu = relu_ && !y;  // what passes the ReLU behind a residual is the gradient of both
  if (y) {
    dispatch_dtype(x, "conv_bn_relu_backward", [&](auto zero) {
      grad_y = relu_backward<decltype(zero)>(grad_y, dense(*y, channels_last), channels_last);
    });
  }
  if (const auto own = own_convolution(x, weight, skip, prologue, o, s.conv)) {
    const Map map = map_of(s, false);
    const bool up = s.resample == Resample::kUpsample2, pool = s.resample == Resample::kMaxPool2;
    const Tensor grad = up ? squares(map, grad_y) : grad_y;
    const float *from = grad.const_data_ptr<float>(), *z = pre_bn.const_data_ptr<float>();
    const auto affine = affine_of<float>(moments, bn.weight, bn.bias, eps);
    g = batch_norm_gradients(gradient_sums(map, from, z, affine, relu, false), moments, bn, grad);
    const auto out = gradient_affine(affine, g.sums, moments.var, eps, double(s.normalized()));
    const BlockGradient lines{
        s, from, z, affine, out, relu, training, pool ? argmax.const_data_ptr<uint8_t>() : nullptr};
    conv = own_convolution_backward(*own, lines, x, weight, skip, prologue, needs);
  } else {
    dispatch_dtype(x, "conv_bn_relu_backward", [&](auto zero) {
      using T = decltype(zero);
      g = batch_norm_backward<T>(map_of(s, channels_last), s, grad_y, pre_bn, argmax, moments, bn,
                                 relu);
    });
    conv = any_layout_convolution_backward(g.z, x, weight, skip, prologue, o, needs, channels_last);
  }
  // Under batch statistics the convolution's bias cancels: its gradient is exactly 0.
  if (needs_bias && training) conv.bias = vector_like(std::vector<double>(channels), weight);
  const Tensor grad_residual = y ? grad_y : nothing(x);
  return {conv.x,   conv.weight, conv.bias,     conv.skip,    grad_residual,
          g.weight, g.bias,      conv.in_scale, conv.in_shift};
}

}  // namespace
}  // namespace colorseg::cpu

STABLE_TORCH_LIBRARY_IMPL(colorseg, CPU, m) {
  m.impl("conv_bn_relu", TORCH_BOX(&colorseg::cpu::conv_bn_relu));
  m.impl("conv_bn_relu_backward", TORCH_BOX(&colorseg::cpu::conv_bn_relu_backward));
  m.impl("conv_bn_relu_inference", TORCH_BOX(&colorseg::cpu::conv_bn_relu_inference));
}

#include "conv2d.h"

#include "own_block.h"

namespace colorseg::cuda {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

Tensor joined(const Tensor& left, const Tensor& right, bool channels_last) {
  std::array<StableIValue, 2> stack{from(std::vector<Tensor>{left, right}), from(int64_t(1))};
  check_torch(torch_call_dispatcher("aten::cat", "", stack.data(), TORCH_ABI_VERSION), "aten::cat");
  return dense(to<Tensor>(stack[0]), channels_last);
}

Tensor with_prologue(const Tensor& x_, const Prologue& prologue, bool channels_last) {
  const Tensor x = dense(x_, channels_last);
  if (!prologue.any()) return x;
  const ChannelVectors v = prologue_vectors(x, prologue);
  return normalized(x, v, prologue.relu, {}, prologue.upsample, channels_last);
}

}  // namespace

Tensor conv_input(const Tensor& x, const OptionalTensor& skip, const Prologue& prologue,
                  bool channels_last) {
  const Tensor main = with_prologue(x, prologue, channels_last);
  return skip ? joined(main, dense(*skip, channels_last), channels_last) : main;
}

Tensor convolution(const Tensor& input_, const Tensor& weight_, const OptionalTensor& bias,
                   const ConvOptions& o, bool channels_last) {
  const Tensor input = padded(input_, o);
  // ATen lets a channels_last weight decide the layout of the output; here x decides
  const Tensor weight = channels_last ? weight_ : dense(weight_, false);
  std::array<StableIValue, 9> stack{from(input),        from(weight),           from(bias),
                                    from(o.stride),     from(aten_padding(o)),  from(o.dilation),
                                    from(o.transposed), from(o.output_padding), from(o.groups)};
  check_torch(torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION),
              "aten::convolution");
  return dense(to<Tensor>(stack[0]), channels_last);
}

namespace {

// Gradients of the two inputs of a convolution that ATen does, joined as they are.
ConvGradients aten_backward(const Tensor& grad_y, const Tensor& x, const Tensor& weight,
                            const OptionalTensor& skip, const Prologue& prologue,
                            const ConvOptions& o, Needs needs, bool channels_last) {
  ConvGradients g{nothing(x), nothing(x), nothing(x), nothing(x), nothing(x), nothing(x)};
  std::tie(g.x, g.weight, g.bias) = std::tuple_cat(
      aten_gradients(grad_y, conv_input(x, skip, prologue, channels_last), weight, o,
                     {needs.x || needs.skip, needs.weight, needs.bias}, channels_last));
  if (skip) {
    const Tensor both = g.x;
    g.x = needs.x ? channel_slice(both, 0, x.size(1)) : nothing(x);
    if (needs.skip) g.skip = channel_slice(both, x.size(1), skip->size(1));
  }
  return g;
}

}  // namespace

ConvGradients convolution_backward(const Tensor& grad_y, const Tensor& x, const Tensor& weight,
                                   const OptionalTensor& skip, const Prologue& prologue,
                                   const ConvOptions& o, Needs needs, bool channels_last) {
  const Tensor grad = dense(grad_y, channels_last);
  const auto own = own_convolution(x, weight, skip, prologue, o);
  ConvGradients g = own ? own_conv2d_backward(*own, grad, needs)
                        : aten_backward(grad, x, weight, skip, prologue, o, needs, channels_last);
  if (needs.weight) g.weight = dense(g.weight, is_channels_last(weight));
  if (!needs.x || !prologue.any()) return g;
  const Tensor dense_x = dense(x, channels_last);
  const ChannelVectors v = prologue_vectors(dense_x, prologue);
  const bool upsampled = prologue.upsample && !own;  // own ones give the gradient of a small pixel
  const NormalizedGradients n =
      normalized_backward(dense(g.x, channels_last), dense_x, v, 0, prologue.relu, upsampled, false,
                          prologue.scale, prologue.shift, channels_last);
  g.x = n.x;
  if (prologue.scale) g.in_scale = n.weight, g.in_shift = n.bias;
  return g;
}

namespace {

Tensor conv2d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
              const OptionalTensor& skip, const OptionalTensor& in_scale,
              const OptionalTensor& in_shift, bool in_relu, bool in_upsample, const Ints& stride,
              const Ints& padding, const Ints& dilation, int64_t groups, bool transposed,
              const Ints& output_padding) {
  const ConvOptions o{stride, padding, dilation, groups, transposed, output_padding};
  const Prologue prologue{in_scale, in_shift, in_relu, in_upsample};
  check_conv2d(x, weight, bias, skip, prologue, o);
  const OnDevice device(x);
  if (const auto own = own_convolution(x, weight, skip, prologue, o)) return own_conv2d(*own, bias);
  const bool channels_last = is_channels_last(x);
  return convolution(conv_input(x, skip, prologue, channels_last), weight, bias, o, channels_last);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv2d_backward(
    const Tensor& grad_y, const Tensor& x, const Tensor& weight, const OptionalTensor& skip,
    const OptionalTensor& in_scale, const OptionalTensor& in_shift, bool in_relu, bool in_upsample,
    const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups, bool transposed,
    const Ints& output_padding, bool needs_x, bool needs_skip, bool needs_weight, bool needs_bias) {
  const ConvOptions o{stride, padding, dilation, groups, transposed, output_padding};
  const Prologue prologue{in_scale, in_shift, in_relu, in_upsample};
  check_conv2d(x, weight, {}, skip, prologue, o);
  const OnDevice device(x);
  const ConvGradients g =
      convolution_backward(grad_y, x, weight, skip, prologue, o,
                           {needs_x, needs_skip, needs_weight, needs_bias}, is_channels_last(x));
  return {g.x, g.weight, g.bias, g.skip, g.in_scale, g.in_shift};
}

}  // namespace
}  // namespace colorseg::cuda

STABLE_TORCH_LIBRARY_IMPL(colorseg, COLORSEG_CUDA_KEY, m) {
  m.impl("conv2d", TORCH_BOX(&colorseg::cuda::conv2d));
  m.impl("conv2d_backward", TORCH_BOX(&colorseg::cuda::conv2d_backward));
}

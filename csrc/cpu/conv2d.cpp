#include "conv2d.h"

#include "fused_block.h"
#include "prologue.h"

namespace colorseg::cpu {

std::optional<OwnConvolution> own_convolution(const Tensor& x, const Tensor& weight,
                                              const OptionalTensor& skip, const Prologue& prologue,
                                              const ConvOptions& o, const ConvShape& s) {
  const bool up = prologue.upsample;
  if (!has_own_kernels(x, weight, skip, o)) return {};
  if (up && (skip || o.transposed || o.stride[0] != 1)) return {};
  OwnConvolution own{
      plan_convolution(s, weight.size(2), weight.size(3), o, up, fixed_bands(s.n)), {}, {}};
  own.held = {dense(x, false), skip ? OptionalTensor(dense(*skip, false)) : skip,
              prologue.scale ? OptionalTensor(to_dtype(*prologue.scale, ScalarType::Float))
                             : prologue.scale,
              prologue.shift ? OptionalTensor(to_dtype(*prologue.shift, ScalarType::Float))
                             : prologue.shift};
  Source& main = own.sources[0];
  main.data = own.held[0]->const_data_ptr<float>(), main.channels = s.in_channels;
  main.relu = prologue.relu;
  if (prologue.scale) {
    main.scale = own.held[2]->const_data_ptr<float>();
    main.offset = own.held[3]->const_data_ptr<float>();
  }
  if (skip)
    own.sources[1].data = own.held[1]->const_data_ptr<float>(),
    own.sources[1].channels = s.skip_channels;
  return own;
}

ConvGradients own_convolution_backward(const OwnConvolution& own, const GradientLines& gradient,
                                       const Tensor& x, const Tensor& weight,
                                       const OptionalTensor& skip, const Prologue& prologue,
                                       Needs needs) {
  const ConvPlan& p = own.plan;
  const int64_t split = own.sources[0].channels;
  const int64_t plane = p.shape.x_size[0] * p.shape.x_size[1], width = p.shape.x_size[1];
  ConvGradients g{nothing(x), nothing(x), nothing(x), nothing(x), nothing(x), nothing(x)};
  if (needs.x) g.x = new_tensor(x, {p.images, split, p.shape.x_size[0], width}, x.scalar_type());
  if (needs.skip)
    g.skip =
        new_tensor(x, {p.images, p.x_channels - split, p.shape.x_size[0], width}, x.scalar_type());
  if (needs.weight) g.weight = new_tensor(x, sizes_of(weight), x.scalar_type());
  std::vector<double> bias(needs.bias ? p.y_channels : 0);
  float* grad_x = needs.x ? g.x.mutable_data_ptr<float>() : nullptr;
  float* grad_skip = needs.skip ? g.skip.mutable_data_ptr<float>() : nullptr;
  const Tensor dense_weight = dense(weight, false);
  const ConvBackward wanted{needs.skip ? p.x_channels
                            : needs.x  ? split
                                       : 0,
                            needs.weight ? g.weight.mutable_data_ptr<float>() : nullptr,
                            needs.bias ? bias.data() : nullptr};
  convolve_backward(p, own.sources, dense_weight.const_data_ptr<float>(), gradient, wanted,
                    [&](const Piece& piece, const PieceResult& result, ConvScratch&) {
                      for (int64_t c = needs.x ? 0 : split; c < wanted.x_channels; ++c) {
                        float* const to = c < split ? grad_x : grad_skip;
                        const int64_t channels = c < split ? split : p.x_channels - split;
                        for (int64_t i = 0; i < piece.images; ++i) {
                          const int64_t at =
                              (piece.image + i) * channels + (c < split ? c : c - split);
                          result.collect(i, c, to + at * plane + result.line() * width);
                        }
                      }
                    });
  if (needs.weight) g.weight = dense(g.weight, is_channels_last(weight));
  if (needs.bias) g.bias = vector_like(bias, weight);
  if (needs.x && (prologue.scale || prologue.relu)) {
    std::tie(g.x, g.in_scale, g.in_shift) =
        prologue_backward(g.x, x, {prologue.scale, prologue.shift, prologue.relu, false}, false);
  }
  return g;
}

bool left_to_aten(const ConvShape& s, const ConvOptions& o, const Prologue& prologue) {
  return !o.transposed && !prologue.any() && s.skip_channels == 0 &&
         s.out_height * s.out_width <= 64 && std::min(s.in_channels, s.out_channels) >= 32;
}

namespace {

std::optional<OwnConvolution> convolution_alone(const Tensor& x, const Tensor& weight,
                                                const OptionalTensor& skip,
                                                const Prologue& prologue, const ConvOptions& o,
                                                const ConvShape& s) {
  if (left_to_aten(s, o, prologue)) return {};
  return own_convolution(x, weight, skip, prologue, o, s);
}

Tensor conv2d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
              const OptionalTensor& skip, const OptionalTensor& in_scale,
              const OptionalTensor& in_shift, bool in_relu, bool in_upsample, const Ints& stride,
              const Ints& padding, const Ints& dilation, int64_t groups, bool transposed,
              const Ints& output_padding) {
  const ConvOptions o{stride, padding, dilation, groups, transposed, output_padding};
  const Prologue prologue{in_scale, in_shift, in_relu, in_upsample};
  const ConvShape s = check_conv2d(x, weight, bias, skip, prologue, o);
  const auto own = convolution_alone(x, weight, skip, prologue, o, s);
  if (!own) {
    const bool channels_last = is_channels_last(x);
    const Tensor input = conv_input(x, skip, prologue, channels_last);
    return any_layout_convolution(input, weight, bias, o, channels_last);
  }
  return convolve_map(*own, weight, bias);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv2d_backward(
    const Tensor& grad_y_, const Tensor& x, const Tensor& weight, const OptionalTensor& skip,
    const OptionalTensor& in_scale, const OptionalTensor& in_shift, bool in_relu, bool in_upsample,
    const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups, bool transposed,
    const Ints& output_padding, bool needs_x, bool needs_skip, bool needs_weight, bool needs_bias) {
  const ConvOptions o{stride, padding, dilation, groups, transposed, output_padding};
  const Prologue prologue{in_scale, in_shift, in_relu, in_upsample};
  const ConvShape s = check_conv2d(x, weight, {}, skip, prologue, o);
  const Needs needs{needs_x, needs_skip, needs_weight, needs_bias};
  ConvGradients g;
  if (const auto own = convolution_alone(x, weight, skip, prologue, o, s)) {
    const Tensor grad_y = dense(grad_y_, false);
    const float* from = grad_y.const_data_ptr<float>();
    const int64_t plane = s.out_height * s.out_width;
    const auto lines = [&](int64_t n, int64_t c, int64_t, int64_t, ConvScratch&) {
      return from + (n * s.out_channels + c) * plane;
    };
    g = own_convolution_backward(*own, lines, x, weight, skip, prologue, needs);
  } else {
    g = any_layout_convolution_backward(grad_y_, x, weight, skip, prologue, o, needs,
                                        is_channels_last(x));
  }
  return {g.x, g.weight, g.bias, g.skip, g.in_scale, g.in_shift};
}

}  // namespace
}  // namespace colorseg::cpu

STABLE_TORCH_LIBRARY_IMPL(colorseg, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&colorseg::cpu::conv2d));
  m.impl("conv2d_backward", TORCH_BOX(&colorseg::cpu::conv2d_backward));
}

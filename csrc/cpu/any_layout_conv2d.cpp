#include "any_layout_conv2d.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <cstring>

#include "pixel_conv2d.h"
#include "prologue.h"
#include "weight_gradient.h"

namespace colorseg::cpu {
namespace {

constexpr int64_t kThreadBytes = 1 << 17;  // less to copy than this is not worth waking a thread

// aten_gradients, but for those that are faster here.
std::array<Tensor, 3> gradients(const Tensor& grad_y, const Tensor& input, const Tensor& weight,
                                const ConvOptions& o, ConvMask wanted, bool channels_last) {
  const ConvOptions adjoint = adjoint_options(o, weight);
  const bool own_input = wanted.input && channels_last &&
                         pixel_packing(grad_y, weight, adjoint, true) == Packing::kWinograd2;
  const bool own_weight =
      wanted.weight && gradient_by_taps(grad_y, input, weight, o, channels_last);
  const ConvMask others{wanted.input && !own_input, wanted.weight && !own_weight, wanted.bias};
  std::array<Tensor, 3> all{nothing(input), nothing(weight), nothing(weight)};
  if (others.input || others.weight || others.bias)
    all = aten_gradients(grad_y, input, weight, o, others, channels_last);
  if (own_input)
    all[0] = pixel_convolution(grad_y, pack_pixels(weight, Packing::kWinograd2, true), {},
                               adjoint.padding, o.dilation);
  if (own_weight)
    all[1] = dense(weight_gradient_by_taps(grad_y, input, weight, o), is_channels_last(weight));
  return all;
}

// torch.cat([left, right], 1) of two dense maps: whole images are copied, or pixels in
// channels_last.
Tensor joined(const Tensor& left, const Tensor& right, bool channels_last) {
  const int64_t n = left.size(0), pixels = left.size(2) * left.size(3);
  const int64_t channels = left.size(1) + right.size(1);
  Tensor both = new_tensor(left, {n, channels, left.size(2), left.size(3)}, left.scalar_type(),
                           channels_last);
  const int64_t pieces = channels_last ? n * pixels : n;
  if (pieces == 0 || pixels == 0) return both;
  const int64_t bytes = left.element_size() * (channels_last ? 1 : pixels);
  const int64_t left_bytes = bytes * left.size(1), right_bytes = bytes * right.size(1);
  const auto* from_left = static_cast<const char*>(left.const_data_ptr());
  const auto* from_right = static_cast<const char*>(right.const_data_ptr());
  auto* to = static_cast<char*>(both.mutable_data_ptr());
  const int64_t grain = kThreadBytes / (left_bytes + right_bytes) + 1;
  torch::stable::parallel_for(0, pieces, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      char* piece = to + i * (left_bytes + right_bytes);
      std::memcpy(piece, from_left + i * left_bytes, left_bytes);
      std::memcpy(piece + left_bytes, from_right + i * right_bytes, right_bytes);
    }
  });
  return both;
}

// The part of the weight that meets input channels [first, first + count); groups are 1.
Tensor weight_slice(const Tensor& weight, const ConvOptions& o, int64_t first, int64_t count) {
  Tensor whole = weight;
  return torch::stable::contiguous(
      torch::stable::narrow(whole, o.transposed ? 0 : 1, first, count));
}

Tensor with_prologue(const Tensor& x, const Prologue& prologue, bool channels_last) {
  return prologue.any() ? apply_prologue(x, prologue, channels_last) : dense(x, channels_last);
}

}  // namespace

Tensor conv_input(const Tensor& x, const OptionalTensor& skip, const Prologue& prologue,
                  bool channels_last) {
  const Tensor main = with_prologue(x, prologue, channels_last);
  return skip ? joined(main, dense(*skip, channels_last), channels_last) : main;
}

Tensor any_layout_convolution(const Tensor& input_, const Tensor& weight_,
                              const OptionalTensor& bias, const ConvOptions& o,
                              bool channels_last) {
  if (channels_last && pixel_packing(input_, weight_, o, true) == Packing::kWinograd2)
    return pixel_convolution(input_, pack_pixels(weight_, Packing::kWinograd2, false), bias,
                             o.padding, o.dilation);
  const Tensor input = padded(input_, o);
  // ATen lets a channels_last weight decide the layout of the output; here x decides
  const Tensor weight = channels_last ? weight_ : dense(weight_, false);
  const Ints padding = aten_padding(o);
  AtenTensorHandle bias_handle = bias ? bias->get() : nullptr, result;
  // the C shim, which spares packing every argument for the dispatcher
  check_torch(
      aoti_torch_cpu_convolution(input.get(), weight.get(), bias ? &bias_handle : nullptr,
                                 o.stride.data(), 2, padding.data(), 2, o.dilation.data(), 2,
                                 o.transposed, o.output_padding.data(), 2, o.groups, &result),
      "aten::convolution");
  return dense(Tensor(result), channels_last);
}

ConvGradients any_layout_convolution_backward(const Tensor& grad_y_, const Tensor& x,
                                              const Tensor& weight, const OptionalTensor& skip,
                                              const Prologue& prologue, const ConvOptions& o,
                                              Needs needs, bool channels_last) {
  const Tensor grad_y = dense(grad_y_, channels_last);
  const Tensor main = with_prologue(x, prologue, channels_last);
  ConvGradients g{nothing(x), nothing(x), nothing(x), nothing(x), nothing(x), nothing(x)};
  const auto backward = [&](const Tensor& input, const Tensor& w, ConvMask wanted) {
    return gradients(grad_y, input, w, o, wanted, channels_last);
  };
  if (!skip) {
    std::tie(g.x, g.weight, g.bias) =
        std::tuple_cat(backward(main, weight, {needs.x, needs.weight, needs.bias}));
  } else {
    const Tensor second = dense(*skip, channels_last);
    const int64_t split = x.size(1), rest = skip->size(1);
    const bool grouped = o.groups > 1;  // then no slice of the weight belongs to one input
    const ConvMask mask{grouped && (needs.x || needs.skip), needs.weight, needs.bias};
    if (mask.input || mask.weight || mask.bias) {
      Tensor both;
      std::tie(both, g.weight, g.bias) =
          std::tuple_cat(backward(joined(main, second, channels_last), weight, mask));
      if (mask.input && needs.x) g.x = channel_slice(both, 0, split);
      if (mask.input && needs.skip) g.skip = channel_slice(both, split, rest);
    }
    const ConvMask input_only{true, false, false};
    if (needs.x && !grouped) g.x = backward(main, weight_slice(weight, o, 0, split), input_only)[0];
    if (needs.skip && !grouped)
      g.skip = backward(second, weight_slice(weight, o, split, rest), input_only)[0];
  }
  if (needs.x && prologue.any()) {
    std::tie(g.x, g.in_scale, g.in_shift) = prologue_backward(g.x, x, prologue, channels_last);
  }
  return g;
}

}  // namespace colorseg::cpu

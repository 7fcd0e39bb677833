#include "aten_convolution.h"

namespace colorseg {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

Tensor unpadded(Tensor grad, const ConvOptions& o, int64_t height, int64_t width) {
  if (is_symmetric(o)) return grad;
  Tensor rows = torch::stable::narrow(grad, 2, o.padding[0], height);
  return torch::stable::narrow(rows, 3, o.padding[2], width);
}

}  // namespace

bool is_symmetric(const ConvOptions& o) {
  return o.padding[0] == o.padding[1] && o.padding[2] == o.padding[3];
}

Tensor padded(const Tensor& input, const ConvOptions& o) {
  if (is_symmetric(o)) return input;
  return torch::stable::pad(input, {o.padding[2], o.padding[3], o.padding[0], o.padding[1]});
}

Ints aten_padding(const ConvOptions& o) {
  return is_symmetric(o) ? Ints{o.padding[0], o.padding[2]} : Ints{0, 0};
}

std::array<Tensor, 3> aten_gradients(const Tensor& grad_y, const Tensor& input_,
                                     const Tensor& weight_, const ConvOptions& o, ConvMask wanted,
                                     bool channels_last) {
  const Tensor input = padded(input_, o), weight = channels_last ? weight_ : dense(weight_, false);
  const bool mask[3] = {wanted.input, wanted.weight, wanted.bias};
  const std::optional<Ints> bias_sizes =
      wanted.bias ? std::optional<Ints>(Ints{grad_y.size(1)}) : std::optional<Ints>();
  std::array<StableIValue, 11> stack{from(grad_y),
                                     from(input),
                                     from(weight),
                                     from(bias_sizes),
                                     from(o.stride),
                                     from(aten_padding(o)),
                                     from(o.dilation),
                                     from(o.transposed),
                                     from(o.output_padding),
                                     from(o.groups),
                                     from(torch::headeronly::HeaderOnlyArrayRef<bool>(mask, 3))};
  check_torch(
      torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION),
      "aten::convolution_backward");
  const Tensor grads[] = {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2])};
  const int64_t height = input_.size(2), width = input_.size(3);
  return {
      wanted.input ? dense(unpadded(grads[0], o, height, width), channels_last) : nothing(input),
      wanted.weight ? dense(grads[1], is_channels_last(weight_)) : nothing(weight),
      wanted.bias ? grads[2] : nothing(weight)};
}

Tensor channel_slice(Tensor grad, int64_t first, int64_t count) {
  return torch::stable::clone(torch::stable::narrow(grad, 1, first, count));
}

}  // namespace colorseg

#include "prologue.h"

#include "block.h"

namespace colorseg::cpu {
namespace {

Map map_of(const Tensor& x, bool upsample, bool channels_last) {
  const int64_t scale = upsample ? 2 : 1;
  return {x.size(0),         x.size(1),         x.size(2),    x.size(3),
          scale * x.size(2), scale * x.size(3), channels_last};
}

template <typename T>
ChannelAffine<T> affine_of(const Prologue& prologue, int64_t channels) {
  ChannelAffine<T> a(channels);
  const auto scale = doubles_of(prologue.scale, channels, 1),
             shift = doubles_of(prologue.shift, channels, 0);
  for (int64_t c = 0; c < channels; ++c) a.scale[c] = T(scale[c]), a.offset[c] = T(shift[c]);
  return a;
}

}  // namespace

Tensor apply_prologue(const Tensor& x_, const Prologue& prologue, bool channels_last) {
  const Tensor x = widened(dense(x_, channels_last));
  const Map map = map_of(x, prologue.upsample, channels_last);
  const Ints sizes{map.n, map.channels, map.full_height, map.full_width};
  Tensor y = new_tensor(x, sizes, x.scalar_type(), channels_last);
  dispatch_dtype(x, "conv2d", [&](auto zero) {
    using T = decltype(zero);
    normalize(map, x.const_data_ptr<T>(), affine_of<T>(prologue, map.channels), prologue.relu,
              prologue.upsample, y.mutable_data_ptr<T>());
  });
  return to_dtype(y, x_.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> prologue_backward(const Tensor& grad_, const Tensor& x_,
                                                     const Prologue& prologue, bool channels_last) {
  const Tensor x = dense(x_, channels_last), grad = dense(grad_, channels_last);
  const Map map = map_of(x, prologue.upsample, channels_last);
  Tensor grad_x =
      new_tensor(x, {map.n, map.channels, map.height, map.width}, x.scalar_type(), channels_last);
  Tensor grad_scale = nothing(x), grad_shift = nothing(x);
  dispatch_dtype(x, "conv2d_backward", [&](auto zero) {
    using T = decltype(zero);
    const auto affine = affine_of<T>(prologue, map.channels);
    ChannelAffine<T> out(map.channels);
    out.scale = affine.scale;
    const auto *g = grad.const_data_ptr<T>(), *values = x.const_data_ptr<T>();
    if (prologue.scale) {
      const GradientSums sums =
          gradient_sums(map, g, values, affine, prologue.relu, prologue.upsample);
      grad_scale = vector_like(sums.gx, *prologue.scale);
      grad_shift = vector_like(sums.g, *prologue.scale);
    }
    gradient_apply(map, g, values, affine, prologue.relu, prologue.upsample, out, false, nullptr,
                   grad_x.mutable_data_ptr<T>());
  });
  return {grad_x, grad_scale, grad_shift};
}

}  // namespace colorseg::cpu

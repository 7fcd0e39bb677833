#include "channels.h"

namespace colorseg::cuda {

Tensor normalized(const Tensor& x, const ChannelVectors& v, bool relu,
                  const OptionalTensor& residual, bool upsample, bool channels_last) {
  const PixelMap map = channel_map(x, channels_last);
  const int64_t scale = upsample ? 2 : 1;
  Tensor y = new_tensor(x, {x.size(0), x.size(1), scale * x.size(2), scale * x.size(3)},
                        x.scalar_type(), channels_last);
  const OnDevice device(x);
  dispatch_element(x, "normalize", [&](auto zero) {
    using T = decltype(zero);
    using A = ArithmeticType<T>;
    normalize(map, static_cast<const T*>(x.const_data_ptr()),
              static_cast<const ChannelAffine<A>*>(v.affine<A>()), relu, pointer<T>(residual),
              upsample ? x.size(3) : 0, pointer<T>(y), device.stream());
  });
  return y;
}

NormalizedGradients normalized_backward(const Tensor& grad, const Tensor& x,
                                        const ChannelVectors& v, double eps, bool relu,
                                        bool upsampled, bool batch_statistics,
                                        const OptionalTensor& weight, const OptionalTensor& bias,
                                        bool channels_last) {
  const PixelMap map = channel_map(x, channels_last);
  const ScalarType wide = arithmetic_type(x);
  const Tensor grad_x = new_tensor(x, sizes_of(x), x.scalar_type(), channels_last);
  const Tensor parts = new_tensor(x, {channel_chunks(map), map.channels, 2}, ScalarType::Double);
  const Tensor out = new_tensor(x, {map.channels, 3}, wide);
  const auto vector = [&](const OptionalTensor& of) {
    return new_tensor(x, {of ? map.channels : 0}, wide);
  };
  const Tensor grad_weight = vector(weight), grad_bias = vector(bias);
  const OnDevice device(x);
  dispatch_element(x, "normalize_backward", [&](auto zero) {
    using T = decltype(zero);
    using A = ArithmeticType<T>;
    const ChannelAffine<A>* affine = v.affine<A>();
    const NormalizeBackward<T, A> p{map,
                                    static_cast<const T*>(grad.const_data_ptr()),
                                    static_cast<const T*>(x.const_data_ptr()),
                                    affine,
                                    relu,
                                    upsampled ? x.size(3) : 0};
    add_gradients(p, pointer<GradientSums>(parts), device.stream());
    finish_gradients(map, static_cast<const GradientSums*>(parts.const_data_ptr()),
                     static_cast<const double*>(v.var.const_data_ptr()), eps,
                     double(map.n * map.pixels), batch_statistics, affine, pointer<A>(grad_weight),
                     pointer<A>(grad_bias), pointer<ChannelAffine<A>>(out), device.stream());
    apply_gradients(p, static_cast<const ChannelAffine<A>*>(out.const_data_ptr()),
                    pointer<T>(grad_x), device.stream());
  });
  return {grad_x, weight ? in_dtype(grad_weight, weight->scalar_type()) : nothing(x),
          bias ? in_dtype(grad_bias, bias->scalar_type()) : nothing(x)};
}

Tensor channel_sums(const Tensor& map) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(map), from(std::optional<Ints>(Ints{0, 2, 3})), from(false),
                                    from(std::optional<ScalarType>())};
  check_torch(torch_call_dispatcher("aten::sum", "dim_IntList", stack.data(), TORCH_ABI_VERSION),
              "aten::sum");
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace colorseg::cuda

#include "channels.h"

namespace colorseg::cuda {

ChannelVectors prologue_vectors(const Tensor& x, const Prologue& prologue) {
  ChannelVectors v(x, x.size(1));
  torch::stable::zero_(v.mean);
  torch::stable::fill_(v.var, 1.0);
  const OnDevice device(x);
  dispatch_element(x, "conv2d", [&](auto zero) {
    using A = ArithmeticType<decltype(zero)>;
    const BatchNormTensors<A> bn(x, {prologue.scale, prologue.shift, {}, {}, false, 0});
    affine_of(x.size(1), pointer<double>(v.mean), pointer<double>(v.var), bn.view(), v.affine<A>(),
              device.stream());
  });
  return v;
}

Tensor moments(const Tensor& x, bool channels_last) {
  const PixelMap map = channel_map(x, channels_last);
  const Tensor parts = new_tensor(x, {channel_chunks(map), map.channels, 3}, ScalarType::Double);
  const OnDevice device(x);
  dispatch_element(x, "batch_norm", [&](auto zero) {
    add_moments(map, static_cast<const decltype(zero)*>(x.const_data_ptr()),
                pointer<Moments>(parts), device.stream());
  });
  return parts;
}

ChannelVectors finished_moments(const Tensor& x, const Tensor& parts, const BatchNormOptions& bn) {
  ChannelVectors v(x, x.size(1));
  const OnDevice device(x);
  dispatch_element(x, "batch_norm", [&](auto zero) {
    using A = ArithmeticType<decltype(zero)>;
    const BatchNormTensors<A> norm(x, bn);
    finish_moments(x.size(1), static_cast<const Moments*>(pointer<Moments>(parts)), parts.size(0),
                   norm.view(), pointer<double>(v.mean), pointer<double>(v.var), v.affine<A>(),
                   device.stream());
  });
  return v;
}

Pool pool_of(const BlockShape& s, bool channels_last) {
  return {s.conv.n,     s.conv.out_channels, s.height,
          s.width,      s.conv.out_width,    s.conv.out_height * s.conv.out_width,
          channels_last};
}

Pooled max_pooled(const Tensor& full, const BlockShape& s, bool channels_last) {
  const Pool pool = pool_of(s, channels_last);
  const Pooled pooled{new_tensor(full, {pool.n, pool.channels, pool.height, pool.width},
                                 full.scalar_type(), channels_last),
                      new_tensor(full, {pool.bytes()}, ScalarType::Byte)};
  const OnDevice device(full);
  dispatch_element(full, "max_pool", [&](auto zero) {
    using T = decltype(zero);
    max_pool(pool, static_cast<const T*>(full.const_data_ptr()), pointer<T>(pooled.map),
             pointer<uint8_t>(pooled.argmax), device.stream());
  });
  return pooled;
}

Tensor max_pooled_backward(const Tensor& grad, const Tensor& argmax, const BlockShape& s,
                           bool channels_last) {
  Tensor full =
      new_tensor(grad, {s.conv.n, s.conv.out_channels, s.conv.out_height, s.conv.out_width},
                 grad.scalar_type(), channels_last);
  if (s.conv.out_height % 2 || s.conv.out_width % 2) torch::stable::zero_(full);
  const OnDevice device(grad);
  dispatch_element(grad, "max_pool_backward", [&](auto zero) {
    using T = decltype(zero);
    max_pool_backward(pool_of(s, channels_last), static_cast<const T*>(grad.const_data_ptr()),
                      static_cast<const uint8_t*>(argmax.const_data_ptr()), pointer<T>(full),
                      device.stream());
  });
  return full;
}

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
    finish_gradients(map.channels, static_cast<const GradientSums*>(parts.const_data_ptr()),
                     parts.size(0), static_cast<const double*>(v.var.const_data_ptr()), eps,
                     double(map.n * map.pixels), batch_statistics, affine, pointer<A>(grad_weight),
                     pointer<A>(grad_bias), pointer<ChannelAffine<A>>(out), device.stream());
    apply_gradients(p, static_cast<const ChannelAffine<A>*>(out.const_data_ptr()),
                    pointer<T>(grad_x), device.stream());
  });
  return {grad_x, weight ? in_dtype(grad_weight, weight->scalar_type()) : nothing(x),
          bias ? in_dtype(grad_bias, bias->scalar_type()) : nothing(x)};
}

Tensor channel_sums(const Tensor& map, ScalarType dtype) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(map), from(std::optional<Ints>(Ints{0, 2, 3})),
                                    from(false), from(std::optional<ScalarType>(dtype))};
  check_torch(torch_call_dispatcher("aten::sum", "dim_IntList", stack.data(), TORCH_ABI_VERSION),
              "aten::sum");
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace colorseg::cuda

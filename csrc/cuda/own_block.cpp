#include "own_block.h"

#include "../precision.h"

namespace colorseg::cuda {
namespace {

// The convolution's result, pooled if `pool`, goes to y; returns parts of its moments if they are
// wanted.
Tensor convolve_to(const OwnConvolution& own, const OptionalTensor& bias, const Tensor& y,
                   bool pool = false, const OptionalTensor& argmax = {},
                   bool wants_moments = false) {
  const OnDevice device(y);
  Tensor parts = nothing(y);
  OptionalTensor added;
  if (bias) added = in_dtype(*bias, ScalarType::Float);
  dispatch_own(y, [&](auto zero) {
    using T = decltype(zero);
    Convolution<T> p = forward_plan<T>(own).value();
    parts = new_tensor(y, {wants_moments ? p.tiling.blocks : 0, y.size(1), 3}, ScalarType::Double);
    p.bias = pointer<float>(added);
    p.pool = pool;
    if (argmax) p.codes = pointer<uint8_t>(*argmax);
    p.targets[0].y = pointer<T>(y);
    p.targets[0].moments = pointer<Moments>(parts);
    const Tensor packed =
        own.packed ? *own.packed
                   : packed_weights<T>({{p.taps, p.in, p.out, own.weight, weight_strides(own)}},
                                       own.strict, device.stream())[0];
    run_convolution(p, packed, device.stream());
    return true;
  });
  return parts;
}

Tensor result_of(const OwnConvolution& own, int64_t height, int64_t width) {
  const Tensor& x = own.main.map;
  return new_tensor(x, {own.shape.n, own.shape.out_channels, height, width}, x.scalar_type(), true);
}

// In half types cuDNN's tiles of 64 result channels take half the time of ours, or less, and that
// is more than a sweep over the result takes; unless they need a copy of the inputs.
bool is_faster_by_cudnn(const Tensor& x, const ConvShape& s, const Tensor& weight,
                        const OptionalTensor& skip, const Prologue& prologue,
                        const ConvOptions& o) {
  const int64_t products = s.in_channels * weight.size(2) * weight.size(3);
  const bool half = arithmetic_type(x) != x.scalar_type();
  return half && s.out_channels >= 64 && products >= 64 && !skip && !prologue.scale &&
         !prologue.relu && !prologue.upsample;
}

// Whether a tile's positions are neighbors in the result, so that a max-pool finds its squares.
bool has_squares(const OwnConvolution& own) {
  return forward_taps(own.options, own.weight.size(2), own.weight.size(3), own.upsampled)
             .value()
             .phases() == 1;
}

}  // namespace

std::optional<OwnConvolution> own_convolution(const Tensor& x, const Tensor& weight,
                                              const OptionalTensor& skip, const Prologue& prologue,
                                              const ConvOptions& o) {
  if (!is_channels_last(x) || (prologue.upsample && skip)) return {};
  const ConvShape shape = check_conv2d(x, weight, {}, skip, prologue, o);
  if (!has_own_channels(shape) || is_faster_by_cudnn(x, shape, weight, skip, prologue, o))
    return {};  // before anything is copied
  OwnConvolution own{{x, {}, prologue.relu}, {}, prologue.upsample, dense(weight, false), o, shape,
                     !allows_tf32()};
  if (skip) own.skip = ConvInput{dense(*skip, true)};
  if (!has_own_kernels(own)) return {};
  if (prologue.scale) own.main.affines = prologue_vectors(x, prologue).affines;
  return own;
}

Tensor own_conv2d(const OwnConvolution& own, const OptionalTensor& bias) {
  const Tensor y = result_of(own, own.shape.out_height, own.shape.out_width);
  convolve_to(own, bias, y);
  return y;
}

ConvGradients own_conv2d_backward(const OwnConvolution& own, const Tensor& grad, Needs needs) {
  const Tensor& x = own.main.map;
  ConvGradients g{nothing(x), nothing(x), nothing(x), nothing(x), nothing(x), nothing(x)};
  const auto like = [](const Tensor& map) {
    return new_tensor(map, sizes_of(map), map.scalar_type(), true);
  };
  const OnDevice device(x);
  dispatch_own(x, [&](auto zero) {
    using T = decltype(zero);
    if (needs.weight) g.weight = run_weight_gradient<T>(own, grad, device.stream());
    if (!needs.x && !needs.skip) return true;
    Convolution<T> p = gradient_plan<T>(own, grad, needs.skip);
    g.x = like(x);
    p.targets[0].y = pointer<T>(g.x);
    if (needs.skip) {
      g.skip = like(own.skip->map);
      p.targets[1].y = pointer<T>(g.skip);
    }
    const ToPack weight{p.taps, p.in, p.out, own.weight, gradient_strides(own)};
    run_convolution(p, packed_weights<T>({weight}, own.strict, device.stream())[0],
                    device.stream());
    return true;
  });
  if (!needs.x) g.x = nothing(x);
  if (needs.bias) g.bias = channel_sums(grad, own.weight.scalar_type());
  return g;
}

Tensor own_resampled(const OwnConvolution& own, const BlockShape& s, const OptionalTensor& bias) {
  const bool pool = s.resample == Resample::kMaxPool2;
  if (pool && !has_squares(own)) return max_pooled(own_conv2d(own, bias), s, true).map;
  const Tensor map = result_of(own, s.height, s.width);
  convolve_to(own, bias, map, pool);
  return map;
}

BlockMap own_block_map(const OwnConvolution& own, const BlockShape& s, const OptionalTensor& bias,
                       const BatchNormOptions& bn) {
  const bool pool = s.resample == Resample::kMaxPool2;
  const bool counted = bn.batch_statistics && s.normalized() > 0;
  const bool whole_bytes = s.conv.out_channels % 4 == 0;  // of the argmax, for each pixel
  if (pool && !(whole_bytes && has_squares(own))) {
    const Pooled z = max_pooled(own_conv2d(own, bias), s, true);
    const Tensor parts = counted ? moments(z.map, true) : nothing(z.map);
    return {z.map, z.argmax, finished_moments(z.map, parts, bn)};
  }
  const Tensor map = result_of(own, s.height, s.width);
  OptionalTensor argmax;
  if (pool) argmax = new_tensor(map, {pool_of(s, true).bytes()}, ScalarType::Byte);
  const Tensor parts = convolve_to(own, bias, map, pool, argmax, counted);
  return {map, argmax ? *argmax : nothing(map), finished_moments(map, parts, bn)};
}

}  // namespace colorseg::cuda

// See kernels/color_cross_entropy.cu.  Half logits are read as they are; the loss is float32.
#include "../color_cross_entropy.h"

#include "device.h"

namespace colorseg::cuda {
namespace {

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// What both directions take, in memory that lives as long as this.
template <typename T>
class Arguments {
  using A = ArithmeticType<T>;

 public:
  Arguments(const Tensor& logits, const PixelMap& map, const Tensor& target,
            const OptionalTensor& palette, const OptionalTensor& weight, int64_t ignore_index,
            double label_smoothing, const SoftOptions& soft, Reduction reduction)
      : logits_(logits), labels_(target, palette, arithmetic_type(logits), ignore_index) {
    if (weight) weight_ = in_dtype(*weight, arithmetic_type(logits));
    view.map = map;
    view.logits = static_cast<const T*>(logits.const_data_ptr());
    view.labels = labels_.source();
    view.weight = pointer<A>(weight_);
    view.smoothing = A(label_smoothing);
    view.soft = {static_cast<int>(soft.neighbors), A(soft.neighbors ? soft.falloff() : 0)};
    view.mean = reduction == Reduction::kMean;
  }

  CrossEntropy<T, A> view{};

 private:
  Tensor logits_;
  OptionalTensor weight_;
  DeviceLabels<A> labels_;
};

PixelMap map_of(const PixelShape& s, bool channels_last) {
  const PixelMap map{s.n, s.channels, s.pixels(), channels_last};
  check_grid(map);
  return map;
}

Outputs color_cross_entropy(const Tensor& logits_, const Tensor& target,
                            const OptionalTensor& palette, const OptionalTensor& weight,
                            int64_t ignore_index, double label_smoothing, int64_t soft_neighbors,
                            double soft_sigma, const std::string& reduction_, bool return_stats,
                            bool with_gradient) {
  const SoftOptions soft{soft_neighbors, soft_sigma};
  const PixelShape s =
      check_color_cross_entropy(logits_, target, palette, weight, label_smoothing, soft);
  const Reduction reduction = reduction_from(reduction_);
  const bool channels_last = is_channels_last(logits_), each = reduction == Reduction::kNone;
  COLORSEG_CHECK(!(with_gradient && each),
                 "with_gradient needs a scalar loss: reduction mean or sum, got none");
  check_label_values(target, s.channels, ignore_index);
  const PixelMap map = map_of(s, channels_last);
  const Tensor logits = dense(logits_, channels_last);
  const OnDevice device(logits);
  const Ints sizes{s.n, s.height, s.width};
  const ScalarType wide = arithmetic_type(logits);
  const Tensor per_pixel = new_tensor(logits, each ? sizes : Ints{0}, wide);
  const Tensor log_sum_exp = new_tensor(logits, sizes, wide);
  const Tensor argmax = new_tensor(logits, return_stats ? sizes : Ints{0}, ScalarType::Long);
  const Tensor gradient = with_gradient ? new_tensor(logits, {s.n, s.channels, s.height, s.width},
                                                     logits.scalar_type(), channels_last)
                                        : nothing(logits);
  const Tensor loss = new_tensor(logits, {}, wide), correction = new_tensor(logits, {}, wide);
  const Tensor normalizer = new_tensor(logits, {}, ScalarType::Double);
  const Tensor correct = new_tensor(logits, {}, ScalarType::Long);
  const Tensor valid = new_tensor(logits, {}, ScalarType::Long);
  const Tensor sums = new_tensor(logits, {pixel_chunks(map), 4}, ScalarType::Double);
  dispatch_element(logits, "color_cross_entropy", [&](auto zero) {
    using T = decltype(zero);
    Arguments<T> arguments(logits, map, target, palette, weight, ignore_index, label_smoothing,
                           soft, reduction);
    auto& p = arguments.view;
    using A = ArithmeticType<T>;
    p.log_sum_exp = pointer<A>(log_sum_exp), p.loss = pointer<A>(per_pixel);
    p.argmax = pointer<int64_t>(argmax), p.gradient = pointer<T>(gradient);
    p.sums = pointer<CrossEntropySums>(sums);
    cross_entropy(p,
                  {pointer<A>(loss), pointer<double>(normalizer), pointer<int64_t>(correct),
                   pointer<int64_t>(valid), pointer<A>(correction)},
                  device.stream());
  });
  return {each ? per_pixel : loss, log_sum_exp, normalizer, argmax, correct, valid, gradient};
}

Tensor color_cross_entropy_backward(const Tensor& grad_loss, const Tensor& logits_,
                                    const Tensor& target, const OptionalTensor& palette,
                                    const OptionalTensor& weight, const Tensor& log_sum_exp,
                                    const Tensor& normalizer, int64_t ignore_index,
                                    double label_smoothing, int64_t soft_neighbors,
                                    double soft_sigma, const std::string& reduction_) {
  const SoftOptions soft{soft_neighbors, soft_sigma};
  const PixelShape s =
      check_color_cross_entropy(logits_, target, palette, weight, label_smoothing, soft);
  const Reduction reduction = reduction_from(reduction_);
  const bool channels_last = is_channels_last(logits_), each = reduction == Reduction::kNone;
  check_label_values(target, s.channels, ignore_index);
  const PixelMap map = map_of(s, channels_last);
  const Tensor logits = dense(logits_, channels_last);
  const OnDevice device(logits);
  const Tensor upstream = in_dtype(grad_loss, arithmetic_type(logits));
  const Tensor gradient =
      new_tensor(logits, {s.n, s.channels, s.height, s.width}, logits.scalar_type(), channels_last);
  dispatch_element(logits, "color_cross_entropy_backward", [&](auto zero) {
    using T = decltype(zero);
    Arguments<T> arguments(logits, map, target, palette, weight, ignore_index, label_smoothing,
                           soft, reduction);
    auto& p = arguments.view;
    using A = ArithmeticType<T>;
    p.log_sum_exp = pointer<A>(log_sum_exp), p.gradient = pointer<T>(gradient);
    cross_entropy_backward(
        p, static_cast<const A*>(upstream.const_data_ptr()), each,
        reduction == Reduction::kMean ? normalizer.const_data_ptr<double>() : nullptr,
        device.stream());
  });
  return gradient;
}

void color_cross_entropy_scale_(Tensor gradient, const Tensor& grad_loss) {
  const OnDevice device(gradient);
  const Tensor factor = in_dtype(grad_loss, arithmetic_type(gradient));
  dispatch_element(gradient, "color_cross_entropy_scale_", [&](auto zero) {
    using T = decltype(zero);
    using A = ArithmeticType<T>;
    scale(gradient.numel(), static_cast<const A*>(factor.const_data_ptr()), pointer<T>(gradient),
          device.stream());
  });
}

}  // namespace
}  // namespace colorseg::cuda

STABLE_TORCH_LIBRARY_IMPL(colorseg, COLORSEG_CUDA_KEY, m) {
  m.impl("color_cross_entropy", TORCH_BOX(&colorseg::cuda::color_cross_entropy));
  m.impl("color_cross_entropy_backward", TORCH_BOX(&colorseg::cuda::color_cross_entropy_backward));
  m.impl("color_cross_entropy_scale_", TORCH_BOX(&colorseg::cuda::color_cross_entropy_scale_));
}

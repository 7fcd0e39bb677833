// See kernels/soft_iou_loss.cu.  Half logits are read as they are; the loss is float32.
#include "../soft_iou_loss.h"

#include "device.h"

namespace colorseg::cuda {
namespace {

ClassList class_list(const Ints& classes) {
  COLORSEG_CHECK(classes.size() <= kMostClasses, "soft IoU on CUDA takes at most ", kMostClasses,
                 " classes, got ", classes.size());
  ClassList list{static_cast<int>(classes.size()), {}};
  for (size_t k = 0; k < classes.size(); ++k) {
    COLORSEG_CHECK(classes[k] <= INT16_MAX, "soft IoU on CUDA takes classes up to ", INT16_MAX,
                   ", got ", classes[k]);
    list.ids[k] = static_cast<int16_t>(classes[k]);
  }
  return list;
}

// What both directions take, in memory that lives as long as this.
template <typename T>
class Arguments {
  using A = ArithmeticType<T>;

 public:
  Arguments(const Tensor& logits, const PixelShape& s, bool channels_last, const Tensor& target,
            const SoftIouOptions& o, const Tensor& sums)
      : logits_(logits), labels_(target, {}, arithmetic_type(logits), o.ignore_index) {
    if (o.weight) weight_ = in_dtype(*o.weight, arithmetic_type(logits));
    view.map = {s.n, s.channels, s.pixels(), channels_last};
    check_grid(view.map);
    view.logits = static_cast<const T*>(logits.const_data_ptr());
    view.labels = labels_.source();
    view.classes = class_list(o.classes);
    view.per_image = o.per_image;
    view.smooth_numerator = o.smooth_numerator, view.smooth_denominator = o.smooth_denominator;
    view.weight = pointer<A>(weight_);
    view.mean = o.reduction == Reduction::kMean;
    view.sums = pointer<double>(sums);
  }

  SoftIouLoss<T, A> view{};

 private:
  Tensor logits_;
  OptionalTensor weight_;
  DeviceLabels<A> labels_;
};

std::tuple<Tensor, Tensor, Tensor> soft_iou_loss(const Tensor& logits_, const Tensor& target,
                                                 const Ints& classes, bool per_image,
                                                 double smooth_numerator, double smooth_denominator,
                                                 std::optional<int64_t> ignore_index,
                                                 const OptionalTensor& weight,
                                                 const std::string& reduction, bool keep) {
  const SoftIouOptions o{classes,      per_image, smooth_numerator,         smooth_denominator,
                         ignore_index, weight,    reduction_from(reduction)};
  const PixelShape s = check_soft_iou_loss(logits_, target, o);
  const bool channels_last = is_channels_last(logits_), two = s.channels == 2;
  COLORSEG_CHECK(!keep || s.channels <= 255, "keep needs at most 255 channels, got ", s.channels);
  check_label_values(target, s.channels, ignore_index);
  const Tensor logits = dense(logits_, channels_last);
  const OnDevice device(logits);
  const int64_t selected = static_cast<int64_t>(classes.size()), rows = per_image ? s.n : 1;
  const bool reduced = o.reduction != Reduction::kNone;
  const Tensor sums = new_tensor(logits, {rows, selected, 2}, ScalarType::Double);
  const Tensor kept = new_tensor(logits, keep ? Ints{s.n, s.height, s.width} : Ints{0},
                                 two ? logits.scalar_type() : ScalarType::Byte);
  const Tensor losses = new_tensor(logits,
                                   reduced     ? Ints{}
                                   : per_image ? Ints{rows, selected}
                                               : Ints{selected},
                                   arithmetic_type(logits));
  dispatch_element(logits, "soft_iou_loss", [&](auto zero) {
    using T = decltype(zero);
    Arguments<T> arguments(logits, s, channels_last, target, o, sums);
    auto& p = arguments.view;
    const Tensor parts = new_tensor(logits, {pixel_chunks(p.map), selected, 3}, ScalarType::Double);
    p.parts = pointer<double>(parts);
    p.slopes = keep && two ? pointer<T>(kept) : nullptr;
    p.bytes = keep && !two ? pointer<uint8_t>(kept) : nullptr;
    using A = ArithmeticType<T>;
    soft_iou(p, reduced, pointer<A>(losses), device.stream());
  });
  return {losses, sums, kept};
}

Tensor soft_iou_loss_backward(const Tensor& grad_loss, const Tensor& logits_, const Tensor& target_,
                              const Tensor& sums, const Ints& classes, bool per_image,
                              double smooth_numerator, double smooth_denominator,
                              std::optional<int64_t> ignore_index, const OptionalTensor& weight,
                              const std::string& reduction) {
  const SoftIouOptions o{classes,      per_image, smooth_numerator,         smooth_denominator,
                         ignore_index, weight,    reduction_from(reduction)};
  const PixelShape s = check_soft_iou_loss(logits_, target_, o, true);
  if (!holds_slopes(target_, logits_)) check_label_values(target_, s.channels, ignore_index);
  const bool channels_last = is_channels_last(logits_);
  const Tensor logits = dense(logits_, channels_last), target = dense(target_, false);
  const OnDevice device(logits);
  const Tensor gradient =
      new_tensor(logits, {s.n, s.channels, s.height, s.width}, logits.scalar_type(), channels_last);
  const Tensor upstream = in_dtype(grad_loss, arithmetic_type(logits));
  const Tensor slopes = new_tensor(logits, {sums.size(0), s.channels, 2}, arithmetic_type(logits));
  dispatch_element(logits, "soft_iou_loss_backward", [&](auto zero) {
    using T = decltype(zero);
    Arguments<T> arguments(logits, s, channels_last, target, o, sums);
    auto& p = arguments.view;
    if (holds_slopes(target, logits)) p.slopes = pointer<T>(target);
    using A = ArithmeticType<T>;
    soft_iou_backward(p, static_cast<const A*>(upstream.const_data_ptr()),
                      o.reduction == Reduction::kNone, pointer<A>(slopes), pointer<T>(gradient),
                      device.stream());
  });
  return gradient;
}

}  // namespace
}  // namespace colorseg::cuda

STABLE_TORCH_LIBRARY_IMPL(colorseg, COLORSEG_CUDA_KEY, m) {
  m.impl("soft_iou_loss", TORCH_BOX(&colorseg::cuda::soft_iou_loss));
  m.impl("soft_iou_loss_backward", TORCH_BOX(&colorseg::cuda::soft_iou_loss_backward));
}

// Shapes, checks and the loss itself (from the sums) of the soft IoU, shared by every device.
#pragma once
#include "color_cross_entropy.h"

namespace colorseg {

struct SoftIouOptions {
  Ints classes;
  bool per_image;
  double smooth_numerator, smooth_denominator;
  std::optional<int64_t> ignore_index;
  OptionalTensor weight;
  Reduction reduction;
};

// Whether `target` is what the forward pass kept of two classes, in place of labels.
inline bool holds_slopes(const Tensor& target, const Tensor& logits) {
  return target.scalar_type() == logits.scalar_type();
}

inline PixelShape check_soft_iou_loss(const Tensor& logits, const Tensor& target,
                                      const SoftIouOptions& o, bool backward = false) {
  const PixelShape s = check_logits(logits);
  COLORSEG_CHECK(s.channels >= 2,
                 "soft IoU needs logits with at least 2 channels, background and foreground, got ",
                 s.channels);
  check_same_device("the target", target, logits, "the logits");
  if (backward && s.channels == 2 && holds_slopes(target, logits)) {
    check_pixels(target, s);
  } else {
    check_labels(target, s);
  }
  COLORSEG_CHECK(!o.classes.empty(), "classes selects no class");
  for (int64_t id : o.classes) {
    COLORSEG_CHECK(id >= 0 && id < s.channels, "class ", id, " is not in 0..", s.channels - 1);
  }
  check_per_channel("weight", o.weight, static_cast<int64_t>(o.classes.size()), logits,
                    "the logits");
  return s;
}

// 1 - (I + s) / (U + s'), and its slopes with respect to one pixel's probability where it is the
// target (I grows, U does not) and where it is not (U grows).  Rahman and Wang 2016, equation 5,
// with smoothing.
struct SoftIou {
  double loss, inside, outside;
};

inline SoftIou soft_iou(double intersection, double union_, double smooth_numerator,
                        double smooth_denominator) {
  const double i = intersection + smooth_numerator, u = union_ + smooth_denominator;
  return {1 - i / u, -1 / u, i / (u * u)};
}

}  // namespace colorseg

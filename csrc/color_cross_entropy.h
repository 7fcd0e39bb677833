// Shapes, checks and options of the cross-entropy, shared by every device.
#pragma once
#include "common.h"

namespace colorseg {

enum class Reduction { kNone, kMean, kSum };

inline Reduction reduction_from(const std::string& name) {
  if (name == "mean") return Reduction::kMean;
  if (name == "sum") return Reduction::kSum;
  COLORSEG_CHECK(name == "none", "reduction must be none, mean or sum, got ", name);
  return Reduction::kNone;
}

struct PixelShape {
  int64_t n, channels, height, width;  // of the logits
  int64_t pixels() const { return height * width; }
};

inline PixelShape check_logits(const Tensor& logits) {
  COLORSEG_CHECK(logits.dim() == 4, "logits must be (N, C, H, W), got ", logits.dim(),
                 " dimensions: ", shape_of(logits));
  return {logits.size(0), logits.size(1), logits.size(2), logits.size(3)};
}

inline void check_pixels(const Tensor& target, const PixelShape& s) {
  COLORSEG_CHECK(target.dim() == 3 && target.size(0) == s.n && target.size(1) == s.height &&
                     target.size(2) == s.width,
                 "labels must be (N, H, W) = (", s.n, ", ", s.height, ", ", s.width, "), got ",
                 shape_of(target));
}

inline void check_labels(const Tensor& target, const PixelShape& s) {
  const ScalarType t = target.scalar_type();
  COLORSEG_CHECK(t == ScalarType::Byte || t == ScalarType::Long || t == ScalarType::Bool,
                 "labels must be uint8, int64 or bool, got ", toString(t));
  check_pixels(target, s);
}

inline void check_palette(const Tensor& palette) {
  COLORSEG_CHECK(palette.dim() == 2 && palette.size(1) == 3 && palette.size(0) > 0,
                 "palette must be (K, 3) with at least one color, got ", shape_of(palette));
}

inline void check_rgb(const Tensor& rgb) {
  COLORSEG_CHECK(rgb.dim() == 4 && rgb.size(1) == 3, "RGB images must be (N, 3, H, W), got ",
                 shape_of(rgb));
}

// A label outside 0 .. classes - 1 that is not ignore_index; the number of them and the first one.
inline void check_label_range(int64_t bad, int64_t first, int64_t classes, bool ignores,
                              int64_t ignore_index) {
  COLORSEG_CHECK(bad == 0, bad, " labels are outside 0..", classes - 1, " (the logits have ",
                 classes, " channels), the first is ", first,
                 ignores ? "; only ignore_index=" + std::to_string(ignore_index) + " may be"
                         : "; pass ignore_index to leave pixels out");
}

// Targets spread over the palette colors nearest to an RGB pixel; 0 neighbors: its label alone.
struct SoftOptions {
  int64_t neighbors;
  double sigma;
  // shares are proportional to exp(squared distance * falloff)
  double falloff() const { return -0.5 / (sigma * sigma); }
};

inline void check_soft_options(const SoftOptions& soft, const Tensor& target, int64_t channels) {
  COLORSEG_CHECK(soft.neighbors >= 0 && soft.neighbors <= channels, "soft_neighbors must be in 0..",
                 channels, ", the number of colors, got ", soft.neighbors);
  if (soft.neighbors == 0) return;
  COLORSEG_CHECK(target.dim() == 4,
                 "soft_neighbors needs an RGB target (N, 3, H, W), whose distances to the palette "
                 "it uses, got ",
                 shape_of(target));
  COLORSEG_CHECK(soft.sigma > 0, "soft_sigma must be above 0, got ", soft.sigma);
}

inline PixelShape check_color_cross_entropy(const Tensor& logits, const Tensor& target,
                                            const OptionalTensor& palette,
                                            const OptionalTensor& weight, double label_smoothing,
                                            const SoftOptions& soft) {
  const PixelShape s = check_logits(logits);
  COLORSEG_CHECK(s.channels > 0, "logits must have at least one channel, got ", shape_of(logits));
  check_per_channel("weight", weight, s.channels, logits, "the logits");
  check_same_device("the target", target, logits, "the logits");
  COLORSEG_CHECK(label_smoothing >= 0 && label_smoothing <= 1,
                 "label_smoothing must be in 0..1, got ", label_smoothing);
  check_soft_options(soft, target, s.channels);
  if (target.dim() != 4) {
    check_labels(target, s);
    return s;
  }
  check_rgb(target);
  COLORSEG_CHECK(
      palette, "an RGB target needs a palette to be quantised with; pass one, or labels (N, H, W)");
  check_palette(*palette);
  check_same_device("the palette", *palette, logits, "the logits");
  COLORSEG_CHECK(palette->size(0) == s.channels, "the palette has ", palette->size(0),
                 " colors, the logits have ", s.channels, " channels; they must agree");
  COLORSEG_CHECK(target.size(0) == s.n && target.size(2) == s.height && target.size(3) == s.width,
                 "the RGB target must be (", s.n, ", 3, ", s.height, ", ", s.width,
                 ") to match the logits, got ", shape_of(target));
  return s;
}

}  // namespace colorseg

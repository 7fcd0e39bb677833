// Shapes and checks of the fused block, shared by every device.
#pragma once
#include "conv2d.h"

namespace colorseg {

enum class Resample { kNone, kMaxPool2, kUpsample2 };

inline Resample resample_from(const std::string& name) {
  if (name == "maxpool2") return Resample::kMaxPool2;
  if (name == "upsample2") return Resample::kUpsample2;
  COLORSEG_CHECK(name == "none", "resample must be none, maxpool2 or upsample2, got ", name);
  return Resample::kNone;
}

struct BatchNormOptions {
  OptionalTensor weight, bias, running_mean, running_var;  // [C] each
  bool batch_statistics;
  double eps;
};

// The block's maps: conv output (H, W), the map that is normalised in memory (pooled, else the conv
// output: BN commutes with nearest upsampling), and y.
struct BlockShape {
  ConvShape conv;
  Resample resample;
  int64_t height, width;  // of the normalised map
  int64_t y_height, y_width;
  int64_t normalized() const { return conv.n * height * width; }  // values per channel
};

inline BlockShape check_conv_bn_relu(const Tensor& x, const ConvShape& conv, Resample resample,
                                     const BatchNormOptions& bn, const OptionalTensor& residual) {
  const bool pool = resample == Resample::kMaxPool2, up = resample == Resample::kUpsample2;
  BlockShape s{conv, resample, conv.out_height, conv.out_width, 0, 0};
  if (pool) s.height /= 2, s.width /= 2;
  COLORSEG_CHECK(s.height > 0 && s.width > 0,
                 "maxpool2 needs a map of at least 2 x 2, the convolution gives ", conv.out_height,
                 " x ", conv.out_width);
  s.y_height = up ? 2 * s.height : s.height;
  s.y_width = up ? 2 * s.width : s.width;
  check_per_channel("bn_weight", bn.weight, conv.out_channels, x);
  check_per_channel("bn_bias", bn.bias, conv.out_channels, x);
  check_per_channel("running_mean", bn.running_mean, conv.out_channels, x);
  check_per_channel("running_var", bn.running_var, conv.out_channels, x);
  COLORSEG_CHECK(bn.batch_statistics || (bn.running_mean && bn.running_var),
                 "running_mean and running_var are needed outside training: there are no batch "
                 "statistics to use");
  COLORSEG_CHECK(!bn.batch_statistics || conv.n * s.y_height * s.y_width != 1,
                 "batch norm in training mode needs more than 1 value per channel, got a map of (",
                 conv.n, ", ", conv.out_channels, ", ", s.y_height, ", ", s.y_width,
                 "); use a larger batch or image, or bn.eval()");
  if (residual) {
    check_same_kind("residual", *residual, x);
    const std::array<int64_t, 4> sizes{conv.n, conv.out_channels, s.y_height, s.y_width};
    COLORSEG_CHECK(residual->dim() == 4 && residual->sizes().equals(sizes),
                   "residual must have the shape of the result, ", text_of(sizes), ", got ",
                   shape_of(*residual));
  }
  return s;
}

}  // namespace colorseg

// Shapes and checks of a convolution, shared by every device and by conv_bn_relu.
#pragma once
#include <algorithm>

#include "common.h"

namespace colorseg {

struct ConvOptions {
  Ints stride, padding, dilation;  // padding: top, bottom, left, right
  int64_t groups;
  bool transposed;
  Ints output_padding;
};

// What happens to x before it is convolved: x <- upsample2(relu(x * scale + shift)).
struct Prologue {
  OptionalTensor scale, shift;
  bool relu, upsample;
  bool any() const { return scale || relu || upsample; }
};

struct ConvShape {
  int64_t n, in_channels, skip_channels, in_height,
      in_width;  // of what is convolved (after the prologue)
  int64_t out_channels, out_height, out_width;
};

inline int64_t conv_output_size(int64_t size, int64_t kernel, int axis, const ConvOptions& o) {
  const int64_t padding = o.padding[2 * axis] + o.padding[2 * axis + 1];
  const int64_t span = o.dilation[axis] * (kernel - 1);
  if (o.transposed)
    return (size - 1) * o.stride[axis] - padding + span + o.output_padding[axis] + 1;
  return (size + padding - span - 1) / o.stride[axis] + 1 - (size + padding <= span ? 1 : 0);
}

inline void check_conv_options(const ConvOptions& o) {
  COLORSEG_CHECK(o.stride.size() == 2 && o.dilation.size() == 2 && o.output_padding.size() == 2 &&
                     o.padding.size() == 4,
                 "stride, dilation and output_padding take 2 numbers and padding 4");
  for (int axis = 0; axis < 2; ++axis) {
    COLORSEG_CHECK(o.stride[axis] > 0 && o.dilation[axis] > 0,
                   "stride and dilation must be positive, got stride ", o.stride[axis],
                   " and dilation ", o.dilation[axis]);
    COLORSEG_CHECK(o.padding[2 * axis] >= 0 && o.padding[2 * axis + 1] >= 0,
                   "padding must not be negative, got ", o.padding[2 * axis], " and ",
                   o.padding[2 * axis + 1]);
    COLORSEG_CHECK(
        o.output_padding[axis] >= 0 &&
            (!o.transposed || o.output_padding[axis] < std::max(o.stride[axis], o.dilation[axis])),
        "output_padding must be smaller than stride or dilation, got output_padding ",
        o.output_padding[axis], ", stride ", o.stride[axis], ", dilation ", o.dilation[axis]);
  }
  COLORSEG_CHECK(o.groups > 0, "groups must be positive, got ", o.groups);
}

// float_weight: whether weight and bias may also be float32.
inline ConvShape check_conv2d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& skip, const Prologue& prologue,
                              const ConvOptions& o, bool float_weight = false) {
  check_conv_options(o);
  COLORSEG_CHECK(x.dim() == 4, "x must be (N, C, H, W), got ", x.dim(),
                 " dimensions: ", shape_of(x));
  COLORSEG_CHECK(weight.dim() == 4, "weight must have 4 dimensions, got ", weight.dim(), ": ",
                 shape_of(weight));
  const ScalarType dtype = x.scalar_type();
  COLORSEG_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double ||
                     dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
                 "x must be float32, float64, bfloat16 or float16, got ", toString(dtype));
  const auto check_kind = [&](const char* name, const Tensor& t) {
    if (float_weight && t.scalar_type() == ScalarType::Float) return check_same_device(name, t, x);
    check_same_kind(name, t, x);
  };
  check_kind("weight", weight);
  const int64_t scale = prologue.upsample ? 2 : 1;
  ConvShape s{x.size(0), x.size(1), 0, scale * x.size(2), scale * x.size(3), 0, 0, 0};
  check_per_channel("in_scale", prologue.scale, s.in_channels, x);
  check_per_channel("in_shift", prologue.shift, s.in_channels, x);
  COLORSEG_CHECK(prologue.scale.has_value() == prologue.shift.has_value(),
                 "in_scale and in_shift go together");
  if (skip) {
    check_same_kind("skip", *skip, x);
    COLORSEG_CHECK(skip->dim() == 4 && skip->size(0) == s.n && skip->size(2) == s.in_height &&
                       skip->size(3) == s.in_width,
                   "skip must be (", s.n, ", any, ", s.in_height, ", ", s.in_width,
                   ") to be joined to x, got ", shape_of(*skip));
    s.skip_channels = skip->size(1);
  }
  const int64_t channels = s.in_channels + s.skip_channels;
  const int64_t expected = o.transposed ? weight.size(0) : weight.size(1) * o.groups;
  COLORSEG_CHECK(channels == expected, "weight ", shape_of(weight), " with groups=", o.groups,
                 " expects ", expected, " input channels, got ", s.in_channels, " in x",
                 skip ? " and " : "", skip ? std::to_string(s.skip_channels) + " in skip" : "");
  s.out_channels = o.transposed ? weight.size(1) * o.groups : weight.size(0);
  COLORSEG_CHECK(channels % o.groups == 0 && s.out_channels % o.groups == 0, "groups=", o.groups,
                 " must divide the ", channels, " input and ", s.out_channels, " output channels");
  COLORSEG_CHECK(channels > 0 && s.out_channels > 0,
                 "a convolution needs channels to read and to write, got ", channels, " and ",
                 s.out_channels);
  if (bias) {
    check_kind("bias", *bias);
    COLORSEG_CHECK(bias->dim() == 1 && bias->size(0) == s.out_channels, "bias must have shape (",
                   s.out_channels, "), got ", shape_of(*bias));
  }
  s.out_height = conv_output_size(s.in_height, weight.size(2), 0, o);
  s.out_width = conv_output_size(s.in_width, weight.size(3), 1, o);
  COLORSEG_CHECK(s.out_height > 0 && s.out_width > 0, "a kernel of ", weight.size(2), " x ",
                 weight.size(3), " does not fit: x ", shape_of(x), " would give an output of ",
                 s.out_height, " x ", s.out_width);
  return s;
}

}  // namespace colorseg

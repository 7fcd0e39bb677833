// Convolutions of any dtype, layout and shape, with our prologue and skip around them: what the
// library's own for flat maps (convolve.h) leaves over.  By pixels in channels_last
// (pixel_conv2d.h, weight_gradient.h) where that is faster, else ATen's.
#pragma once
#include "../aten_convolution.h"

namespace colorseg::cpu {

// The tensor that is convolved: the prologue applied to x, with skip's channels behind it.
Tensor conv_input(const Tensor& x, const OptionalTensor& skip, const Prologue& prologue,
                  bool channels_last);

Tensor any_layout_convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                              const ConvOptions& o, bool channels_last);

ConvGradients any_layout_convolution_backward(const Tensor& grad_y, const Tensor& x,
                                              const Tensor& weight, const OptionalTensor& skip,
                                              const Prologue& prologue, const ConvOptions& o,
                                              Needs needs, bool channels_last);

}  // namespace colorseg::cpu

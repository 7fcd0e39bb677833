// ATen's convolution with our prologue and skip around it: for the dtypes, layouts and shapes that
// the library's own for flat maps (convolve.h) leaves to it.  Where that for channels_last
// (pixel_conv2d.h, weight_gradient.h) is faster, it takes ATen's place.
#pragma once
#include "../aten_convolution.h"

namespace colorseg::cpu {

// The tensor that is convolved: the prologue applied to x, with skip's channels behind it.
Tensor conv_input(const Tensor& x, const OptionalTensor& skip, const Prologue& prologue,
                  bool channels_last);

Tensor aten_convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const ConvOptions& o, bool channels_last);

ConvGradients aten_convolution_backward(const Tensor& grad_y, const Tensor& x, const Tensor& weight,
                                        const OptionalTensor& skip, const Prologue& prologue,
                                        const ConvOptions& o, Needs needs, bool channels_last);

}  // namespace colorseg::cpu

// The gradient of a weight tap by tap, for float32 maps in channels_last with many channels: a sum
// over the pixels of y and x that the tap connects.  ATen's multiplies with the zeros that a
// dilated kernel reads beyond the edges as well: of DeepLabV3's 3x3 kernels with dilation 36 on 28
// x 28 pixels all but the middle.
#pragma once
#include "../conv2d.h"

namespace colorseg::cpu {

// Whether that is faster than ATen's.
bool gradient_by_taps(const Tensor& grad_y, const Tensor& x, const Tensor& weight,
                      const ConvOptions& o, bool channels_last);

// Of dense channels_last maps; the result is dense in channels_last.
Tensor weight_gradient_by_taps(const Tensor& grad_y, const Tensor& x, const Tensor& weight,
                               const ConvOptions& o);

}  // namespace colorseg::cpu

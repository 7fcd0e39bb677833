// 3x3 convolutions so far dilated that only a few lines meet; kernels/pixel_lattice.h says how.
#pragma once
#include "../conv2d.h"

namespace colorseg::cpu {

// The most lines of a lattice of x, 0 where they are more than three or the padding is another.
int64_t lattice_lines(const Tensor& x, const ConvOptions& o);

// What the convolution costs, in direct products per channel and image.
double lattice_products(const Tensor& x, const ConvOptions& o);

// y = relu(conv(x) + bias + residual), in channels_last; bias and residual may be null.
void lattice_convolution(const Tensor& x, const Tensor& packed, const float* bias,
                         const float* residual, const Ints& dilation, bool relu, Tensor& y);

}  // namespace colorseg::cpu

// 3x3 convolutions so far dilated that only a few lines meet; kernels/pixel_lattice.h says how.
#pragma once
#include "../conv2d.h"
#include "kernels/pixel_kernels.h"

namespace colorseg::cpu {

// The most lines of a lattice of x, 0 where they are more than three or the padding is another.
int64_t lattice_lines(const Tensor& x, const ConvOptions& o);

// What the convolution costs, in direct products per channel and image.
double lattice_products(const Tensor& x, const ConvOptions& o);

// forms: of the packed weights, each way.
void lattice_convolution(const PixelMaps& maps, const Tensor& x, int64_t forms,
                         const Ints& dilation);

}  // namespace colorseg::cpu

// The library's own convolutions of float32 maps in channels_last with many channels, as products
// of pixels by packed weights: 1x1 kernels with what follows them, and Winograd's products for 3x3
// kernels, dilated ones too.
#pragma once
#include <algorithm>

#include "../conv2d.h"
#include "kernels/kernels.h"

namespace colorseg::cpu {

// Whether the kernels fit: float32, stride 1, and numbers of channels that are multiples of a
// panel.
bool fits_panels(const Tensor& x, const Tensor& weight, const ConvOptions& o);

// Along one axis, the lines [first, last) of y that a tap connects with lines of x, which are
// `shift` further.
struct Connected {
  int64_t first, last, shift;
  int64_t count() const { return std::max<int64_t>(0, last - first); }
};
Connected connected_lines(int64_t y_size, int64_t x_size, int64_t tap, int axis,
                          const ConvOptions& o);

// Winograd's of 2x2 and of 4x4 outputs; of lattices with one, two and three lines.
enum class Packing { kNone, kPanels, kWinograd2, kWinograd4, kLattice1, kLattice2, kLattice3 };

// The one that is faster than ATen's convolution, if any.  each_call: with the packing.  exact: the
// error must stay below twice that of direct products, which rules out kWinograd4.
Packing pixel_packing(const Tensor& x, const Tensor& weight, const ConvOptions& o, bool each_call,
                      bool exact = true);

// Of the convolution that makes the data gradient, whose stride is 1.
ConvOptions adjoint_options(const ConvOptions& o, const Tensor& weight);

// [panel][input][channel], in front of it Winograd's products, or the forms of lattices both ways;
// adjoint: of the data gradient.
Tensor pack_pixels(const Tensor& weight, Packing packing, bool adjoint);

// conv(x) + bias of a map in channels_last.
Tensor pixel_convolution(const Tensor& x, const Tensor& packed, const OptionalTensor& bias,
                         const Ints& padding, const Ints& dilation);

}  // namespace colorseg::cpu

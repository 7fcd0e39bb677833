// ATen's convolution behind the stable ABI, on any device, and what its callers have in common.
#pragma once
#include "conv2d.h"

namespace colorseg {

struct ConvGradients {
  Tensor x, weight, bias, skip, in_scale, in_shift;  // empty where not needed
};

struct Needs {
  bool x, skip, weight, bias;
};

// ATen pads evenly on both sides; an uneven "same" padding is made explicit first: then ATen gets
// `padded` and no padding.
bool is_symmetric(const ConvOptions& o);
Tensor padded(const Tensor& input, const ConvOptions& o);
Ints aten_padding(const ConvOptions& o);

struct ConvMask {
  bool input, weight, bias;
};

// Gradients of a convolution of `input`: [input, weight, bias], empty where the mask is false;
// grad_y and input are dense in one layout.
std::array<Tensor, 3> aten_gradients(const Tensor& grad_y, const Tensor& input,
                                     const Tensor& weight, const ConvOptions& o, ConvMask wanted,
                                     bool channels_last);

// Channels [first, first + count) as a tensor of its own: operators may not return overlapping
// views.
Tensor channel_slice(Tensor grad, int64_t first, int64_t count);

}  // namespace colorseg

// Convolution on the CPU, for this operator and for conv_bn_relu: the library's own or ATen's.
#pragma once
#include "any_layout_conv2d.h"
#include "convolve.h"

namespace colorseg::cpu {

// A convolution that the library does itself: its plan, and its inputs with what keeps them alive.
struct OwnConvolution {
  ConvPlan plan;
  Sources sources;
  std::array<OptionalTensor, 4> held;
};

// Nothing where ATen is to do it.
std::optional<OwnConvolution> own_convolution(const Tensor& x, const Tensor& weight,
                                              const OptionalTensor& skip, const Prologue& prologue,
                                              const ConvOptions& o, const ConvShape& s);

// Lines of 8 are a ninth zeros here: with many channels and nothing to fuse in front of or within a
// convolution, ATen's is faster.
bool left_to_aten(const ConvShape& s, const ConvOptions& o, const Prologue& prologue);

// All gradients, from lines of the gradient of y made on the fly.  Bias: nothing unless needed.
ConvGradients own_convolution_backward(const OwnConvolution& own, const GradientLines& gradient,
                                       const Tensor& x, const Tensor& weight,
                                       const OptionalTensor& skip, const Prologue& prologue,
                                       Needs needs);

}  // namespace colorseg::cpu

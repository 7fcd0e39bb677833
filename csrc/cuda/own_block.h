// The library's own convolutions in operators that run one at a time.
#pragma once
#include "../aten_convolution.h"
#include "own_convolution.h"

namespace colorseg::cuda {

// The convolution of an operator's arguments, if there are kernels for it: of maps in
// channels_last.
std::optional<OwnConvolution> own_convolution(const Tensor& x, const Tensor& weight,
                                              const OptionalTensor& skip, const Prologue& prologue,
                                              const ConvOptions& o);

Tensor own_conv2d(const OwnConvolution& own, const OptionalTensor& bias);

// Gradients of main (as it is read: behind the prologue), skip, weight and bias.
ConvGradients own_conv2d_backward(const OwnConvolution& own, const Tensor& grad, Needs needs);

// The convolution's result, pooled if the block pools.
Tensor own_resampled(const OwnConvolution& own, const BlockShape& s, const OptionalTensor& bias);

// The map that a block's batch norm takes, pooled if the block pools, and its statistics.
struct BlockMap {
  Tensor map, argmax;
  ChannelVectors vectors;
};
BlockMap own_block_map(const OwnConvolution& own, const BlockShape& s, const OptionalTensor& bias,
                       const BatchNormOptions& bn);

}  // namespace colorseg::cuda

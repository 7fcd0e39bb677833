// Which pixels a convolution, or its data gradient, adds up: tables for the kernels.
#pragma once
#include <optional>

#include "../conv2d.h"
#include "kernels/convolve.h"

namespace colorseg::cuda {

// Of a convolution of a map, or of a map upsampled 2x2 as it is read; empty where the kernels have
// no room for it, or its axes need different steps.
std::optional<ConvTaps> forward_taps(const ConvOptions& o, int64_t kernel_height,
                                     int64_t kernel_width, bool upsampled);

// Of the gradient of the map: a convolution of the gradient of the result.
std::optional<ConvTaps> gradient_taps(const ConvOptions& o, int64_t kernel_height,
                                      int64_t kernel_width, bool upsampled);

}  // namespace colorseg::cuda

// How a chain for inference is described, and the order of its packed weights.
#pragma once
#include "../chain.h"
#include "conv_plan.h"

namespace colorseg::cpu {

constexpr int64_t kPackedInts = kLayerInts + 4;  // and the sizes of the weight

// One layer of the description, with the sizes of its weight.
struct PackedLayer {
  int64_t main, skip;
  ConvOptions options;
  Resample resample;
  bool has_bn, relu, upsampled;  // upsampled: the map it reads
  int64_t x_channels, y_channels, kernel[2];

  // Batch norm behind a max-pool cannot be folded into the weights: a negative scale would turn the
  // maximum into a minimum.
  bool keeps_affine() const { return has_bn && resample == Resample::kMaxPool2; }
  bool may_be_winograd() const {
    return kernel[0] == 3 && kernel[1] == 3 && options.stride[0] == 1 && !options.transposed &&
           !upsampled && options.dilation[0] == 1 && options.dilation[1] == 1;
  }
  int64_t direct_size() const { return aligned(x_channels * y_channels * kernel[0] * kernel[1]); }
  int64_t winograd_size() const {
    return may_be_winograd() ? aligned(16 * x_channels * y_channels) : 0;
  }
  // direct weights, Winograd's, bias, scale, offset
  int64_t size() const { return direct_size() + winograd_size() + 3 * aligned(y_channels); }
};

std::vector<PackedLayer> read_packed(const Ints& numbers);

}  // namespace colorseg::cpu

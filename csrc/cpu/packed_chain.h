// How a chain for inference is described, and the order of its packed weights.
#pragma once
#include "../chain.h"
#include "convolve.h"

namespace colorseg::cpu {

constexpr int64_t kPackedInts = kLayerInts + 4;  // and the sizes of the weight

// Planes of a map that hold so many channels.
inline int64_t lines_of(int64_t channels, bool pairs) {
  return pairs ? divide_up(channels, 2) : channels;
}

// One layer of the description, with the sizes of its weight.
struct PackedLayer {
  int64_t main, skip;
  ConvOptions options;
  Resample resample;
  bool has_bn, relu, upsampled;  // upsampled: the map it reads
  int64_t x_channels, y_channels, kernel[2];
  bool pairs;             // in bfloat16
  int64_t main_channels;  // of x_channels; the others are those of skip

  // Batch norm behind a max-pool cannot be folded into the weights: a negative scale would turn the
  // maximum into a minimum.
  bool keeps_affine() const { return has_bn && resample == Resample::kMaxPool2; }
  bool may_be_winograd() const {
    return kernel[0] == 3 && kernel[1] == 3 && options.stride[0] == 1 && !options.transposed &&
           !upsampled && !pairs && options.dilation[0] == 1 && options.dilation[1] == 1;
  }
  // Planes of x: pairs are of one source each, so that either can be stored before the other.
  int64_t x_lines() const {
    return lines_of(main_channels, pairs) + lines_of(x_channels - main_channels, pairs);
  }
  int64_t direct_size() const { return aligned(x_lines() * y_channels * kernel[0] * kernel[1]); }
  int64_t winograd_size() const {
    return may_be_winograd() ? aligned(16 * x_channels * y_channels) : 0;
  }
  // direct weights, Winograd's, bias, scale, offset
  int64_t size() const { return direct_size() + winograd_size() + 3 * aligned(y_channels); }
  int64_t bias() const { return direct_size() + winograd_size(); }  // where it begins
};

// Refuses bfloat16 where the instruction set in use cannot multiply it.
void check_pair_kernels(bool pairs);

std::vector<PackedLayer> read_packed(const Ints& numbers, bool pairs);

// A layer for a batch of a certain size: the map that it stores, and its result.
struct PlannedLayer {
  ConvPlan conv;
  int64_t height, width;  // of the stored map: in front of an upsample, behind a max-pool
  int64_t offset;         // of that map in the workspace
  int64_t weights;        // where those of the layer begin
};

// What a plan depends on besides the layers; threads: that share these images.
struct BatchSize {
  int64_t n, channels, height, width, threads;
  bool pairs;
  bool operator==(const BatchSize& other) const {
    return n == other.n && channels == other.channels && height == other.height &&
           width == other.width && threads == other.threads && pairs == other.pairs;
  }
};

struct ChainPlan {
  Ints numbers;  // of the layers
  BatchSize size;
  std::vector<PackedLayer> layers;
  std::vector<PlannedLayer> planned;
  std::vector<int64_t> pieces;                                // of each layer
  int64_t y_channels, y_height, y_width, workspace, weights;  // floats of the last two
  int64_t count() const { return static_cast<int64_t>(layers.size()); }
};

// Layer i for the images at x, as the threads of a relay share it; y is theirs, too.
void run_pair_layer(const ChainPlan& plan, int64_t i, const float* packed, uint16_t* y, float* maps,
                    NextPiece next);

// The images x as pairs of channels, which is what the first layer reads.
void join_images(const BatchSize& size, const uint16_t* x, float* pairs);

}  // namespace colorseg::cpu

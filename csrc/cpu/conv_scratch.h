// The memory of one thread in which a convolution works on a piece.
#pragma once
#include <vector>

#include "conv_plan.h"

namespace colorseg::cpu {

// Flat maps and planes of one thread, kept from call to call.
struct ConvScratch {
  std::vector<float> storage;
  FlatMap x, y, result;  // result: of the product, of y's or x's shape
  float *winograd, *plane[3];
  std::vector<int32_t> codes;
  std::vector<float> partial;  // sums of a weight gradient
};

// This thread's, with room for a piece and zeros in the gaps of x, and in `backward` also of y.
ConvScratch& scratch_of(const ConvPlan& plan, bool backward);

}  // namespace colorseg::cpu

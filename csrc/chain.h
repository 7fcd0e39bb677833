// A chain of blocks as one operator: what a layer is, and how its description is read.
#pragma once
#include "conv_bn_relu.h"

namespace colorseg {

// Per layer in `layers`: main and skip (0: the chain's input, i + 1: layer i, -1: none),
// transposed, stride, padding (4), dilation (2), output_padding (2), resample, bn, relu,
// batch_statistics.
constexpr int64_t kLayerInts = 16;
// Per layer in `parameters`: weight, bias, and bn's weight, bias, running_mean, running_var; an
// empty tensor stands for none.
constexpr int64_t kLayerTensors = 6;

// Per batch norm among the results of `chain`: its input, argmax, mean, variance and affine.
constexpr int64_t kSavedTensors = 5;

struct Layer {
  int64_t main, skip;
  ConvOptions options;
  Resample resample;
  bool has_bn, relu;
  Tensor weight;
  OptionalTensor bias;
  BatchNormOptions bn;
};

inline OptionalTensor optional(const Tensor& t) {
  return t.dim() == 1 && t.size(0) == 0 ? OptionalTensor() : OptionalTensor(t);
}

inline std::vector<Layer> read_layers(const std::vector<Tensor>& parameters, const Ints& layers,
                                      const std::vector<double>& eps) {
  const auto count = static_cast<int64_t>(eps.size());
  COLORSEG_CHECK(static_cast<int64_t>(layers.size()) == count * kLayerInts &&
                     static_cast<int64_t>(parameters.size()) == count * kLayerTensors,
                 "a chain needs ", kLayerInts, " numbers, ", kLayerTensors,
                 " tensors and an eps for each layer");
  std::vector<Layer> read;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* n = &layers[i * kLayerInts];
    const Tensor* t = &parameters[i * kLayerTensors];
    COLORSEG_CHECK(n[0] >= 0 && n[0] <= i && n[1] >= -1 && n[1] <= i, "layer ", i,
                   " of a chain takes a layer that does not come before it");
    const ConvOptions o{{n[3], n[3]},  {n[4], n[5], n[6], n[7]}, {n[8], n[9]}, 1, n[2] != 0,
                        {n[10], n[11]}};
    read.push_back(
        {n[0],
         n[1],
         o,
         static_cast<Resample>(n[12]),
         n[13] != 0,
         n[14] != 0,
         t[0],
         optional(t[1]),
         {optional(t[2]), optional(t[3]), optional(t[4]), optional(t[5]), n[15] != 0, eps[i]}});
  }
  return read;
}

}  // namespace colorseg

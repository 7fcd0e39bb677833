// The library's own convolutions on tensors in channels_last.
#pragma once
#include "../conv_bn_relu.h"
#include "channels.h"
#include "conv_taps.h"

namespace colorseg::cuda {

// A map, and what is still to be done to it on the way into a convolution.
struct ConvInput {
  Tensor map;
  OptionalTensor affines;  // ChannelAffine<float> [channels]
  bool relu = false;
};

struct OwnConvolution {
  ConvInput main;
  std::optional<ConvInput> skip;
  bool upsampled;  // main, as it is read
  Tensor weight;   // contiguous
  ConvOptions options;
  ConvShape shape;
  bool strict;                 // float32 is computed in float32, not in tf32
  OptionalTensor packed = {};  // the weight for the forward pass, if it was packed before
};

// How a weight is laid out: channel k of the input, n of the result and a tap are at
// k * k_stride + n * n_stride + tap.
struct WeightStrides {
  int64_t k, n;
};
WeightStrides weight_strides(const Tensor& weight, const ConvOptions& options);
inline WeightStrides weight_strides(const OwnConvolution& own) {
  return weight_strides(own.weight, own.options);
}
WeightStrides gradient_strides(const OwnConvolution& own);  // of the data gradient

// Calls body(T()) with the element type of a map that there are kernels for; false without them.
template <typename Body>
bool dispatch_own(const Tensor& x, const Body& body) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return body(float());
    case ScalarType::Half:
      return body(__half());
    case ScalarType::BFloat16:
      return body(__nv_bfloat16());
    default:
      return false;
  }
}

// The convolution, where there is a kernel for it; targets and bias are left to the caller.
template <typename T>
std::optional<Convolution<T>> forward_plan(const OwnConvolution& own);

// That of the gradients of main and, if `skip`, of the skip, which has_own_kernels has promised;
// grad is that of the result.
template <typename T>
Convolution<T> gradient_plan(const OwnConvolution& own, const Tensor& grad, bool skip);

// A weight for maps of T, and how it is read.
struct ToPack {
  ConvTaps taps;
  Channels in, out;
  Tensor weight;  // contiguous
  WeightStrides strides;
};

// Weights in the order in which kernels for maps of T read them, by as few launches as possible.
template <typename T>
std::vector<Tensor> packed_weights(const std::vector<ToPack>& weights, bool strict, Stream stream);

template <typename T>
void run_convolution(Convolution<T>& p, const Tensor& packed, Stream stream);

// The gradient of the weight.  grad is that of the result.
template <typename T>
Tensor run_weight_gradient(const OwnConvolution& own, const Tensor& grad, Stream stream);

// Whether there are kernels for so many channels; for the convolution and each of its gradients.
bool has_own_channels(const ConvShape& shape);
bool has_own_kernels(const OwnConvolution& own);

}  // namespace colorseg::cuda

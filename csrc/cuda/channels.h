// Sweeps over the channels of a map, on tensors: statistics, batch norm with what follows it, and
// their gradients.
#pragma once
#include "../conv_bn_relu.h"
#include "device.h"
#include "kernels/batch_norm.h"

namespace colorseg::cuda {

inline PixelMap channel_map(const Tensor& x, bool channels_last) {
  const PixelMap map{x.size(0), x.size(1), x.size(2) * x.size(3), channels_last};
  COLORSEG_CHECK(channel_chunks(map) < (int64_t(1) << 31) && map.channels < 65536,
                 "an operator on CUDA takes less than 2^31 times ", channel_chunk(map),
                 " values per channel and 65536 channels, got ", shape_of(x));
  return map;
}

// Parameters of batch norm in the dtype of the arithmetic, as long as this lives.
template <typename A>
class BatchNormTensors {
 public:
  BatchNormTensors(const Tensor& x, const BatchNormOptions& bn) : eps_(bn.eps) {
    const OptionalTensor* from[] = {&bn.weight, &bn.bias, &bn.running_mean, &bn.running_var};
    for (int i = 0; i < 4; ++i) {
      if (*from[i]) held_[i] = in_dtype(**from[i], arithmetic_type(x));
    }
  }
  BatchNorm<A> view() const {
    return {pointer<A>(held_[0]), pointer<A>(held_[1]), pointer<A>(held_[2]), pointer<A>(held_[3]),
            eps_};
  }

 private:
  std::array<OptionalTensor, 4> held_;
  double eps_;
};

// Of each channel of a map: mean and variance in double, and the affine made of them.
struct ChannelVectors {
  Tensor mean, var, affines;
  ChannelVectors(const Tensor& x, int64_t channels)
      : mean(new_tensor(x, {channels}, ScalarType::Double)),
        var(new_tensor(x, {channels}, ScalarType::Double)),
        affines(new_tensor(x, {channels, 3}, arithmetic_type(x))) {}
  ChannelVectors(const Tensor& mean, const Tensor& var, const Tensor& affines)
      : mean(mean), var(var), affines(affines) {}
  template <typename A>
  ChannelAffine<A>* affine() const {
    return pointer<ChannelAffine<A>>(affines);
  }
};

// Those of a prologue, a batch norm of mean 0 and variance 1.
ChannelVectors prologue_vectors(const Tensor& x, const Prologue& prologue);

// Moments of the channels of a dense map, in parts.
Tensor moments(const Tensor& map, bool channels_last);

// Mean and variance from such parts, or the running ones if there are none.
ChannelVectors finished_moments(const Tensor& map, const Tensor& parts, const BatchNormOptions& bn);

// A 2x2 max-pool of the dense result of a convolution, and where it found the maxima.
struct Pooled {
  Tensor map, argmax;
};
Pool pool_of(const BlockShape& s, bool channels_last);
Pooled max_pooled(const Tensor& full, const BlockShape& s, bool channels_last);
Tensor max_pooled_backward(const Tensor& grad, const Tensor& argmax, const BlockShape& s,
                           bool channels_last);

// relu(affine(x) + residual), replicated 2x2 with `upsample`; x is dense.
Tensor normalized(const Tensor& x, const ChannelVectors& v, bool relu,
                  const OptionalTensor& residual, bool upsample, bool channels_last);

// Of x and of batch norm's weight and bias, in the dtypes of these, empty without them.
struct NormalizedGradients {
  Tensor x, weight, bias;
};

// grad and x are dense; batch_statistics: mean and variance depend on x.
NormalizedGradients normalized_backward(const Tensor& grad, const Tensor& x,
                                        const ChannelVectors& v, double eps, bool relu,
                                        bool upsampled, bool batch_statistics,
                                        const OptionalTensor& weight, const OptionalTensor& bias,
                                        bool channels_last);

// Sums over all but the channels.
Tensor channel_sums(const Tensor& map, ScalarType dtype);

}  // namespace colorseg::cuda

// A chain of blocks in one call.  Between blocks only the map in front of batch norm is stored: its
// normalisation, ReLU and upsampling happen on the way into the next convolution.
#include "../precision.h"
#include "chain_links.h"

namespace colorseg::cuda {
namespace {

// The weights of all layers, packed for the forward pass.
template <typename T>
std::vector<Tensor> packed_forward(const std::vector<Layer>& layers, const Tensor& x, bool strict,
                                   Stream stream) {
  std::vector<ToPack> weights;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    const Tensor weight = dense(layer.weight, false);
    const bool upsampled =
        layer.main > 0 && layers[layer.main - 1].resample == Resample::kUpsample2;
    const int main = channels_of_link(layers, x, layer.main);
    const int skip = channels_of_link(layers, x, layer.skip);
    COLORSEG_CHECK(
        weight.dim() == 4 && weight.size(layer.options.transposed ? 0 : 1) == main + skip,
        "the weight of layer ", i, " does not fit what it convolves");
    const auto taps = forward_taps(layer.options, weight.size(2), weight.size(3), upsampled);
    COLORSEG_CHECK(taps, "layer ", i, " cannot be part of a chain on this device");
    const int out = channels_of_link(layers, x, static_cast<int64_t>(i) + 1);
    weights.push_back({*taps, channels_of<T>(main, skip), channels_of<T>(out, 0), weight,
                       weight_strides(weight, layer.options)});
  }
  return packed_weights<T>(weights, strict, stream);
}

Planned checked_plan(const std::vector<Layer>& layers, size_t i, const std::vector<Link>& links,
                     bool strict) {
  COLORSEG_CHECK(layers[i].has_bn != (i + 1 == layers.size()),
                 "the last layer of a chain, and no other, is a convolution without batch norm");
  Planned planned = plan_layer(layers[i], links, strict);
  COLORSEG_CHECK(planned.fits, "layer ", i, " cannot be part of a chain on this device");
  return planned;
}

bool chain_fits(const Tensor& x, const std::vector<Tensor>& parameters, const Ints& numbers,
                const std::vector<double>& eps) {
  const std::vector<Layer> layers = read_layers(parameters, numbers, eps);
  const auto map = [&](const std::vector<int64_t>& sizes) {
    return new_tensor(x, sizes, x.scalar_type(), true);
  };
  const OnDevice device(x);  // whose limits decide
  const bool strict = !allows_tf32();
  std::vector<Link> links{{map(sizes_of(x)), nothing(x), {}}};
  for (const Layer& layer : layers) {
    const Planned planned = plan_layer(layer, links, strict);
    if (!planned.fits) return false;
    const BlockShape& s = planned.shape;
    const Tensor result = map({s.conv.n, s.conv.out_channels, s.height, s.width});
    links.push_back(link_of(layer, s, result, nothing(x), {}));
  }
  return true;
}

// [y], and of each layer with batch norm what kSavedTensors says.
std::vector<Tensor> chain(const Tensor& x, const std::vector<Tensor>& parameters,
                          const Ints& numbers, const std::vector<double>& eps) {
  const std::vector<Layer> layers = read_layers(parameters, numbers, eps);
  const OnDevice device(x);
  std::vector<Link> links{{dense(x, true), nothing(x), {}}};
  const bool strict = !allows_tf32();
  std::vector<Tensor> results{x}, packed;
  dispatch_own(x, [&](auto zero) {
    packed = packed_forward<decltype(zero)>(layers, x, strict, device.stream());
    return true;
  });
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    Planned planned = checked_plan(layers, i, links, strict);
    planned.own.packed = packed[i];
    if (i + 1 == layers.size()) {
      results[0] = own_conv2d(planned.own, layer.bias);
      break;
    }
    const BlockMap map = own_block_map(planned.own, planned.shape, layer.bias, layer.bn);
    links.push_back(link_of(layer, planned.shape, map.map, map.argmax, map.vectors));
    const Link& link = links.back();
    results.insert(results.end(), {link.map, link.argmax, link.vectors->mean, link.vectors->var,
                                   link.vectors->affines});
  }
  return results;
}

// Per layer of `prepare_chain`: the packed weight, the bias and batch norm's affine.
constexpr int64_t kPreparedTensors = 3;

// What does not depend on the values of x, if batch norms normalise by running statistics.
std::vector<Tensor> prepare_chain(const Tensor& x, const std::vector<Tensor>& parameters,
                                  const Ints& numbers, const std::vector<double>& eps) {
  const std::vector<Layer> layers = read_layers(parameters, numbers, eps);
  const OnDevice device(x);
  const bool strict = !allows_tf32();
  std::vector<Tensor> results, packed;
  dispatch_own(x, [&](auto zero) {
    packed = packed_forward<decltype(zero)>(layers, x, strict, device.stream());
    return true;
  });
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    COLORSEG_CHECK(!layer.has_bn || !layer.bn.batch_statistics,
                   "a chain that normalises by batch statistics cannot be prepared");
    const int channels = channels_of_link(layers, x, static_cast<int64_t>(i) + 1);
    const Tensor map = new_tensor(x, {0, channels, 1, 1}, x.scalar_type());
    results.insert(
        results.end(),
        {packed[i],
         layer.bias ? torch::stable::clone(in_dtype(*layer.bias, ScalarType::Float)) : nothing(x),
         layer.has_bn ? finished_moments(map, nothing(x), layer.bn).affines : nothing(x)});
  }
  return results;
}

// y alone, from what was prepared for an x of this dtype and number of channels.
Tensor prepared_chain(const Tensor& x, const std::vector<Tensor>& parameters,
                      const std::vector<Tensor>& prepared, const Ints& numbers,
                      const std::vector<double>& eps) {
  const std::vector<Layer> layers = read_layers(parameters, numbers, eps);
  COLORSEG_CHECK(prepared.size() == kPreparedTensors * layers.size(), "a prepared chain needs ",
                 kPreparedTensors, " tensors for each layer");
  const OnDevice device(x);
  const bool strict = !allows_tf32();
  std::vector<Link> links{{dense(x, true), nothing(x), {}}};
  for (size_t i = 0;; ++i) {
    Planned planned = checked_plan(layers, i, links, strict);
    const Tensor* p = &prepared[kPreparedTensors * i];
    planned.own.packed = p[0];
    const OptionalTensor bias = optional(p[1]);
    if (i + 1 == layers.size()) return own_conv2d(planned.own, bias);
    const ChannelVectors vectors(nothing(x), nothing(x), p[2]);
    links.push_back(link_of(layers[i], planned.shape,
                            own_resampled(planned.own, planned.shape, bias), nothing(x), vectors));
  }
}

}  // namespace
}  // namespace colorseg::cuda

STABLE_TORCH_LIBRARY_IMPL(colorseg, COLORSEG_CUDA_KEY, m) {
  m.impl("chain", TORCH_BOX(&colorseg::cuda::chain));
  m.impl("prepare_chain", TORCH_BOX(&colorseg::cuda::prepare_chain));
  m.impl("prepared_chain", TORCH_BOX(&colorseg::cuda::prepared_chain));
  m.impl("chain_fits", TORCH_BOX(&colorseg::cuda::chain_fits));
}

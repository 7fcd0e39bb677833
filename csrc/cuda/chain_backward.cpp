// The gradients of a chain.  That of data adds up the sums that batch norm's gradient needs on its
// way out.
#include "../precision.h"
#include "chain_links.h"

namespace colorseg::cuda {
namespace {

// The gradient of what a link's readers see, added up by them; the last one makes it that of the
// map in front of the ReLU, and adds up the sums for batch norm.
struct LinkGradient {
  bool needed = false;
  int64_t last_reader = 0;  // in backward's order
  OptionalTensor map, parts;
  int64_t parts_count = 0;
};

template <typename T>
ConvTarget<T> target_of(const Link& link, LinkGradient& gradient, int64_t layer, int blocks) {
  ConvTarget<T> to = {};
  to.adds = gradient.map.has_value();
  if (!to.adds)
    gradient.map = new_tensor(link.map, sizes_of(link.map), link.map.scalar_type(), true);
  to.y = pointer<T>(*gradient.map);
  if (!link.vectors || gradient.last_reader != layer) return to;
  gradient.parts_count = blocks;
  gradient.parts = new_tensor(link.map, {blocks, link.map.size(1), 2}, ScalarType::Double);
  to.map = static_cast<const T*>(link.map.const_data_ptr());
  to.map_affine = link.vectors->affine<float>(), to.map_relu = link.relu;
  to.sums = pointer<GradientSums>(*gradient.parts);
  return to;
}

bool needs_skip(const Layer& layer, const std::vector<LinkGradient>& gradients) {
  return layer.skip >= 0 && gradients[layer.skip].needed;
}

// The weights of the layers that hand a gradient on, packed for it.
template <typename T>
std::vector<OptionalTensor> packed_backward(const std::vector<Layer>& layers, const Tensor& x,
                                            const std::vector<Planned>& plans,
                                            const std::vector<LinkGradient>& gradients,
                                            Stream stream) {
  std::vector<ToPack> weights;
  std::vector<size_t> of;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    const OwnConvolution& own = plans[i].own;
    const bool skip = needs_skip(layer, gradients);
    if (!gradients[layer.main].needed && !skip) continue;
    const Channels out = channels_of<T>(channels_of_link(layers, x, layer.main),
                                        skip ? channels_of_link(layers, x, layer.skip) : 0);
    const int in = channels_of_link(layers, x, static_cast<int64_t>(i) + 1);
    weights.push_back(
        {*gradient_taps(own.options, own.weight.size(2), own.weight.size(3), own.upsampled),
         channels_of<T>(in, 0), out, own.weight, gradient_strides(own)});
    of.push_back(i);
  }
  std::vector<OptionalTensor> all(layers.size());
  const std::vector<Tensor> packed = packed_weights<T>(weights, plans[0].own.strict, stream);
  for (size_t j = 0; j < of.size(); ++j) all[of[j]] = packed[j];
  return all;
}

// Adds to the gradients of the links that a layer reads.
template <typename T>
void data_gradient(const Layer& layer, const OwnConvolution& own, int64_t index,
                   const std::vector<Link>& links, std::vector<LinkGradient>& gradients,
                   const Tensor& grad, const OptionalTensor& packed, Stream stream) {
  if (!packed) return;
  const bool main = gradients[layer.main].needed, skip = needs_skip(layer, gradients);
  Convolution<T> p = gradient_plan<T>(own, grad, skip);
  LinkGradient unused;
  p.targets[0] = target_of<T>(links[layer.main], main ? gradients[layer.main] : unused, index,
                              p.tiling.blocks);
  if (skip)
    p.targets[1] = target_of<T>(links[layer.skip], gradients[layer.skip], index, p.tiling.blocks);
  run_convolution(p, *packed, stream);
}

struct BlockGradients {
  Tensor conv, bn_weight, bn_bias;  // conv: of the convolution's result
};

// From the gradient in front of the ReLU to that of the convolution's result.
template <typename T>
BlockGradients norm_gradient(const Layer& layer, const Link& link, const LinkGradient& gradient,
                             Stream stream) {
  const BlockShape& s = link.shape;
  const int64_t channels = s.conv.out_channels;
  const auto vector = [&](const OptionalTensor& of) {
    return new_tensor(link.map, {of ? channels : 0}, ScalarType::Float);
  };
  const Tensor weight = vector(layer.bn.weight), bias = vector(layer.bn.bias);
  const Tensor out = new_tensor(link.map, {channels, 3}, ScalarType::Float);
  auto* affine = link.vectors->affine<float>();
  finish_gradients(channels, static_cast<const GradientSums*>(gradient.parts->const_data_ptr()),
                   gradient.parts_count,
                   static_cast<const double*>(pointer<double>(link.vectors->var)), layer.bn.eps,
                   double(s.normalized()), layer.bn.batch_statistics,
                   static_cast<const ChannelAffine<float>*>(affine), pointer<float>(weight),
                   pointer<float>(bias), pointer<ChannelAffine<float>>(out), stream);
  const Tensor grad = new_tensor(link.map, sizes_of(link.map), link.map.scalar_type(), true);
  apply_gradients(NormalizeBackward<T, float>{channel_map(link.map, true), pointer<T>(gradient.map),
                                              static_cast<const T*>(link.map.const_data_ptr()),
                                              affine, false, 0},
                  static_cast<const ChannelAffine<float>*>(pointer<ChannelAffine<float>>(out)),
                  pointer<T>(grad), stream);
  BlockGradients g{grad, nothing(grad), nothing(grad)};
  if (layer.bn.weight) g.bn_weight = in_dtype(weight, layer.bn.weight->scalar_type());
  if (layer.bn.bias) g.bn_bias = in_dtype(bias, layer.bn.bias->scalar_type());
  if (layer.resample == Resample::kMaxPool2)
    g.conv = max_pooled_backward(grad, link.argmax, s, true);
  return g;
}

// Gradients that are 0, cut from one tensor: of biases that batch statistics cancel.
class Zeros {
 public:
  Zeros(const std::vector<Layer>& layers, const Tensor& x) : all_(nothing(x)) {
    int64_t size = 0;
    for (const Layer& layer : layers) size += layer.bias ? layer.bias->size(0) : 0;
    all_ = new_tensor(x, {size}, ScalarType::Float);
    torch::stable::zero_(all_);
  }
  Tensor take(const Tensor& bias) {
    const Tensor zeros = torch::stable::narrow(all_, 0, used_, bias.size(0));
    used_ += bias.size(0);
    return in_dtype(zeros, bias.scalar_type());
  }

 private:
  Tensor all_;
  int64_t used_ = 0;
};

Tensor bias_gradient(const Layer& layer, const Tensor& grad, Zeros& zeros) {
  if (!layer.bias) return nothing(grad);
  const bool cancels = layer.has_bn && layer.bn.batch_statistics;
  return cancels ? zeros.take(*layer.bias) : channel_sums(grad, layer.bias->scalar_type());
}

// What forward left: its links, and how each layer convolves them.
std::vector<Planned> read_saved(const std::vector<Layer>& layers, const std::vector<Tensor>& saved,
                                std::vector<Link>& links) {
  const bool strict = !allows_tf32();
  std::vector<Planned> plans;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    plans.push_back(plan_layer(layer, links, strict));
    if (i + 1 == layers.size()) break;
    const Tensor* s = &saved[kSavedTensors * i];
    const ChannelVectors vectors(s[2], s[3], s[4]);
    links.push_back(link_of(layer, plans[i].shape, s[0], s[1], vectors));
  }
  return plans;
}

// [grad_x, and of each layer: weight, bias, bn_weight, bn_bias]; empty where there is none.
std::vector<Tensor> chain_backward(const Tensor& grad_y, const Tensor& x,
                                   const std::vector<Tensor>& parameters,
                                   const std::vector<Tensor>& saved, const Ints& numbers,
                                   const std::vector<double>& eps, bool needs_x) {
  const std::vector<Layer> layers = read_layers(parameters, numbers, eps);
  const auto count = static_cast<int64_t>(layers.size());
  const OnDevice device(x);
  const Tensor grad = dense(grad_y, true);
  std::vector<Link> links{{dense(x, true), nothing(x), {}}};
  const std::vector<Planned> plans = read_saved(layers, saved, links);
  std::vector<LinkGradient> gradients(links.size());
  for (int64_t i = count - 1; i >= 0; --i) {
    for (int64_t from : {layers[i].main, layers[i].skip}) {
      if (from >= 0) gradients[from].needed = from > 0 || needs_x, gradients[from].last_reader = i;
    }
  }
  std::vector<Tensor> results;
  for (int64_t i = 0; i < 1 + 4 * count; ++i) results.push_back(nothing(x));
  Zeros zeros(layers, x);
  dispatch_own(x, [&](auto zero) {
    using T = decltype(zero);
    const Stream stream = device.stream();
    const auto packed = packed_backward<T>(layers, x, plans, gradients, stream);
    for (int64_t i = count - 1; i >= 0; --i) {
      BlockGradients g{grad, nothing(x), nothing(x)};
      if (layers[i].has_bn) g = norm_gradient<T>(layers[i], links[i + 1], gradients[i + 1], stream);
      if (i + 1 < count) gradients[i + 1].map.reset();  // its last use
      results[1 + 4 * i] = run_weight_gradient<T>(plans[i].own, g.conv, stream);
      results[2 + 4 * i] = bias_gradient(layers[i], g.conv, zeros);
      results[3 + 4 * i] = g.bn_weight, results[4 + 4 * i] = g.bn_bias;
      data_gradient<T>(layers[i], plans[i].own, i, links, gradients, g.conv, packed[i], stream);
    }
    return true;
  });
  if (needs_x) results[0] = *gradients[0].map;
  return results;
}

}  // namespace
}  // namespace colorseg::cuda

STABLE_TORCH_LIBRARY_IMPL(colorseg, COLORSEG_CUDA_KEY, m) {
  m.impl("chain_backward", TORCH_BOX(&colorseg::cuda::chain_backward));
}

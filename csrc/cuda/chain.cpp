// A chain of blocks in one call.  Between blocks only the map in front of batch norm is stored: its
// normalisation, ReLU and upsampling happen on the way into the next convolution, and the data
// gradient finds the sums that batch norm's gradient needs on its way out.
#include "../chain.h"

#include "own_block.h"

namespace colorseg::cuda {
namespace {

// The result of a layer, or the chain's input: a map and what is still to be done to it.
struct Link {
  Tensor map, argmax;
  std::optional<ChannelVectors> vectors;  // of its batch norm
  BlockShape shape{};
  bool relu = false, upsample = false;

  ConvInput input() const {
    return {map, vectors ? OptionalTensor(vectors->affines) : OptionalTensor(), relu};
  }
};

OwnConvolution own_of(const Layer& layer, const std::vector<Link>& links, const ConvShape& shape) {
  std::optional<ConvInput> skip;
  if (layer.skip >= 0) skip = links[layer.skip].input();
  return {links[layer.main].input(),  skip,          links[layer.main].upsample,
          dense(layer.weight, false), layer.options, shape};
}

struct Planned {
  OwnConvolution own;
  BlockShape shape;
  bool fits;  // whether there are kernels for it
};

// Channels of a link: 0 is the chain's input, i + 1 the result of layer i.
int channels_of_link(const std::vector<Layer>& layers, const Tensor& x, int64_t link) {
  if (link < 0) return 0;
  const int axis = link > 0 && layers[link - 1].options.transposed ? 1 : 0;
  return static_cast<int>(link == 0 ? x.size(1) : layers[link - 1].weight.size(axis));
}

// The weights of all layers, packed for the forward pass.
template <typename T>
std::vector<Tensor> packed_forward(const std::vector<Layer>& layers, const Tensor& x,
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
  return packed_weights<T>(weights, stream);
}

Planned plan_layer(const Layer& layer, const std::vector<Link>& links) {
  const Link& main = links[layer.main];
  const OptionalTensor skip = layer.skip < 0 ? OptionalTensor() : links[layer.skip].map;
  const Prologue prologue{{}, {}, false, main.upsample};
  const ConvShape conv =
      check_conv2d(main.map, layer.weight, layer.bias, skip, prologue, layer.options, true);
  BlockShape shape{conv,           layer.resample,  conv.out_height,
                   conv.out_width, conv.out_height, conv.out_width};
  if (layer.has_bn) shape = check_conv_bn_relu(main.map, conv, layer.resample, layer.bn, {});
  OwnConvolution own = own_of(layer, links, conv);
  const bool skips_upsampled = layer.skip >= 0 && links[layer.skip].upsample;
  const bool fits = !skips_upsampled && has_own_kernels(own);
  return {std::move(own), shape, fits};
}

Planned checked_plan(const std::vector<Layer>& layers, size_t i, const std::vector<Link>& links) {
  COLORSEG_CHECK(layers[i].has_bn != (i + 1 == layers.size()),
                 "the last layer of a chain, and no other, is a convolution without batch norm");
  Planned planned = plan_layer(layers[i], links);
  COLORSEG_CHECK(planned.fits, "layer ", i, " cannot be part of a chain on this device");
  return planned;
}

bool chain_fits(const Tensor& x, const std::vector<Tensor>& parameters, const Ints& numbers,
                const std::vector<double>& eps) {
  const std::vector<Layer> layers = read_layers(parameters, numbers, eps);
  const auto map = [&](const std::vector<int64_t>& sizes) {
    return new_tensor(x, sizes, x.scalar_type(), true);
  };
  std::vector<Link> links{{map(sizes_of(x)), nothing(x), {}}};
  for (const Layer& layer : layers) {
    const Planned planned = plan_layer(layer, links);
    if (!planned.fits) return false;
    const BlockShape& s = planned.shape;
    links.push_back({map({s.conv.n, s.conv.out_channels, s.height, s.width}),
                     nothing(x),
                     {},
                     s,
                     layer.relu,
                     layer.resample == Resample::kUpsample2});
  }
  return true;
}

// [y], and of each layer with batch norm what kSavedTensors says.
std::vector<Tensor> chain(const Tensor& x, const std::vector<Tensor>& parameters,
                          const Ints& numbers, const std::vector<double>& eps) {
  const std::vector<Layer> layers = read_layers(parameters, numbers, eps);
  const OnDevice device(x);
  std::vector<Link> links{{dense(x, true), nothing(x), {}}};
  std::vector<Tensor> results{x}, packed;
  dispatch_own(x, [&](auto zero) {
    packed = packed_forward<decltype(zero)>(layers, x, device.stream());
    return true;
  });
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    Planned planned = checked_plan(layers, i, links);
    planned.own.packed = packed[i];
    if (i + 1 == layers.size()) {
      results[0] = own_conv2d(planned.own, layer.bias);
      break;
    }
    const BlockMap map = own_block_map(planned.own, planned.shape, layer.bias, layer.bn);
    links.push_back({map.map, map.argmax, map.vectors, planned.shape, layer.relu,
                     layer.resample == Resample::kUpsample2});
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
  std::vector<Tensor> results, packed;
  dispatch_own(x, [&](auto zero) {
    packed = packed_forward<decltype(zero)>(layers, x, device.stream());
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
  std::vector<Link> links{{dense(x, true), nothing(x), {}}};
  for (size_t i = 0;; ++i) {
    Planned planned = checked_plan(layers, i, links);
    const Tensor* p = &prepared[kPreparedTensors * i];
    planned.own.packed = p[0];
    const OptionalTensor bias = optional(p[1]);
    if (i + 1 == layers.size()) return own_conv2d(planned.own, bias);
    const ChannelVectors vectors(nothing(x), nothing(x), p[2]);
    links.push_back({own_resampled(planned.own, planned.shape, bias), nothing(x), vectors,
                     planned.shape, layers[i].relu, layers[i].resample == Resample::kUpsample2});
  }
}

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
  const std::vector<Tensor> packed = packed_weights<T>(weights, stream);
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
  Convolution<T> p = *gradient_plan<T>(own, grad, skip);
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
  std::vector<Planned> plans;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    plans.push_back(plan_layer(layer, links));
    if (i + 1 == layers.size()) break;
    const Tensor* s = &saved[kSavedTensors * i];
    const ChannelVectors vectors(s[2], s[3], s[4]);
    links.push_back(
        {s[0], s[1], vectors, plans[i].shape, layer.relu, layer.resample == Resample::kUpsample2});
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
  m.impl("chain", TORCH_BOX(&colorseg::cuda::chain));
  m.impl("prepare_chain", TORCH_BOX(&colorseg::cuda::prepare_chain));
  m.impl("prepared_chain", TORCH_BOX(&colorseg::cuda::prepared_chain));
  m.impl("chain_fits", TORCH_BOX(&colorseg::cuda::chain_fits));
  m.impl("chain_backward", TORCH_BOX(&colorseg::cuda::chain_backward));
}

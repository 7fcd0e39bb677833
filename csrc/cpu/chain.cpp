// A chain of blocks in one call.  Between blocks only the map in front of batch norm is stored: its
// normalisation, ReLU and upsampling happen on the way into the next convolution, and backward
// finds the sums that batch norm's gradient needs on the way out of the data gradient.
#include "../chain.h"

#include "fused_block.h"

namespace colorseg::cpu {
namespace {

// The result of a layer, or the chain's input: a stored map and what is still to be done to it.
struct Link {
  Tensor map, argmax;
  Moments moments;
  BlockShape shape{};
  ChannelAffine<float> affine{0};
  bool has_affine = false, relu = false, upsample = false;

  Source source() const {
    Source s{map.const_data_ptr<float>(), map.size(1)};
    s.relu = relu;
    if (has_affine)
      s.center = affine.center.data(), s.scale = affine.scale.data(),
      s.offset = affine.offset.data();
    return s;
  }
};

struct Planned {
  OwnConvolution own;
  BlockShape shape;
};

Planned plan_layer(const Layer& layer, const std::vector<Link>& links, int64_t index) {
  const Link& main = links[layer.main];
  const OptionalTensor skip = layer.skip < 0 ? OptionalTensor() : links[layer.skip].map;
  const Prologue prologue{{}, {}, false, main.upsample};
  const ConvShape conv =
      check_conv2d(main.map, layer.weight, layer.bias, skip, prologue, layer.options);
  BlockShape shape{conv,           layer.resample,  conv.out_height,
                   conv.out_width, conv.out_height, conv.out_width};
  if (layer.has_bn) shape = check_conv_bn_relu(main.map, conv, layer.resample, layer.bn, {});
  auto own = own_convolution(main.map, layer.weight, skip, prologue, layer.options, conv);
  COLORSEG_CHECK(own && !(layer.skip >= 0 && links[layer.skip].upsample), "layer ", index,
                 " cannot be part of a chain");
  own->sources[0] = main.source();
  if (layer.skip >= 0) own->sources[1] = links[layer.skip].source();
  return {std::move(*own), shape};
}

Link link_of(const Layer& layer, const BlockShape& shape, Tensor map, Tensor argmax,
             Moments moments) {
  Link link{std::move(map), std::move(argmax), std::move(moments), shape};
  link.affine = affine_of<float>(link.moments, layer.bn.weight, layer.bn.bias, layer.bn.eps);
  link.has_affine = true;
  link.relu = layer.relu;
  link.upsample = layer.resample == Resample::kUpsample2;
  return link;
}

// [y], and of each layer with batch norm what kSavedTensors says; there is no affine here.
std::vector<Tensor> chain(const Tensor& x, const std::vector<Tensor>& parameters,
                          const Ints& numbers, const std::vector<double>& eps) {
  const std::vector<Layer> layers = read_layers(parameters, numbers, eps);
  std::vector<Link> links{{dense(x, false), nothing(x)}};
  std::vector<Tensor> results{x};
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    const Planned p = plan_layer(layer, links, static_cast<int64_t>(i));
    if (!layer.has_bn) {
      COLORSEG_CHECK(i + 1 == layers.size(), "only the last layer of a chain has no batch norm");
      results[0] = convolve_map(p.own, layer.weight, layer.bias);
      return results;
    }
    const bool batch = layer.bn.batch_statistics;
    Convolved c = convolve_block(p.own, layer.weight, layer.bias, p.shape, batch);
    const int64_t channels = p.shape.conv.out_channels;
    if (!batch)
      c.moments = {doubles_of(layer.bn.running_mean, channels, 0),
                   doubles_of(layer.bn.running_var, channels, 1)};
    results.insert(results.end(), {c.z, c.argmax, vector_of(c.moments.mean, x, ScalarType::Double),
                                   vector_of(c.moments.var, x, ScalarType::Double), nothing(x)});
    links.push_back(link_of(layer, p.shape, c.z, c.argmax, c.moments));
  }
  COLORSEG_CHECK(false, "the last layer of a chain must be a convolution without batch norm");
}

// The gradient behind the ReLU of one link, filled by the layers that read it.
struct LinkGradient {
  bool needed = false;
  int64_t first_reader = 0;  // the last one to add to it, since backward goes from the end
  OptionalTensor map;
  GradientSums sums;
};

// Where the data gradient of a layer goes: to one link, which starts at `channel`.
struct Target {
  const Link& link;
  LinkGradient& gradient;
  int64_t channel;
  bool adds, last;
  std::vector<double> g, gx;  // partial sums [pieces][channels]

  // One channel of one piece.
  void take(int64_t c, const Piece& piece, const PieceResult& r, ConvScratch& s) {
    const int64_t channels = link.map.size(1), width = r.width();
    const int64_t plane = link.map.size(2) * width, count = r.lines() * width;
    for (int64_t i = 0; i < piece.images && count > 0; ++i) {
      const int64_t at = ((piece.image + i) * channels + c) * plane + r.line() * width;
      float* to = gradient.map->mutable_data_ptr<float>() + at;
      r.collect(i, channel + c, adds ? s.plane[0] : to);
      if (adds) isa().conv.add(count, s.plane[0], to);
      if (!last) continue;
      double sum_g, sum_gx;
      kernels<float>().backward_sums({count, 1}, to, link.map.const_data_ptr<float>() + at,
                                     link.affine.from(c), link.relu, &sum_g, &sum_gx);
      g[piece.index * channels + c] += sum_g, gx[piece.index * channels + c] += sum_gx;
    }
  }

  void finish(int64_t pieces) {
    if (!last) return;
    const int64_t channels = link.map.size(1);
    gradient.sums = {std::vector<double>(channels), std::vector<double>(channels)};
    for (int64_t i = 0; i < pieces * channels; ++i) {
      gradient.sums.g[i % channels] += g[i];
      gradient.sums.gx[i % channels] += gx[i];
    }
  }
};

Target target_of(const Link& link, LinkGradient& gradient, int64_t channel, int64_t layer,
                 int64_t pieces) {
  const bool adds = gradient.map.has_value();
  if (!adds) gradient.map = new_tensor(link.map, sizes_of(link.map), ScalarType::Float);
  const bool last = link.has_affine && gradient.first_reader == layer;
  const std::vector<double> zeros(last ? pieces * link.map.size(1) : 0);
  return {link, gradient, channel, adds, last, zeros, zeros};
}

struct LayerGradients {
  Tensor weight, bias, bn_weight, bn_bias;
};

// Adds to the gradients of the links that the layer reads, and returns those of its parameters.
LayerGradients layer_backward(const Layer& layer, const Planned& planned, int64_t index,
                              const std::vector<Link>& links, std::vector<LinkGradient>& gradients,
                              const Tensor& grad_y) {
  const ConvPlan& p = planned.own.plan;
  LayerGradients g{new_tensor(layer.weight, sizes_of(layer.weight), ScalarType::Float),
                   nothing(grad_y), nothing(grad_y), nothing(grad_y)};
  const bool batch = layer.has_bn && layer.bn.batch_statistics;
  std::vector<double> bias(p.y_channels);
  const int64_t split = planned.own.sources[0].channels;
  std::optional<Target> main, skip;
  if (gradients[layer.main].needed)
    main.emplace(target_of(links[layer.main], gradients[layer.main], 0, index, p.pieces));
  if (layer.skip >= 0 && gradients[layer.skip].needed)
    skip.emplace(target_of(links[layer.skip], gradients[layer.skip], split, index, p.pieces));
  const ConvBackward wanted{skip   ? p.x_channels
                            : main ? split
                                   : 0,
                            g.weight.mutable_data_ptr<float>(),
                            layer.bias && !batch ? bias.data() : nullptr};
  const auto finish = [&](const Piece& piece, const PieceResult& r, ConvScratch& s) {
    for (int64_t c = 0; main && c < split; ++c) main->take(c, piece, r, s);
    for (int64_t c = split; skip && c < p.x_channels; ++c) skip->take(c - split, piece, r, s);
  };
  const Tensor weight = dense(layer.weight, false);
  const float* w = weight.const_data_ptr<float>();
  if (layer.has_bn) {
    const Link& link = links[index + 1];
    const GradientSums& sums = gradients[index + 1].sums;
    const auto out = gradient_affine(link.affine, sums, link.moments.var, layer.bn.eps,
                                     double(link.shape.normalized()));
    const BlockGradient lines{
        link.shape,
        gradients[index + 1].map->const_data_ptr<float>(),
        link.map.const_data_ptr<float>(),
        link.affine,
        out,
        layer.relu,
        batch,
        layer.resample == Resample::kMaxPool2 ? link.argmax.const_data_ptr<uint8_t>() : nullptr};
    convolve_backward(p, planned.own.sources, w, lines, wanted, finish);
    if (layer.bn.weight)
      g.bn_weight = vector_like(gamma_gradient(sums, link.moments, layer.bn.eps), *layer.bn.weight);
    if (layer.bn.bias) g.bn_bias = vector_like(sums.g, *layer.bn.bias);
  } else {
    const float* from = grad_y.const_data_ptr<float>();
    const int64_t plane = p.shape.y_size[0] * p.shape.y_size[1];
    const auto lines = [&](int64_t n, int64_t c, int64_t, int64_t, ConvScratch&) {
      return from + (n * p.y_channels + c) * plane;
    };
    convolve_backward(p, planned.own.sources, w, lines, wanted, finish);
  }
  if (main) main->finish(p.pieces);
  if (skip) skip->finish(p.pieces);
  if (layer.bias) g.bias = vector_like(bias, *layer.bias);
  return g;
}

// [grad_x, and of each layer: weight, bias, bn_weight, bn_bias]; empty where there is none.
std::vector<Tensor> chain_backward(const Tensor& grad_y_, const Tensor& x,
                                   const std::vector<Tensor>& parameters,
                                   const std::vector<Tensor>& saved, const Ints& numbers,
                                   const std::vector<double>& eps, bool needs_x) {
  const std::vector<Layer> layers = read_layers(parameters, numbers, eps);
  const auto count = static_cast<int64_t>(layers.size());
  std::vector<Link> links{{dense(x, false), nothing(x)}};
  links.reserve(count);  // plans point into links
  std::vector<Planned> plans;
  for (int64_t i = 0; i < count; ++i) {
    plans.push_back(plan_layer(layers[i], links, i));
    if (i + 1 == count) break;
    const Tensor* s = &saved[kSavedTensors * i];
    const BlockShape& shape = plans[i].shape;
    const int64_t channels = shape.conv.out_channels;
    links.push_back(link_of(layers[i], shape, s[0], s[1],
                            {doubles_of(s[2], channels, 0), doubles_of(s[3], channels, 1)}));
  }
  std::vector<LinkGradient> gradients(links.size());
  for (int64_t i = count - 1; i >= 0; --i) {
    for (int64_t from : {layers[i].main, layers[i].skip}) {
      if (from >= 0) gradients[from].needed = from > 0 || needs_x, gradients[from].first_reader = i;
    }
  }
  const Tensor grad_y = dense(grad_y_, false);
  std::vector<Tensor> results(1 + 4 * count, nothing(x));
  for (int64_t i = count - 1; i >= 0; --i) {
    const LayerGradients g = layer_backward(layers[i], plans[i], i, links, gradients, grad_y);
    results[1 + 4 * i] = g.weight, results[2 + 4 * i] = g.bias;
    results[3 + 4 * i] = g.bn_weight, results[4 + 4 * i] = g.bn_bias;
    if (i + 1 < count) gradients[i + 1].map.reset();  // its last use
  }
  if (needs_x) results[0] = *gradients[0].map;
  return results;
}

}  // namespace
}  // namespace colorseg::cpu

STABLE_TORCH_LIBRARY_IMPL(colorseg, CPU, m) {
  m.impl("chain", TORCH_BOX(&colorseg::cpu::chain));
  m.impl("chain_backward", TORCH_BOX(&colorseg::cpu::chain_backward));
}

#include "chain_links.h"

namespace colorseg::cuda {
namespace {

OwnConvolution own_of(const Layer& layer, const std::vector<Link>& links, const ConvShape& shape,
                      bool strict) {
  std::optional<ConvInput> skip;
  if (layer.skip >= 0) skip = links[layer.skip].input();
  return {links[layer.main].input(),
          skip,
          links[layer.main].upsample,
          dense(layer.weight, false),
          layer.options,
          shape,
          strict};
}

}  // namespace

Link link_of(const Layer& layer, const BlockShape& shape, const Tensor& map, const Tensor& argmax,
             const std::optional<ChannelVectors>& vectors) {
  return {map, argmax, vectors, shape, layer.relu, layer.resample == Resample::kUpsample2};
}

int channels_of_link(const std::vector<Layer>& layers, const Tensor& x, int64_t link) {
  if (link < 0) return 0;
  const int axis = link > 0 && layers[link - 1].options.transposed ? 1 : 0;
  return static_cast<int>(link == 0 ? x.size(1) : layers[link - 1].weight.size(axis));
}

Planned plan_layer(const Layer& layer, const std::vector<Link>& links, bool strict) {
  const Link& main = links[layer.main];
  const OptionalTensor skip = layer.skip < 0 ? OptionalTensor() : links[layer.skip].map;
  const Prologue prologue{{}, {}, false, main.upsample};
  const ConvShape conv =
      check_conv2d(main.map, layer.weight, layer.bias, skip, prologue, layer.options, true);
  BlockShape shape{conv,           layer.resample,  conv.out_height,
                   conv.out_width, conv.out_height, conv.out_width};
  if (layer.has_bn) shape = check_conv_bn_relu(main.map, conv, layer.resample, layer.bn, {});
  OwnConvolution own = own_of(layer, links, conv, strict);
  const bool skips_upsampled = layer.skip >= 0 && links[layer.skip].upsample;
  const bool fits = !skips_upsampled && has_own_kernels(own);
  return {std::move(own), shape, fits};
}

}  // namespace colorseg::cuda

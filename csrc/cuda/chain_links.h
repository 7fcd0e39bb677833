// What the operators of a chain have in common: its links, and how a layer convolves them.
#pragma once
#include "../chain.h"
#include "own_block.h"

namespace colorseg::cuda {

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

// The link that a layer makes of what it stored.
Link link_of(const Layer& layer, const BlockShape& shape, const Tensor& map, const Tensor& argmax,
             const std::optional<ChannelVectors>& vectors);

// How a layer convolves its links.
struct Planned {
  OwnConvolution own;
  BlockShape shape;
  bool fits;  // whether there are kernels for it
};

// Channels of a link: 0 is the chain's input, i + 1 the result of layer i.
int channels_of_link(const std::vector<Layer>& layers, const Tensor& x, int64_t link);

// Checks what a layer is given.  strict: as in OwnConvolution, the same for all layers of a call.
Planned plan_layer(const Layer& layer, const std::vector<Link>& links, bool strict);

}  // namespace colorseg::cuda

// Folds batch norm into the weights of a chain and packs them, once for many calls of packed_chain.
#include <torch/headeronly/util/BFloat16.h>

#include <cstring>

#include "fused_block.h"
#include "packed_chain.h"

namespace colorseg::cpu {

void check_pair_kernels(bool pairs) {
  COLORSEG_CHECK(!pairs || pair_kernels(), "bfloat16 needs the AVX512_BF16 instructions, but ",
                 isa().name, " runs here; optimise the model for float32");
}

std::vector<PackedLayer> read_packed(const Ints& numbers, bool pairs) {
  std::vector<PackedLayer> layers;
  const auto count = static_cast<int64_t>(numbers.size()) / kPackedInts;
  COLORSEG_CHECK(static_cast<int64_t>(numbers.size()) == count * kPackedInts && count > 0,
                 "a packed chain needs ", kPackedInts, " numbers for each layer");
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* n = &numbers[i * kPackedInts];
    COLORSEG_CHECK(n[0] >= 0 && n[0] <= i && n[1] >= -1 && n[1] <= i, "layer ", i,
                   " of a chain takes a layer that does not come before it");
    const int64_t* weight = n + kLayerInts;
    PackedLayer l = {
        n[0],
        n[1],
        {{n[3], n[3]}, {n[4], n[5], n[6], n[7]}, {n[8], n[9]}, 1, n[2] != 0, {n[10], n[11]}},
        static_cast<Resample>(n[12]),
        n[13] != 0,
        n[14] != 0,
        n[0] > 0 && layers[n[0] - 1].resample == Resample::kUpsample2,
        n[2] ? weight[0] : weight[1],
        n[2] ? weight[1] : weight[0],
        {weight[2], weight[3]},
        pairs,
        0};
    if (l.main > 0)
      l.main_channels = layers[l.main - 1].y_channels;
    else
      l.main_channels = l.x_channels - (l.skip > 0 ? layers[l.skip - 1].y_channels : 0);
    COLORSEG_CHECK(l.main_channels > 0 && l.main_channels <= l.x_channels &&
                       (l.skip >= 0 || l.main_channels == l.x_channels),
                   "layer ", i, " of a chain takes ", l.x_channels,
                   " channels, which the layers before it do not have");
    layers.push_back(l);
  }
  return layers;
}

namespace {

// The same weights in pairs of input channels, each one 32 bits.
std::vector<float> paired(const std::vector<float>& weight, const PackedLayer& l) {
  const int64_t area = l.kernel[0] * l.kernel[1], lines = l.x_lines();
  std::vector<uint32_t> bits(lines * l.y_channels * area);
  for (int64_t in = 0; in < l.x_channels; ++in) {
    const int64_t behind = in - l.main_channels;  // in skip
    const int64_t line = behind < 0 ? in / 2 : lines_of(l.main_channels, true) + behind / 2;
    const int64_t shift = 16 * ((behind < 0 ? in : behind) % 2);
    for (int64_t out = 0; out < l.y_channels; ++out) {
      const bool t = l.options.transposed;
      const int64_t from = t ? in * l.y_channels + out : out * l.x_channels + in;
      const int64_t to = t ? line * l.y_channels + out : out * lines + line;
      for (int64_t k = 0; k < area; ++k)
        bits[to * area + k] |= uint32_t(torch::headeronly::BFloat16(weight[from * area + k]).x)
                               << shift;
    }
  }
  std::vector<float> pairs(bits.size());
  std::memcpy(pairs.data(), bits.data(), bits.size() * sizeof(float));
  return pairs;
}

// Folds batch norm into one layer's weights, [out][in][k] or [in][out][k], and packs them.
void pack_layer(const Layer& layer, const PackedLayer& l, float* to) {
  const int64_t area = l.kernel[0] * l.kernel[1];
  const auto scale_of = [&] {
    std::vector<double> scale(l.y_channels, 1);
    if (!layer.has_bn) return scale;
    const auto gamma = doubles_of(layer.bn.weight, l.y_channels, 1),
               var = doubles_of(layer.bn.running_var, l.y_channels, 1);
    for (int64_t c = 0; c < l.y_channels; ++c)
      scale[c] = gamma[c] / std::sqrt(var[c] + layer.bn.eps);
    return scale;
  }();
  const auto mean = doubles_of(layer.bn.running_mean, l.y_channels, 0),
             beta = doubles_of(layer.bn.bias, l.y_channels, 0),
             bias = doubles_of(layer.bias, l.y_channels, 0);
  const Tensor original = dense(to_dtype(layer.weight, ScalarType::Float), false);
  std::vector<float> weight(original.const_data_ptr<float>(),
                            original.const_data_ptr<float>() + original.numel());
  float* at_bias = to + l.direct_size() + l.winograd_size();
  float *at_scale = at_bias + aligned(l.y_channels), *at_offset = at_scale + aligned(l.y_channels);
  for (int64_t c = 0; c < l.y_channels; ++c) {
    const double offset = beta[c] - mean[c] * scale_of[c];
    const bool kept = l.keeps_affine();
    at_bias[c] = float(kept ? bias[c] : bias[c] * scale_of[c] + offset);
    at_scale[c] = float(scale_of[c]), at_offset[c] = float(offset);
    for (int64_t i = 0; !kept && i < l.x_channels * area; ++i) {
      const int64_t at = l.options.transposed ? (i / area * l.y_channels + c) * area + i % area
                                              : c * l.x_channels * area + i;
      weight[at] = float(weight[at] * scale_of[c]);
    }
  }
  if (l.pairs) weight = paired(weight, l);
  const int64_t side = 8 * (l.upsampled ? 2 : 1);  // the order of weights is that of any size
  ConvShape shape{1, l.x_lines(), 0, side, side, l.y_channels, side, side};
  for (bool winograd : {false, true}) {
    if (winograd && !l.may_be_winograd()) continue;
    ConvPlan plan = plan_convolution(shape, l.kernel[0], l.kernel[1], l.options, l.upsampled,
                                     fixed_bands(1), l.pairs);
    plan.winograd = winograd;
    if (!winograd) {
      plan.geometry = make_geometry(plan.shape, false, 1);
      plan.taps = forward_taps(plan.geometry, plan.length);
    }
    const std::vector<float> packed = pack_forward(plan, weight.data());
    std::copy(packed.begin(), packed.end(), winograd ? to + l.direct_size() : to);
  }
}

Tensor pack_chain(const std::vector<Tensor>& parameters, const Ints& numbers,
                  const std::vector<double>& eps, bool bfloat16) {
  check_pair_kernels(bfloat16);
  const std::vector<PackedLayer> packed_layers = read_packed(numbers, bfloat16);
  Ints plain;
  int64_t total = 0;
  for (size_t i = 0; i < packed_layers.size(); ++i) {
    plain.insert(plain.end(), &numbers[i * kPackedInts], &numbers[i * kPackedInts] + kLayerInts);
    total += packed_layers[i].size();
  }
  const std::vector<Layer> layers = read_layers(parameters, plain, eps);
  // Module.to leaves integers alone: it would change bits
  Tensor packed =
      new_tensor(layers[0].weight, {total}, bfloat16 ? ScalarType::Int : ScalarType::Float);
  float* to = static_cast<float*>(packed.mutable_data_ptr());
  std::fill_n(to, total, 0.0f);
  for (size_t i = 0; i < layers.size(); ++i) {
    pack_layer(layers[i], packed_layers[i], to);
    to += packed_layers[i].size();
  }
  return packed;
}

}  // namespace
}  // namespace colorseg::cpu

STABLE_TORCH_LIBRARY_IMPL(colorseg, CPU, m) {
  m.impl("pack_chain", TORCH_BOX(&colorseg::cpu::pack_chain));
}

// The layers of a chain for inference in bfloat16: maps are stored as pairs of channels, so that
// they are placed like float32 and take half its room.
#include "convolve.h"
#include "packed_chain.h"

namespace colorseg::cpu {
namespace {

// What becomes of a layer's result: it is pooled, what is left of its block is done to it, and it
// is stored as pairs for the layers behind it or, from the last layer, as the network's.
struct PairResult {
  const PackedLayer& layer;
  const PlannedLayer& planned;
  const float *scale, *offset;  // or null
  float* pairs;                 // (N, pairs, height, width), or null in the last layer
  uint16_t* y;                  // (N, C, height, width)

  bool pool() const { return layer.resample == Resample::kMaxPool2; }
  PieceResult::Kept kept(const PieceResult& r) const { return r.kept(pool(), planned.height); }

  Activation activation(int64_t c) const {
    if (!scale) return {0, 1, 0, false, layer.has_bn && layer.relu};
    return {0, scale[c], offset[c], true, layer.relu};
  }

  // Channel c of image piece.image + i: where it lies, or collected into one of two planes.
  Rows rows(const PieceResult& r, int64_t i, int64_t c, ConvScratch& s) const {
    if (!pool() && r.in_place()) return r.rows(i, c);
    float* to = s.plane[1 + c % 2];
    if (pool())
      r.collect_pooled(i, c, kept(r).count, s, to);
    else
      r.collect(i, c, to);
    const int64_t count = kept(r).count * planned.width;
    return {to, 1, count, planned.width};
  }

  void store(const Piece& piece, const PieceResult& r, int64_t i, int64_t c, ConvScratch& s) const {
    const bool alone = c + 1 == layer.y_channels;
    const Rows even = rows(r, i, c, s);
    const float* odd = alone ? nullptr : rows(r, i, c + 1, s).data;
    const int64_t plane = (piece.image + i) * lines_of(layer.y_channels, true) + c / 2;
    pair_kernels()->join(even, odd, activation(c), activation(alone ? c : c + 1),
                         pairs + (plane * planned.height + kept(r).first) * planned.width);
  }

  void write(const Piece& piece, const PieceResult& r, int64_t i, int64_t c, ConvScratch& s) const {
    const Rows from = rows(r, i, c, s);
    const int64_t plane = (piece.image + i) * layer.y_channels + c, width = planned.width;
    const int64_t line = plane * planned.height + kept(r).first;
    if (layer.resample != Resample::kUpsample2)
      return pair_kernels()->narrow(from, activation(c), y + line * width);
    // a value paired with itself is upsampled
    for (int64_t l = 0; l < 2 * kept(r).count; ++l) {
      const Rows values{from.data + l / 2 * from.pitch, 1, width, width};
      pair_kernels()->join(values, values.data, activation(c), activation(c),
                           reinterpret_cast<float*>(y + (2 * line + l) * 2 * width));
    }
  }

  void operator()(const Piece& piece, const PieceResult& r, ConvScratch& s) const {
    if (kept(r).count <= 0) return;
    for (int64_t i = 0; i < piece.images; ++i) {
      for (int64_t c = 0; c < layer.y_channels; c += pairs ? 2 : 1)
        pairs ? store(piece, r, i, c, s) : write(piece, r, i, c, s);
    }
  }
};

}  // namespace

void join_images(const BatchSize& size, const uint16_t* x, float* pairs) {
  const int64_t pixels = size.height * size.width, channels = size.channels;
  for (int64_t image = 0; image < size.n; ++image, x += channels * pixels) {
    for (int64_t c = 0; c < channels; c += 2, pairs += pixels)
      pair_kernels()->join_halves(pixels, x + c * pixels,
                                  c + 1 < channels ? x + (c + 1) * pixels : nullptr, pairs);
  }
}

void run_pair_layer(const ChainPlan& plan, int64_t i, const float* packed, uint16_t* y, float* maps,
                    NextPiece next) {
  const auto source = [&](int64_t index) {
    Source s;
    if (index < 0) return s;
    s.data = maps + (index == 0 ? 0 : plan.planned[index - 1].offset);
    s.channels =
        lines_of(index == 0 ? plan.size.channels : plan.layers[index - 1].y_channels, true);
    return s;
  };
  const PackedLayer& l = plan.layers[i];
  const PlannedLayer& p = plan.planned[i];
  const bool last = i + 1 == plan.count();
  const float* const weights = packed + p.weights;
  const float* const bias = weights + l.bias();
  const float* const scale = l.keeps_affine() ? bias + aligned(l.y_channels) : nullptr;
  const PairResult result{l,
                          p,
                          scale,
                          scale ? scale + aligned(l.y_channels) : nullptr,
                          last ? nullptr : maps + p.offset,
                          y};
  convolve_pieces(p.conv, {source(l.main), source(l.skip)}, weights, bias, result, next);
}

}  // namespace colorseg::cpu

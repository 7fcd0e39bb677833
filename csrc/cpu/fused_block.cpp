#include "fused_block.h"

namespace colorseg::cpu {
Map map_of(const BlockShape& s, bool channels_last) {
  const bool up = s.resample == Resample::kUpsample2;
  return {s.conv.n,
          s.conv.out_channels,
          s.height,
          s.width,
          up ? s.y_height : s.conv.out_height,
          up ? s.y_width : s.conv.out_width,
          channels_last};
}

Convolved convolve_block(const OwnConvolution& own, const Tensor& weight_,
                         const OptionalTensor& bias_, const BlockShape& s, bool statistics) {
  const Map map = map_of(s, false);
  const bool pool = s.resample == Resample::kMaxPool2;
  const Tensor weight = dense(weight_, false);
  const OptionalTensor bias = bias_ ? OptionalTensor(dense(*bias_, false)) : bias_;
  const int64_t channels = map.channels, plane = map.height * map.width;
  Convolved result{
      new_tensor(weight, {map.n, channels, map.height, map.width}, ScalarType::Float),
      new_tensor(weight, {pool ? map.planes() * map.packed_plane() : 0}, ScalarType::Byte),
      {}};
  float* z = result.z.mutable_data_ptr<float>();
  uint8_t* argmax = pool ? result.argmax.mutable_data_ptr<uint8_t>() : nullptr;
  std::vector<RunningMoments> partial(statistics ? own.plan.pieces * channels : 0);
  const auto finish = [&](const Piece& piece, const PieceResult& r, ConvScratch& scratch) {
    const auto [first, lines] = r.kept(pool, map.height);
    if (lines <= 0) return;
    const Run run{lines * map.width, 1};
    for (int64_t c = 0; c < channels; ++c) {
      RunningMoments sums;
      for (int64_t i = 0; i < piece.images; ++i) {
        const int64_t index = (piece.image + i) * channels + c;
        float* to = z + index * plane + first * map.width;
        r.collect(i, c, pool ? scratch.plane[0] : to);
        if (pool) {
          const Tile tile{lines, map.width, 1, map.full_width};
          kernels<float>().maxpool2(tile, scratch.plane[0], to, scratch.codes.data());
          isa().pack_codes(run.pixels, scratch.codes.data(),
                           argmax + index * map.packed_plane() + first * map.width / 4);
        }
        if (!statistics) continue;
        double mean, m2;
        kernels<float>().moments(run, to, &mean, &m2);
        sums.merge(double(run.pixels), mean, m2);
      }
      if (statistics) partial[piece.index * channels + c] = sums;
    }
  };
  convolve(own.plan, own.sources, pack_forward(own.plan, weight.const_data_ptr<float>()).data(),
           bias ? bias->const_data_ptr<float>() : nullptr, finish);
  for (int64_t c = 0; statistics && c < channels; ++c) {
    RunningMoments sums;
    for (int64_t i = 0; i < own.plan.pieces; ++i) {
      const RunningMoments& p = partial[i * channels + c];
      sums.merge(p.count, p.mean, p.m2);
    }
    result.moments.mean.push_back(sums.mean);
    result.moments.var.push_back(sums.m2 / sums.count);
  }
  return result;
}

Tensor convolve_map(const OwnConvolution& own, const Tensor& weight_, const OptionalTensor& bias_) {
  const ConvPlan& p = own.plan;
  const int64_t height = p.shape.y_size[0], width = p.shape.y_size[1];
  const Tensor weight = dense(weight_, false);
  const OptionalTensor bias = bias_ ? OptionalTensor(dense(*bias_, false)) : bias_;
  Tensor y = new_tensor(weight, {p.images, p.y_channels, height, width}, ScalarType::Float);
  float* to = y.mutable_data_ptr<float>();
  convolve(p, own.sources, pack_forward(p, weight.const_data_ptr<float>()).data(),
           bias ? bias->const_data_ptr<float>() : nullptr,
           [&](const Piece& piece, const PieceResult& r, ConvScratch&) {
             for (int64_t c = 0; c < p.y_channels; ++c) {
               for (int64_t i = 0; i < piece.images; ++i) {
                 const int64_t plane = (piece.image + i) * p.y_channels + c;
                 r.collect(i, c, to + (plane * height + r.line()) * width);
               }
             }
           });
  return y;
}

const float* BlockGradient::operator()(int64_t n, int64_t c, int64_t first, int64_t last,
                                       ConvScratch& s) const {
  const bool pool = shape.resample == Resample::kMaxPool2;
  const int64_t width = shape.width, index = n * shape.conv.out_channels + c;
  const int64_t from = pool ? first / 2 : first;
  const int64_t to = pool ? std::min((last + 1) / 2, shape.height) : last;
  const int64_t at = index * shape.height * width + from * width;
  const Run run{std::max<int64_t>(to - from, 0) * width, 1};
  kernels<float>().backward_apply(run, grad + at, z + at, affine.from(c), relu, out.from(c),
                                  statistics, s.plane[0]);
  if (!pool) return s.plane[0] - first * width;
  const Map map = map_of(shape, false);
  const int64_t code = from * width, skip = code % 4;  // packed codes start at a byte
  isa().unpack_codes(run.pixels + skip, argmax + index * map.packed_plane() + code / 4,
                     s.codes.data());
  if (map.full_height % 2 || map.full_width % 2)  // no square covers the edge
    std::fill_n(s.plane[1], (last - 2 * from) * map.full_width, 0.0f);
  kernels<float>().maxpool2_backward({to - from, width, 1, map.full_width}, s.plane[0],
                                     s.codes.data() + skip, s.plane[1]);
  return s.plane[1] - 2 * from * map.full_width;
}

}  // namespace colorseg::cpu

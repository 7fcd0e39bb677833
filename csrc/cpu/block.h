// Sweeps of batch norm, ReLU and 2x2 resampling over a whole map: each reads and writes memory
// once, tile by tile, with everything between in the cache.
#pragma once
#include "tiles.h"

namespace colorseg::cpu {

inline Tensor widened(const Tensor& x) {  // half types are computed in float32
  const bool half = x.scalar_type() == ScalarType::BFloat16 || x.scalar_type() == ScalarType::Half;
  return half ? torch::stable::to(x, ScalarType::Float) : x;
}

inline std::vector<double> doubles_of(const OptionalTensor& t, int64_t channels, double otherwise) {
  std::vector<double> values(channels, otherwise);
  if (!t) return values;
  const Tensor wide = torch::stable::contiguous(torch::stable::to(*t, ScalarType::Double));
  std::copy_n(wide.const_data_ptr<double>(), channels, values.begin());
  return values;
}

inline Tensor vector_of(const std::vector<double>& values, const Tensor& like,
                        std::optional<ScalarType> dtype = {}) {
  Tensor wide = new_tensor(like, {static_cast<int64_t>(values.size())}, ScalarType::Double);
  std::copy(values.begin(), values.end(), wide.mutable_data_ptr<double>());
  return torch::stable::to(wide, dtype.value_or(like.scalar_type()));
}

inline Tensor scalar_of(const Tensor& like, double value, ScalarType dtype) {
  Tensor wide = new_tensor(like, {}, ScalarType::Double);
  *wide.mutable_data_ptr<double>() = value;
  return torch::stable::to(wide, dtype);
}

struct Moments {
  std::vector<double> mean, var;  // [C]; var is biased
};

// Mean and variance per channel from (count, mean, M2) per tile, merged by Chan's formula in
// double.
inline Moments merge_moments(const Map& map, const std::vector<double>& partial) {
  Moments m{std::vector<double>(map.channels), std::vector<double>(map.channels)};
  std::vector<double> count(map.channels);
  for_each_partial(map, partial, 2, [&](int64_t c, int64_t tile, const double* part) {
    const double n = double(tile_at(map, tile).run().pixels), total = count[c] + n;
    const double delta = part[0] - m.mean[c];
    m.mean[c] = count[c] == 0 ? part[0] : (count[c] * m.mean[c] + n * part[0]) / total;
    m.var[c] += part[1] + (count[c] == 0 ? 0 : delta * delta * count[c] * n / total);
    count[c] = total;
  });
  for (int64_t c = 0; c < map.channels; ++c) m.var[c] /= count[c];
  return m;
}

// Where the per-tile results of a tile's channels stand.
inline int64_t partial_at(const Map& map, const TileAt& tile) {
  return tile.index * map.interleaved();
}

// The statistics of x; with `pooled`, of its 2x2 max-pool, which is written on the way with its
// argmax.
template <typename T>
Moments statistics(const Map& map, const T* x, T* pooled, uint8_t* argmax) {
  std::vector<double> partial(map.tiles() * map.interleaved() * 2),
      mean(map.tiles() * map.interleaved()), m2(mean);
  for_each_tile<T>(map, [&](const TileAt& tile, T*) {
    if (pooled)
      kernels<T>().maxpool2(tile.shape, x + tile.full_offset, pooled + tile.offset,
                            argmax + tile.offset);
    const int64_t at = partial_at(map, tile);
    kernels<T>().moments(tile.run(), (pooled ? pooled : x) + tile.offset, &mean[at], &m2[at]);
  });
  for (size_t i = 0; i < mean.size(); ++i) partial[2 * i] = mean[i], partial[2 * i + 1] = m2[i];
  return merge_moments(map, partial);
}

template <typename T>
void maxpool(const Map& map, const T* x, T* pooled, uint8_t* argmax) {
  for_each_tile<T>(map, [&](const TileAt& tile, T*) {
    kernels<T>().maxpool2(tile.shape, x + tile.full_offset, pooled + tile.offset,
                          argmax + tile.offset);
  });
}

// y = relu((x - center) * scale + offset), replicated 2x2 with `upsample`.
template <typename T>
void normalize(const Map& map, const T* x, const ChannelAffine<T>& affine, bool relu, bool upsample,
               T* y) {
  for_each_tile<T>(map, [&](const TileAt& tile, T* scratch) {
    T* to = upsample ? scratch : y + tile.offset;
    kernels<T>().affine_relu(tile.run(), x + tile.offset, affine.from(tile.channel), relu, to);
    if (upsample) kernels<T>().upsample2(tile.shape, scratch, y + tile.full_offset);
  });
}

struct GradientSums {
  std::vector<double> g,
      gx;  // [C]: sums of g and g * (x - center), with g the gradient behind the ReLU
};

// The gradient of one tile of the normalised map: the sum over each 2x2 square if y was upsampled.
template <typename T>
const T* tile_gradient(const TileAt& tile, const T* grad_y, bool upsampled, T* scratch) {
  if (!upsampled) return grad_y + tile.offset;
  kernels<T>().upsample2_backward(tile.shape, grad_y + tile.full_offset, scratch);
  return scratch;
}

template <typename T>
GradientSums gradient_sums(const Map& map, const T* grad_y, const T* x,
                           const ChannelAffine<T>& affine, bool relu, bool upsampled) {
  std::vector<double> g(map.tiles() * map.interleaved()), gx(g);
  for_each_tile<T>(map, [&](const TileAt& tile, T* scratch) {
    const int64_t at = partial_at(map, tile);
    kernels<T>().backward_sums(tile.run(), tile_gradient(tile, grad_y, upsampled, scratch),
                               x + tile.offset, affine.from(tile.channel), relu, &g[at], &gx[at]);
  });
  GradientSums sums{std::vector<double>(map.channels), std::vector<double>(map.channels)};
  for_each_partial(map, g, 1, [&](int64_t c, int64_t, const double* part) { sums.g[c] += *part; });
  for_each_partial(map, gx, 1,
                   [&](int64_t c, int64_t, const double* part) { sums.gx[c] += *part; });
  return sums;
}

// grad_x = out.scale * g, and with statistics + out.center * (x - center) + out.offset; with argmax
// it goes to the full map.
template <typename T>
void gradient_apply(const Map& map, const T* grad_y, const T* x, const ChannelAffine<T>& affine,
                    bool relu, bool upsampled, const ChannelAffine<T>& out, bool statistics,
                    const uint8_t* argmax, T* grad_x) {
  for_each_tile<T>(map, [&](const TileAt& tile, T* scratch) {
    const T* g = tile_gradient(tile, grad_y, upsampled, scratch);
    T* to = argmax ? scratch : grad_x + tile.offset;
    kernels<T>().backward_apply(tile.run(), g, x + tile.offset, affine.from(tile.channel), relu,
                                out.from(tile.channel), statistics, to);
    if (argmax)
      kernels<T>().maxpool2_backward(tile.shape, scratch, argmax + tile.offset,
                                     grad_x + tile.full_offset);
  });
}

}  // namespace colorseg::cpu

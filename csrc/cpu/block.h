// Sweeps of batch norm, ReLU and 2x2 resampling over a whole map: each reads and writes memory
// once, tile by tile, with everything between in the cache.
#pragma once
#include "tiles.h"

namespace colorseg::cpu {

inline Tensor to_dtype(const Tensor& x, ScalarType dtype) {
  return x.scalar_type() == dtype ? x : torch::stable::to(x, dtype);
}

inline Tensor widened(const Tensor& x) {  // half types are computed in float32
  const bool half = x.scalar_type() == ScalarType::BFloat16 || x.scalar_type() == ScalarType::Half;
  return half ? torch::stable::to(x, ScalarType::Float) : x;
}

inline std::vector<double> doubles_of(const OptionalTensor& t, int64_t channels, double otherwise) {
  std::vector<double> values(channels, otherwise);
  if (!t) return values;
  if (t->scalar_type() == ScalarType::Float && t->is_contiguous()) {  // spare two calls to ATen
    std::copy_n(t->const_data_ptr<float>(), channels, values.begin());
    return values;
  }
  const Tensor wide = dense(to_dtype(*t, ScalarType::Double), false);
  std::copy_n(wide.const_data_ptr<double>(), channels, values.begin());
  return values;
}

inline Tensor tensor_of(const double* values, const Ints& sizes, const Tensor& like,
                        ScalarType dtype) {
  const bool narrow = dtype == ScalarType::Float;  // converted here, to spare a call to ATen
  Tensor result = new_tensor(like, sizes, narrow ? dtype : ScalarType::Double);
  const int64_t count = result.numel();
  if (narrow) {
    std::transform(values, values + count, result.mutable_data_ptr<float>(),
                   [](double value) { return static_cast<float>(value); });
    return result;
  }
  std::copy_n(values, count, result.mutable_data_ptr<double>());
  return to_dtype(result, dtype);
}

inline Tensor vector_of(const std::vector<double>& values, const Tensor& like, ScalarType dtype) {
  return tensor_of(values.data(), {static_cast<int64_t>(values.size())}, like, dtype);
}

inline Tensor vector_like(const std::vector<double>& values, const Tensor& like) {
  return vector_of(values, like, like.scalar_type());
}

inline Tensor scalar_of(const Tensor& like, double value, ScalarType dtype) {
  return tensor_of(&value, {}, like, dtype);
}

struct Moments {
  std::vector<double> mean, var;  // [C]; var is biased
};

// Count, mean and sum of squared deviations of one channel, merged by Chan's formula in double.
struct RunningMoments {
  double count = 0, mean = 0, m2 = 0;

  void merge(double n, double other_mean, double other_m2) {
    if (n == 0) return;
    const double delta = other_mean - mean, total = count + n;
    m2 += other_m2 + (count == 0 ? 0 : delta * delta * count * n / total);
    mean = count == 0 ? other_mean : (count * mean + n * other_mean) / total;
    count = total;
  }
};

// Mean and variance per channel from those of the tiles.
inline Moments merge_moments(const Map& map, const TileSums& mean, const TileSums& m2) {
  std::vector<RunningMoments> merged(map.channels);
  for_each_tile_sum(map, [&](int64_t c, int64_t tile, int64_t i) {
    merged[c].merge(double(tile_at(map, tile).run().pixels), mean.values[i], m2.values[i]);
  });
  Moments m;
  for (const RunningMoments& r : merged) m.mean.push_back(r.mean), m.var.push_back(r.m2 / r.count);
  return m;
}

template <typename T>
Moments statistics(const Map& map, const T* x) {
  TileSums mean(map), m2(map);
  for_each_tile<T>(map, [&](const TileAt& tile, Scratch<T>) {
    kernels<T>().moments(tile.run(), x + tile.offset, mean.at(tile), m2.at(tile));
  });
  return merge_moments(map, mean, m2);
}

// The 2x2 max-pool of x with its argmax in 2 bits; if `needed`, the statistics of the pooled map.
template <typename T>
Moments pool_and_statistics(const Map& map, const T* x, T* pooled, uint8_t* argmax, bool needed) {
  TileSums mean(map), m2(map);
  for_each_tile<T>(map, [&](const TileAt& tile, Scratch<T> scratch) {
    T* to = pooled + tile.offset;
    kernels<T>().maxpool2(tile.shape, x + tile.full_offset, to, scratch.codes);
    isa().pack_codes(tile.values(), scratch.codes, argmax + tile.packed_offset);
    if (needed) kernels<T>().moments(tile.run(), to, mean.at(tile), m2.at(tile));
  });
  return needed ? merge_moments(map, mean, m2) : Moments();
}

// y = relu((x - center) * scale + offset), replicated 2x2 with `upsample`; a residual (null if
// there is none) is added to y in front of the ReLU.
template <typename T>
void normalize(const Map& map, const T* x, const ChannelAffine<T>& affine, bool relu, bool upsample,
               T* y, const T* residual = nullptr) {
  for_each_tile<T>(map, [&](const TileAt& tile, Scratch<T> scratch) {
    const int64_t at = upsample ? tile.full_offset : tile.offset;
    T* to = upsample ? scratch.values : y + at;
    kernels<T>().affine_relu(tile.run(), x + tile.offset, affine.from(tile.channel),
                             relu && residual == nullptr, to);
    if (upsample) kernels<T>().upsample2(tile.shape, to, y + at);
    if (residual)  // the tile is still in the cache
      kernels<T>().add_relu(tile.values() * (upsample ? 4 : 1), residual + at, relu, y + at);
  });
}

// The gradient in front of the ReLU that made y, of two maps that are dense in the same layout.
template <typename T>
Tensor relu_backward(const Tensor& grad_y, const Tensor& y, bool channels_last) {
  Tensor grad = new_tensor(y, sizes_of(y), y.scalar_type(), channels_last);
  const T *from = grad_y.const_data_ptr<T>(), *result = y.const_data_ptr<T>();
  T* to = grad.mutable_data_ptr<T>();
  const int64_t tiles = divide_up(y.numel(), kTileValues);
  torch::stable::parallel_for(
      0, tiles, kThreadValues / kTileValues, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * kTileValues, last = std::min(end * kTileValues, y.numel());
        kernels<T>().relu_backward(last - first, from + first, result + first, to + first);
      });
  return grad;
}

// Per channel [C]: sums of g and of g * (x - center), where g is the gradient behind the ReLU.
struct GradientSums {
  std::vector<double> g, gx;
};

// The gradient of one tile of the normalised map: the sum over each 2x2 square if y was upsampled.
template <typename T>
const T* tile_gradient(const TileAt& tile, const T* grad_y, bool upsampled, Scratch<T> scratch) {
  if (!upsampled) return grad_y + tile.offset;
  kernels<T>().upsample2_backward(tile.shape, grad_y + tile.full_offset, scratch.values);
  return scratch.values;
}

template <typename T>
GradientSums gradient_sums(const Map& map, const T* grad_y, const T* x,
                           const ChannelAffine<T>& affine, bool relu, bool upsampled) {
  TileSums g(map), gx(map);
  for_each_tile<T>(map, [&](const TileAt& tile, Scratch<T> scratch) {
    const T* grad = tile_gradient(tile, grad_y, upsampled, scratch);
    kernels<T>().backward_sums(tile.run(), grad, x + tile.offset, affine.from(tile.channel), relu,
                               g.at(tile), gx.at(tile));
  });
  GradientSums sums{std::vector<double>(map.channels), std::vector<double>(map.channels)};
  for_each_tile_sum(map, [&](int64_t c, int64_t, int64_t i) {
    sums.g[c] += g.values[i];
    sums.gx[c] += gx.values[i];
  });
  return sums;
}

// grad_x = out.scale * g, and with statistics + out.center * (x - center) + out.offset; with argmax
// it goes to the full map.
template <typename T>
void gradient_apply(const Map& map, const T* grad_y, const T* x, const ChannelAffine<T>& affine,
                    bool relu, bool upsampled, const ChannelAffine<T>& out, bool statistics,
                    const uint8_t* argmax, T* grad_x) {
  for_each_tile<T>(map, [&](const TileAt& tile, Scratch<T> scratch) {
    const T* grad = tile_gradient(tile, grad_y, upsampled, scratch);
    T* to = argmax ? scratch.values : grad_x + tile.offset;
    kernels<T>().backward_apply(tile.run(), grad, x + tile.offset, affine.from(tile.channel), relu,
                                out.from(tile.channel), statistics, to);
    if (!argmax) return;
    isa().unpack_codes(tile.values(), argmax + tile.packed_offset, scratch.codes);
    kernels<T>().maxpool2_backward(tile.shape, to, scratch.codes, grad_x + tile.full_offset);
  });
}

}  // namespace colorseg::cpu

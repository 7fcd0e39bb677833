// Cuts a dense feature map into tiles that stay in the cache, and walks over them in parallel.
#pragma once
#include <algorithm>

#include "../common.h"
#include "kernels/kernels.h"

namespace colorseg::cpu {

constexpr int64_t kThreadValues = 16384;  // less work than this is not worth waking a thread
constexpr int64_t kTileValues =
    8192;  // 32 KB of float32: two such tiles and a line of output share an L2

// A dense map of (n, channels, height, width); full_* is the larger map of a 2x2 resampling, if
// any.
struct Map {
  int64_t n, channels, height, width, full_height, full_width;
  bool channels_last;

  int64_t planes() const { return channels_last ? n : n * channels; }
  int64_t interleaved() const { return channels_last ? channels : 1; }
  int64_t row_values() const { return width * interleaved(); }
  // a multiple of 4, so that every tile's packed argmax starts at a byte
  int64_t tile_rows() const {
    return std::min(std::max<int64_t>(kTileValues / row_values() / 4 * 4, 4), height);
  }
  int64_t packed_plane() const { return (height * row_values() + 3) / 4; }  // bytes of 4 codes
  int64_t tiles_per_plane() const { return (height + tile_rows() - 1) / tile_rows(); }
  int64_t tiles() const { return planes() * tiles_per_plane(); }
  int64_t channel_of(int64_t tile) const {
    return channels_last ? 0 : tile / tiles_per_plane() % channels;
  }
};

// One tile: its shape, and where it starts in the map, in the larger map, and in the packed argmax.
struct TileAt {
  int64_t index, channel;  // channel: of the first interleaved value
  Tile shape;
  int64_t offset, full_offset, packed_offset;
  Run run() const { return {shape.rows * shape.width, shape.channels}; }
  int64_t values() const { return shape.rows * shape.width * shape.channels; }
};

inline TileAt tile_at(const Map& map, int64_t index) {
  const int64_t plane = index / map.tiles_per_plane();
  const int64_t first = index % map.tiles_per_plane() * map.tile_rows();
  const int64_t c = map.interleaved();
  return {index,
          map.channel_of(index),
          {std::min(map.tile_rows(), map.height - first), map.width, c, map.full_width},
          (plane * map.height + first) * map.row_values(),
          (plane * map.full_height + 2 * first) * map.full_width * c,
          plane * map.packed_plane() + first * map.row_values() / 4};
}

// Room for one tile's values and argmax codes; belongs to the thread.
template <typename T>
struct Scratch {
  T* values;
  int32_t* codes;
};

// Calls body(tile, scratch) for every tile.
template <typename T, typename Body>
void for_each_tile(const Map& map, const Body& body) {
  if (map.n * map.channels * map.height * map.width == 0) return;
  const int64_t tile_values = map.tile_rows() * map.row_values();
  const int64_t grain = std::max<int64_t>(1, kThreadValues / tile_values);
  torch::stable::parallel_for(0, map.tiles(), grain, [&](int64_t begin, int64_t end) {
    std::vector<T> values(tile_values);
    std::vector<int32_t> codes(values.size());
    for (int64_t i = begin; i < end; ++i)
      body(tile_at(map, i), Scratch<T>{values.data(), codes.data()});
  });
}

// Per-channel constants of an affine, in double until the last step.
template <typename T>
struct ChannelAffine {
  std::vector<T> center, scale, offset;
  explicit ChannelAffine(int64_t channels) : center(channels), scale(channels), offset(channels) {}
  Affine<T> from(int64_t channel) const {
    return {&center[channel], &scale[channel], &offset[channel]};
  }
};

// One double per tile and interleaved channel, for what a tile finds out about its channels.
struct TileSums {
  explicit TileSums(const Map& map)
      : interleaved(map.interleaved()), values(map.tiles() * interleaved) {}
  double* at(const TileAt& tile) { return &values[tile.index * interleaved]; }
  int64_t interleaved;
  std::vector<double> values;
};

// Calls add(channel, tile, index into TileSums::values) in tile order: sums over tiles have the
// same bits for any number of threads.
template <typename Add>
void for_each_tile_sum(const Map& map, const Add& add) {
  for (int64_t i = 0; i < map.tiles(); ++i) {
    for (int64_t c = 0; c < map.interleaved(); ++c) {
      add(map.channel_of(i) + c, i, i * map.interleaved() + c);
    }
  }
}

}  // namespace colorseg::cpu

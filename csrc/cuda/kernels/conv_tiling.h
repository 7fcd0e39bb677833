// How maps are cut into tiles, and tiles shared out among blocks.
#pragma once
#include "convolve.h"

namespace colorseg::cuda {

// Tiles of a number of positions, a power of two: as square as the map allows, for a small rim.
template <typename T>
Tiling tiling_of(const Convolution<T>& p, int positions) {
  const auto log_of = [](int count, int most) {
    int log = 0;
    while (1 << log < count && 2 << log <= most) ++log;
    return log;
  };
  const int step = p.taps.out_step, log = log_of(positions, positions);
  const int height = (p.out_height + step - 1) / step, width = (p.out_width + step - 1) / step;
  Tiling g = {};
  g.log_columns = log_of(width, 1 << (log + 1) / 2);
  g.log_rows = log_of(height, positions >> g.log_columns);
  g.log_images = log - g.log_columns - g.log_rows;
  g.row_tiles = (height + (1 << g.log_rows) - 1) >> g.log_rows;
  g.column_tiles = (width + (1 << g.log_columns) - 1) >> g.log_columns;
  const int64_t tiles =
      ((p.n + (1 << g.log_images) - 1) >> g.log_images) * g.row_tiles * g.column_tiles;
  g.tiles = tiles < int64_t(1) << 30 ? static_cast<int>(tiles) : -1;
  return g;
}

// Equal shares for blocks that all run at the same time, at most `most` on a multiprocessor; false
// where not even one has room for `bytes` of shared memory, or there are too many tiles.
inline bool share_tiles(Tiling& g, int bytes, int most) {
  const DeviceLimits device = device_limits();
  if (g.tiles < 0 || bytes > device.block_shared_bytes) return false;
  const int fit = device.shared_bytes / (bytes + 1024);  // the system takes 1 KB of each block
  const int blocks = device.multiprocessors * (fit < 1 ? 1 : fit < most ? fit : most);
  const int share = (g.tiles + blocks - 1) / blocks;
  g.blocks = share == 0 ? 0 : (g.tiles + share - 1) / share;
  return true;
}

}  // namespace colorseg::cuda

// Vectors of 16 bytes, and sweeps by them over maps in channels_last: what a thread reads and
// writes at a time, of channels that it keeps.
#pragma once
#include <algorithm>
#include <initializer_list>

#include "kernels.h"

namespace colorseg::cuda {

// 16 bytes, as they are loaded and stored.
template <typename T>
struct alignas(16) Vector {
  static constexpr int kCount = 16 / sizeof(T);
  T values[kCount];
};

constexpr int kSweepThreads = 256;
constexpr int kSweepBatch = 4;     // vectors that a thread has on their way at a time
constexpr int kSweepColumns = 32;  // most vectors side by side that a block takes of a pixel

// Whether vectors may begin there; null pointers do not count.
template <typename T>
bool are_aligned(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers) {
    if (reinterpret_cast<uintptr_t>(p) % sizeof(Vector<T>) != 0) return false;
  }
  return true;
}

// Whether all vectors of a map, and of others like it, are whole and begin at a multiple of their
// size.
template <typename T>
bool has_vectors(const PixelMap& map, std::initializer_list<const void*> pointers) {
  const bool whole = map.channels > 0 && map.channels % Vector<T>::kCount == 0;
  return are_aligned<T>(pointers) && map.channels_last && whole;
}

// What a block of a sweep takes: some vectors side by side (a thread keeps its own) of many pixels.
template <typename T>
struct SweepShape {
  int vectors;  // of a pixel
  explicit __host__ __device__ SweepShape(const PixelMap& map)
      : vectors(static_cast<int>(map.channels) / Vector<T>::kCount) {}
  __host__ __device__ int columns() const {
    return vectors < kSweepColumns ? vectors : kSweepColumns;
  }
  __host__ __device__ int rows() const { return kSweepThreads / columns(); }
  __host__ __device__ int groups() const { return (vectors + columns() - 1) / columns(); }
};

// Some four blocks for each multiprocessor: what a thread reads of its channels is worth it only
// for many pixels.
template <typename T>
dim3 sweep_grid(const PixelMap& map) {
  const SweepShape<T> shape(map);
  const int64_t pixels = int64_t(shape.rows()) * kSweepBatch;
  const int64_t blocks = (map.n * map.pixels + pixels - 1) / pixels;
  const int64_t most = std::max(device_limits().multiprocessors * 4 / shape.groups(), 1);
  return dim3(static_cast<unsigned>(std::min(blocks, most)), static_cast<unsigned>(shape.groups()));
}

// A thread's place in a sweep: its row, and the first channel of its vectors.
struct SweepPlace {
  int row, channel;
  bool active;  // there may be fewer rows, or columns in the last group, than threads for them
};
template <typename T>
__device__ SweepPlace sweep_place(const SweepShape<T>& shape) {
  const int columns = shape.columns(), thread = static_cast<int>(threadIdx.x);
  const int row = thread / columns;
  const int column = static_cast<int>(blockIdx.y) * columns + thread % columns;
  const bool active = row < shape.rows() && column < shape.vectors;
  return {row, active ? column * Vector<T>::kCount : 0, active};
}

template <typename T>
__device__ int sweep_channel(const PixelMap& map) {
  return sweep_place(SweepShape<T>(map)).channel;
}

// Calls load(b, index of the first value) for kBatch vectors of the map, then use(b, index).
template <typename T, int kBatch, typename Load, typename Use>
__device__ void sweep(const PixelMap& map, const Load& load, const Use& use) {
  const SweepShape<T> shape(map);
  const SweepPlace place = sweep_place(shape);
  if (!place.active) return;
  const int64_t step = int64_t(gridDim.x) * shape.rows(), count = map.n * map.pixels;
  for (int64_t pixel = int64_t(blockIdx.x) * shape.rows() + place.row; pixel < count;
       pixel += step * kBatch) {
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (pixel + b * step < count) load(b, (pixel + b * step) * map.channels + place.channel);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (pixel + b * step < count) use(b, (pixel + b * step) * map.channels + place.channel);
    }
  }
}

}  // namespace colorseg::cuda

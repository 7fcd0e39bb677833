// Vectors of 16 bytes, and sweeps by them over maps in channels_last: what a thread reads and
// writes at a time, of channels that it keeps.
#pragma once
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
constexpr int kSweepBatch = 4;  // vectors that a thread has on their way at a time

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
  constexpr int kCount = Vector<T>::kCount;
  return are_aligned<T>(pointers) && map.channels_last && map.channels % kCount == 0 &&
         map.channels <= int64_t(kSweepThreads) * kCount;
}

template <typename T>
dim3 sweep_grid(const PixelMap& map) {
  const int64_t rows = kSweepThreads / (map.channels / Vector<T>::kCount) * kSweepBatch;
  const int64_t blocks = (map.n * map.pixels + rows - 1) / rows;
  const int64_t most = int64_t(device_limits().multiprocessors) * 16;
  return dim3(static_cast<unsigned>(blocks < most ? blocks : most));
}

// The first channel of a thread's vectors.
template <typename T>
__device__ int sweep_channel(const PixelMap& map) {
  const int vectors = static_cast<int>(map.channels) / Vector<T>::kCount;
  return static_cast<int>(threadIdx.x) % vectors * Vector<T>::kCount;
}

// Calls load(b, index of the first value) for kSweepBatch vectors of the map, then use(b, index).
template <typename T, typename Load, typename Use>
__device__ void sweep(const PixelMap& map, const Load& load, const Use& use) {
  const int vectors = static_cast<int>(map.channels) / Vector<T>::kCount;
  const int rows = kSweepThreads / vectors, row = static_cast<int>(threadIdx.x) / vectors;
  if (row >= rows) return;
  const int64_t step = int64_t(gridDim.x) * rows, count = map.n * map.pixels;
  const int channel = sweep_channel<T>(map);
  for (int64_t pixel = int64_t(blockIdx.x) * rows + row; pixel < count;
       pixel += step * kSweepBatch) {
#pragma unroll
    for (int b = 0; b < kSweepBatch; ++b) {
      if (pixel + b * step < count) load(b, (pixel + b * step) * map.channels + channel);
    }
#pragma unroll
    for (int b = 0; b < kSweepBatch; ++b) {
      if (pixel + b * step < count) use(b, (pixel + b * step) * map.channels + channel);
    }
  }
}

}  // namespace colorseg::cuda

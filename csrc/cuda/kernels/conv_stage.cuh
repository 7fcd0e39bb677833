// A tile of products in shared memory on their way out, and the sums that threads keep beside it.
#pragma once
#include "vectors.cuh"

namespace colorseg::cuda {

constexpr int kConvThreads = 256;

// Floats of a position's products, of kColumns channels; rows that are stored together lie in
// different banks.
template <int kColumns>
__host__ __device__ constexpr int stage_stride() {
  return kColumns % 16 == 8 ? kColumns : kColumns + 8;
}

// Whole vectors of 16 bytes at a multiple of 16.
template <int kCount>
__device__ void load_floats(const float* from, float (&to)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const auto v = *reinterpret_cast<const Vector<float>*>(from + i);
#pragma unroll
    for (int j = 0; j < 4; ++j) to[i + j] = v.values[j];
  }
}
template <int kCount>
__device__ void store_floats(const float (&from)[kCount], float* to) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4)
    *reinterpret_cast<Vector<float>*>(to + i) = {from[i], from[i + 1], from[i + 2], from[i + 3]};
}

// What a thread has summed up of its channels over all tiles of a block, in shared memory.
template <typename T>
struct RunningSums {
  static constexpr int kFloats = 2 * Vector<T>::kCount * kConvThreads;
  float* memory;
  float count = 0;
  __device__ float& first(int i) { return memory[(2 * i) * kConvThreads + threadIdx.x]; }
  __device__ float& second(int i) { return memory[(2 * i + 1) * kConvThreads + threadIdx.x]; }
};

// What an epilogue has in shared memory: the sums, and three numbers for each channel.
template <typename T, int kColumns>
__host__ __device__ constexpr int epilogue_floats() {
  return RunningSums<T>::kFloats + 3 * kColumns;
}

}  // namespace colorseg::cuda

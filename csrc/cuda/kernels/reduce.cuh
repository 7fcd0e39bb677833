// Sums over a block, always in the same order: no atomics, so that results have the same bits in
// every run.
#pragma once
#include "../launch.h"

namespace colorseg::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Every lane gets the sum of the warp.
template <typename T>
__device__ T warp_sum(T value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

// Floats of shared memory that block_sum uses, in elements: one per warp.
constexpr int kMostWarps = 32;

// Every thread gets the sum of the block, which has whole warps; shared: [kMostWarps].
template <typename T>
__device__ T block_sum(T value, T* shared) {
  const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  value = warp_sum(value);
  __syncthreads();  // an earlier sum may still be read
  if (lane == 0) shared[warp] = value;
  __syncthreads();
  return warp_sum(lane < warps ? shared[lane] : T(0));
}

}  // namespace colorseg::cuda

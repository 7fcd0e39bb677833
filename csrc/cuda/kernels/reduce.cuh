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

// Most warps of a block: block_sums of N values needs N * kMostWarps values of shared memory.
constexpr int kMostWarps = 32;

// Every thread gets the sums of the block, which has whole warps; shared: [kCount * kMostWarps].
template <int kCount, typename T>
__device__ void block_sums(T (&values)[kCount], T* shared) {
  const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = warp_sum(values[i]);
  __syncthreads();  // earlier sums may still be read
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) shared[i * kMostWarps + warp] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    values[i] = warp_sum(lane < warps ? shared[i * kMostWarps + lane] : T(0));
}
template <typename T>
__device__ T block_sum(T value, T* shared) {
  T values[] = {value};
  block_sums(values, shared);
  return values[0];
}

}  // namespace colorseg::cuda

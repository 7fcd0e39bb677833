// Launches kernels: the only file that knows whether they run on a GPU or in the host emulation of
// tests/simt.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#if defined(COLORSEG_SIMT)
#include "simt_mma.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif
#if defined(__CUDACC__)
#include "mma.h"
#elif !defined(__grid_constant__)
#define __grid_constant__
#endif

namespace colorseg::cuda {

using Stream = cudaStream_t;

// Of the current device.
struct DeviceLimits {
  int multiprocessors;
  int shared_bytes, block_shared_bytes;  // of a multiprocessor, and the most that a block may have
};

inline DeviceLimits device_limits() {
#if defined(COLORSEG_SIMT)
  return {2, 228 * 1024, 227 * 1024};
#else
  int device = 0;
  DeviceLimits limits = {};
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  cudaDeviceGetAttribute(&limits.block_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                         device);
  return limits;
#endif
}

#if defined(__CUDACC__) || defined(COLORSEG_SIMT)  // what follows is for kernels alone

// The block's shared memory, as much of it as the launch asked for.
template <typename T>
__device__ T* shared_memory() {
#if defined(COLORSEG_SIMT)
  return static_cast<T*>(simt::shared_memory());
#else
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
#endif
}

// Shared memory beyond 48 KB has to be asked for; beyond that of the device the launch fails.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            Stream stream, const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#if defined(COLORSEG_SIMT)
  (void)stream;
  simt::run(grid, block, shared_bytes, [&] { kernel(arguments...); });
#else
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 * 1024) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    // clang-format off: it takes >>> apart
    kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
    // clang-format on
    error = cudaGetLastError();
  }
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("a CUDA kernel of colorseg could not be launched: ") +
                             cudaGetErrorString(error));
#endif
}

#endif

}  // namespace colorseg::cuda

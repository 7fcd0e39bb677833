// Launches kernels: the only file that knows whether they run on a GPU or in the host emulation of
// tests/simt.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
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
  const char* kilobytes = std::getenv("COLORSEG_SIMT_SHARED_KB");  // as other devices have it
  const int most = kilobytes ? std::atoi(kilobytes) : 227;
  return {2, (most + 1) * 1024, most * 1024};
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

// Every kernel begins with this: it is started while the one in front of it still runs, and waits
// here until that has ended and its results can be read.
__device__ inline void await_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");  // the next one may do the same
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#if !defined(COLORSEG_SIMT)
template <int>
__global__ void probe() {}

// Whether kernels run that can wait: those compiled for sm_90 or later.
inline bool kernels_wait() {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];  // 0: not yet, 1: no, 2: yes
  int device = 0;
  cudaGetDevice(&device);
  std::atomic<int>& answer = known[device % kDevices];
  if (answer == 0) {
    cudaFuncAttributes attributes = {};
    const bool is_known = cudaFuncGetAttributes(&attributes, probe<0>) == cudaSuccess;
    if (!is_known) cudaGetLastError();  // or torch's next kernel would raise it
    answer = is_known && attributes.ptxVersion >= 90 ? 2 : 1;
  }
  return answer == 2;
}
#endif

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

// Shared memory beyond 48 KB has to be allowed; beyond that of the device the launch fails.  All
// that there is is allowed each time, since another thread may launch the same kernel with less.
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
                                 device_limits().block_shared_bytes);
  }
  if (error == cudaSuccess) {
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = block, config.stream = stream;
    config.dynamicSmemBytes = shared_bytes;
    config.attrs = &overlap, config.numAttrs = kernels_wait() ? 1 : 0;
    error = cudaLaunchKernelEx(&config, kernel, static_cast<const Parameters&>(arguments)...);
  }
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or torch's next kernel would raise it, too
  throw std::runtime_error(std::string("a CUDA kernel of colorseg could not be launched: ") +
                           cudaGetErrorString(error));
#endif
}

#endif

}  // namespace colorseg::cuda

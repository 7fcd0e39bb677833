// A host emulation of CUDA's execution model, in which the library's kernels run without a GPU.
//
// The threads of a block are fibers of one host thread.  A fiber runs until it meets others, at a
// barrier or in a warp operation, and which one runs next is random: a kernel that lacks a barrier
// gives wrong results.  Blocks run one after the other, in random order.  Shared memory has exactly
// the size that the launch asked for, at an address of its own, and is full of NaN when a block
// begins: AddressSanitizer sees what is written beyond it, the results what is read too early.
//
// COLORSEG_SIMT_SEED sets the order; the same seed gives the same order.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaStream_t = void*;

namespace simt {

constexpr int kLanes = 32;

// Runs `kernel` once in every thread of the grid; std::runtime_error where threads wait for others
// that never come.
void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);
int64_t launches();  // so far

// Of the thread that runs.
const dim3& thread_index();
const dim3& block_index();
const dim3& block_size();
const dim3& grid_size();
void* shared_memory();

void barrier();

// Copies 16 bytes, zeros without `inside`, when finish_copies is called, and not before.
void copy_later(void* to, const void* from, bool inside);
void finish_copies();  // of this thread; it must not end without

// Every lane of the warp brings `size` bytes and gets those of all, lane after lane.
const std::byte* gather(unsigned mask, const void* value, size_t size);

int lane();

template <typename T>
T from_lane(unsigned mask, T value, int source) {
  const std::byte* all = gather(mask, &value, sizeof(T));
  T result;
  std::memcpy(&result, all + source * sizeof(T), sizeof(T));
  return result;
}

}  // namespace simt

#define threadIdx simt::thread_index()
#define blockIdx simt::block_index()
#define blockDim simt::block_size()
#define gridDim simt::grid_size()

inline void __syncthreads() { simt::barrier(); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source) {
  return simt::from_lane(mask, value, source % simt::kLanes);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return simt::from_lane(mask, value, simt::lane() ^ lanes);
}

// Half types: the conversions that kernels use, rounding as the GPU does.
struct __half {
  c10::Half value;
};
struct __nv_bfloat16 {
  c10::BFloat16 value;
};
inline unsigned short __half_as_ushort(__half x) { return x.value.x; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.value.x; }
inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline float __half2float(__half x) { return x.value; }
inline __half __float2half_rn(float x) { return {c10::Half(x)}; }
inline float __bfloat162float(__nv_bfloat16 x) { return x.value; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {c10::BFloat16(x)}; }

// Arithmetic that is never contracted; the sources are compiled with -ffp-contract=off.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
using std::exp;
using std::fmax;
using std::isfinite;
using std::log;
using std::sqrt;

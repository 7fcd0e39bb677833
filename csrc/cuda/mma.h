// Tensor core instructions, by what they do.  tests/simt has the same functions for the host.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace colorseg::cuda {

// Four 8 x 8 matrices of 16-bit values, a register of each in every lane: lane l brings the address
// of row l % 8 of matrix l / 8, 16 bytes that lie at a multiple of 16.
__device__ inline void load_matrices(uint32_t (&to)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

__device__ inline void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

// d = a b + c, in the fragments of mma.m16n8k16, or of m16n8k8 in tf32 for float.
template <typename T>
__device__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                             const float (&c)[4]);

#define COLORSEG_MMA(T, NAME)                                                                \
  template <>                                                                                \
  __device__ inline void multiply_add<T>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, \
                                         uint32_t b1, const float (&c)[4]) {                 \
    asm volatile("mma.sync.aligned." NAME                                                    \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"      \
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]),  \
                   "f"(c[1]), "f"(c[2]), "f"(c[3]));                                         \
  }
COLORSEG_MMA(float, "m16n8k8.row.col.f32.tf32.tf32.f32")
COLORSEG_MMA(__half, "m16n8k16.row.col.f32.f16.f16.f32")
COLORSEG_MMA(__nv_bfloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
#undef COLORSEG_MMA

// Copies 16 bytes to shared memory, zeros without `inside`, while the thread goes on; both
// addresses are multiples of 16, and `from` may be read.
__device__ inline void copy_async(void* to, const void* from, bool inside) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}
// Waits for all of the thread's copies; others see them behind a barrier.
__device__ inline void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// The nearest number that tf32 has: float32 with a mantissa of 10 bits.
__device__ inline float to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

}  // namespace colorseg::cuda

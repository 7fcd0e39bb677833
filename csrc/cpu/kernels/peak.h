// The arithmetic limit of a core: float32 multiply-adds in registers, no memory at all.
//
// Twelve independent chains cover latency x throughput of every core known to us (4 or 5 cycles, 2
// a cycle) and leave room for the two constants in 16 registers.
#pragma once
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace colorseg::cpu::COLORSEG_ISA {

#if defined(__AVX512F__)
using PeakVector = __m512;
inline PeakVector peak_step(PeakVector x, PeakVector a, PeakVector b) {
  return _mm512_fmadd_ps(x, a, b);
}
#elif defined(__AVX2__) && defined(__FMA__)
using PeakVector = __m256;
inline PeakVector peak_step(PeakVector x, PeakVector a, PeakVector b) {
  return _mm256_fmadd_ps(x, a, b);
}
#elif defined(__aarch64__)
using PeakVector = float32x4_t;
inline PeakVector peak_step(PeakVector x, PeakVector a, PeakVector b) { return vfmaq_f32(b, x, a); }
#else  // no fused multiply-add: a product and a sum
typedef float PeakVector __attribute__((vector_size(16)));
inline PeakVector peak_step(PeakVector x, PeakVector a, PeakVector b) { return x * a + b; }
#endif

// Runs `rounds` steps of every chain and returns how many floating-point operations those were.
// `result` is written so that the compiler keeps the work.
inline int64_t peak_fma(int64_t rounds, float* result) {
  constexpr int kChains = 12, kUnroll = 8, kVectorLanes = sizeof(PeakVector) / sizeof(float);
  PeakVector a = {}, b = {}, chains[kChains];
  for (int lane = 0; lane < kVectorLanes; ++lane) {
    a[lane] = 0.5f;  // chains tend to 2: neither overflow nor denormals, which are slow
    b[lane] = 1.f;
  }
  for (int c = 0; c < kChains; ++c) chains[c] = b * static_cast<float>(c);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 8
    for (int u = 0; u < kUnroll; ++u) {
#pragma GCC unroll 12
      for (int c = 0; c < kChains; ++c) chains[c] = peak_step(chains[c], a, b);
    }
  }
  PeakVector sum = chains[0];
  for (int c = 1; c < kChains; ++c) sum += chains[c];
  *result = 0;
  for (int lane = 0; lane < kVectorLanes; ++lane) *result += sum[lane];
  return rounds * kUnroll * kChains * kVectorLanes * 2;
}

}  // namespace colorseg::cpu::COLORSEG_ISA

// The arithmetic limit of a core: float32 multiply-adds in registers, no memory at all.
//
// Twelve independent chains cover latency x throughput of every core known to us (4 or 5 cycles, 2
// a cycle) and leave room for the two constants in 16 registers.
#pragma once
#include "vector.h"

namespace colorseg::cpu::COLORSEG_ISA {

// Runs `rounds` steps of every chain and returns how many floating-point operations those were.
// `result` is written so that the compiler keeps the work.
inline int64_t peak_fma(int64_t rounds, float* result) {
  constexpr int kChains = 12, kSteps = 8;
  // x -> x / 2 + 1 tends to 2: neither overflow nor denormals, which are slow
  const Vector half = broadcast(0.5f), one = broadcast(1.f);
  Vector chains[kChains];
  for (int c = 0; c < kChains; ++c) chains[c] = broadcast(static_cast<float>(c));
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
      for (int c = 0; c < kChains; ++c) chains[c] = multiply_add(chains[c], half, one);
    }
  }
  *result = 0;
  for (int c = 0; c < kChains; ++c) {
    for (int lane = 0; lane < kWidth; ++lane) *result += chains[c][lane];
  }
  return rounds * kSteps * kChains * kWidth * 2;
}

}  // namespace colorseg::cpu::COLORSEG_ISA

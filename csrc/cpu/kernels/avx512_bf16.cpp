// AVX-512 with the bfloat16 dot product: one table for what has no plain loop.
#define COLORSEG_ISA avx512_bf16
#include "pairs.h"

namespace colorseg::cpu {
const PairKernels avx512_bf16_pairs = {[] { return __builtin_cpu_supports("avx512bf16") != 0; },
                                       avx512_bf16::multiply<avx512_bf16::Pairs>, avx512_bf16::join,
                                       avx512_bf16::join_halves, avx512_bf16::narrow};
}  // namespace colorseg::cpu

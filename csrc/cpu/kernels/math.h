// exp and log that the compiler can vectorise.  float: Cephes polynomials, errors measured in
// tests/test_color_cross_entropy.py; double: the C library, for gradient checks rather than speed.
#pragma once
#include <cstdint>
#include <cstring>

namespace colorseg::cpu::COLORSEG_ISA {

// One rounding where the machine has it.  Written out because contraction is off: everything that
// is not fma() rounds alike on every instruction set.
inline float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// exp(x) = 2^n exp(r), |r| <= ln(2)/2.  Flushes results below the smallest normal number to 0.
inline float exp(float x) {
  constexpr float kLow = -87.33654f, kHigh = 88.37626f, kRound = 12582912.f;  // 1.5 * 2^23
  float clamped = x < kLow ? kLow : x;  // comparisons are written so that NaN passes through
  clamped = clamped > kHigh ? kHigh : clamped;
  const float shifted = fma(clamped, 1.44269504f, kRound);  // n sits in the low bits
  const float n = shifted - kRound;
  const float r = fma(n, 2.12194440e-4f, fma(n, -0.693359375f, clamped));
  float p = 1.9875691500e-4f;
  p = fma(p, r, 1.3981999507e-3f);
  p = fma(p, r, 8.3334519073e-3f);
  p = fma(p, r, 4.1665795894e-2f);
  p = fma(p, r, 1.6666665459e-1f);
  p = fma(p, r, 5.0000001201e-1f);
  p = fma(p, r * r, r) + 1.f;
  const float y = p * from_bits((to_bits(shifted) << 23) + 0x3f800000u);
  return x < kLow ? 0.f : y;
}

// log of a positive normal number; +inf and NaN pass through.
inline float log(float x) {
  constexpr uint32_t kSqrtHalf = 0x3f3504f3u;
  const uint32_t bits = to_bits(x) - kSqrtHalf;  // mantissa in [sqrt(1/2), sqrt(2))
  const float n = static_cast<float>(static_cast<int32_t>(bits) >> 23);
  const float r = from_bits((bits & 0x007fffffu) + kSqrtHalf) - 1.f;
  float p = 7.0376836292e-2f;
  p = fma(p, r, -1.1514610310e-1f);
  p = fma(p, r, 1.1676998740e-1f);
  p = fma(p, r, -1.2420140846e-1f);
  p = fma(p, r, 1.4249322787e-1f);
  p = fma(p, r, -1.6668057665e-1f);
  p = fma(p, r, 2.0000714765e-1f);
  p = fma(p, r, -2.4999993993e-1f);
  p = fma(p, r, 3.3333331174e-1f);
  const float square = r * r;
  float y = fma(p * square, r, n * -2.12194440e-4f);
  y = fma(square, -0.5f, y) + r;
  y = fma(n, 0.693359375f, y);
  return x < __builtin_inff() ? y : x;
}

inline double exp(double x) { return __builtin_exp(x); }
inline double log(double x) { return __builtin_log(x); }

}  // namespace colorseg::cpu::COLORSEG_ISA

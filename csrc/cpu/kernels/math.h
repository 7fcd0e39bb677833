// exp and log that the compiler can vectorise, exp of a Vector too.  float: polynomials, errors
// measured in tests/test_color_cross_entropy_numbers.py; double: the C library, for gradient checks
// rather than speed.
#pragma once
#include <cstdint>
#include <cstring>

#include "vector.h"

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

inline Vector fma(Vector a, Vector b, Vector c) { return multiply_add(a, b, c); }
inline double fma(double a, double b, double c) { return a * b + c; }

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

inline Vector from_bits(Indices bits) { return reinterpret_cast<Vector>(bits); }
inline Indices to_bits(Vector x) { return reinterpret_cast<Indices>(x); }

// exp(x) = 2^n p with p = exp(r), |r| <= ln(2)/2, by a minimax polynomial 3e-9 off.
template <typename Float>
struct Power {
  Float p;
  decltype(to_bits(Float{})) n;  // as the exponent bits of a float
};

template <typename Float>
inline Power<Float> power_of(Float x) {
  const auto all = [](float value) { return Float{} + value; };  // every lane of a Vector
  const Float round = all(12582912.f);                           // 1.5 * 2^23
  const Float shifted = fma(x, all(1.44269504f), round);         // n sits in the low bits
  const Float n = shifted - round;
  const Float r = fma(n, all(2.12194440e-4f), fma(n, all(-0.693359375f), x));
  Float p = fma(all(1.38140819e-3f), r, all(8.36874545e-3f));
  p = fma(p, r, all(4.16683890e-2f));
  p = fma(p, r, all(1.66665211e-1f));
  p = fma(p, r, all(4.99999940e-1f));
  p = fma(p, r, all(1.f));
  p = fma(p, r, all(1.f));
  return {p, to_bits(shifted) << 23};
}

// exp(x) for |x| <= 87: no test, no product.
template <typename Float>
inline Float exp_bounded(Float x) {
  const Power<Float> y = power_of(x);
  return from_bits(to_bits(y.p) + y.n);
}

// exp(x) for x <= 87 and NaN.  Flushes results below the smallest normal number to 0.
inline float exp(float x) {
  constexpr float kLow = -87.f;
  const Power<float> y = power_of(x < kLow ? kLow : x);  // written so that NaN passes through
  return x < kLow ? 0.f : y.p * from_bits(y.n + 0x3f800000u);
}

// exp(x) of the nearest x whose exponential and its inverse are far from the ends of the range.
inline Vector exp_clamped(Vector x) { return exp_bounded(clamp(x, -80, 80)); }

// The bits of |x|, ordered as |x| is, with infinity and NaN above every number.
inline int32_t magnitude(float x) { return static_cast<int32_t>(to_bits(x) & 0x7fffffffu); }
inline int64_t magnitude(double x) {
  int64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits & INT64_MAX;
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

inline double exp_bounded(double x) { return __builtin_exp(x); }
inline double exp(double x) { return __builtin_exp(x); }
inline double exp_clamped(double x) { return __builtin_exp(x < -700 ? -700 : x > 700 ? 700 : x); }
inline double log(double x) { return __builtin_log(x); }

}  // namespace colorseg::cpu::COLORSEG_ISA

// Pairs of channels in bfloat16: their product, and how they are made.
//
// vdpbf16ps multiplies both halves of a position by a pair of weights and adds them to a float32
// sum, so that the product is the one of multiply.h with half the input channels.
#pragma once
#include "kernels.h"
#include "multiply.h"

namespace colorseg::cpu::COLORSEG_ISA {

struct Pairs {
  // No need for partial sums: float32 keeps 16 more bits than the inputs have.
  static constexpr int64_t kSumLength = INT64_MAX;
  // Bits, not numbers: a subtraction, as in broadcast(), might change them.
  static Vector weight(float w) { return _mm512_set1_ps(w); }
  static Vector add_product(Vector w, Vector x, Vector sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
  }
};

inline __mmask16 lanes_left(int64_t count) {
  return count >= kWidth ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
}

// relu((x - center) * scale + offset) of the lanes in `mask`; what the others hold does not matter.
class Activate {
 public:
  explicit Activate(const Activation& a)
      : center_(broadcast(a.center)),
        scale_(broadcast(a.scale)),
        offset_(broadcast(a.offset)),
        floor_(broadcast(a.relu ? 0.0f : -__builtin_inff())),
        affine_(a.affine) {}
  Vector operator()(__mmask16 mask, const float* at) const {
    Vector x = _mm512_maskz_loadu_ps(mask, at);
    if (affine_) x = (x - center_) * scale_ + offset_;
    return x < floor_ ? floor_ : x;  // keeps NaN
  }

 private:
  Vector center_, scale_, offset_, floor_;
  bool affine_;
};

// odd: the other lines, of the same shape.
inline void join(const Rows& from, const float* odd, const Activation& of_even,
                 const Activation& of_odd, float* pairs) {
  const Activate low(of_even), high(of_odd);
  Indices order;  // of 16-bit lanes: all even channels, then all odd ones, side by side
  for (int i = 0; i < kWidth; ++i) order[i] = i | (kWidth + i) << 16;
  for (int64_t y = 0; y < from.height; ++y, pairs += from.width) {
    const int64_t line = y * from.pitch;
    for (int64_t i = 0; i < from.width; i += kWidth) {
      const __mmask16 mask = lanes_left(from.width - i);
      const Vector partner = odd ? high(mask, odd + line + i) : Vector{};
      const Vector own = low(mask, from.data + line + i);
      const auto both = (__m512i)_mm512_cvtne2ps_pbh(partner, own);
      _mm512_mask_storeu_epi32(pairs + i, mask, _mm512_permutexvar_epi16((__m512i)order, both));
    }
  }
}

inline void join_halves(int64_t count, const uint16_t* even, const uint16_t* odd, float* pairs) {
  for (int64_t i = 0; i < count; i += kWidth) {
    const __mmask16 mask = lanes_left(count - i);
    const auto words = [&](const uint16_t* from) {
      return (Indices)_mm512_maskz_cvtepu16_epi32(mask, _mm256_maskz_loadu_epi16(mask, from + i));
    };
    const Indices high = odd ? words(odd) << 16 : Indices{};
    _mm512_mask_storeu_epi32(pairs + i, mask, (__m512i)(words(even) | high));
  }
}

inline void narrow(const Rows& from, const Activation& a, uint16_t* y) {
  const Activate activate(a);
  for (int64_t line = 0; line < from.height; ++line, y += from.width) {
    const float* at = from.data + line * from.pitch;
    for (int64_t i = 0; i < from.width; i += kWidth) {
      const __mmask16 mask = lanes_left(from.width - i);
      const auto halves = (__m256i)_mm512_cvtneps_pbh(activate(mask, at + i));
      _mm256_mask_storeu_epi16(y + i, mask, halves);
    }
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

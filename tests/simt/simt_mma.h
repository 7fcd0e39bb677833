// What csrc/cuda/mma.h has, on the host: fragments as the PTX ISA lays them out over the lanes of a
// warp, products in float64.
#pragma once
#include "simt.h"

namespace simt {

// Row l % 8 of matrix l / 8 is where lane l says; each row has eight 16-bit values.
inline void load_matrices(uint32_t (&to)[4], const void* row, bool transposed) {
  const std::byte* rows = gather(~0u, &row, sizeof(row));
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t values[2];
    for (int i = 0; i < 2; ++i) {
      const int across = lane() / 4, along = lane() % 4 * 2 + i;
      const int r = transposed ? along : across, c = transposed ? across : along;
      const std::byte* from;
      std::memcpy(&from, rows + (matrix * 8 + r) * sizeof(from), sizeof(from));
      std::memcpy(&values[i], from + c * 2, 2);
    }
    to[matrix] = values[0] | uint32_t(values[1]) << 16;
  }
}

inline double value_of(const __half*, uint16_t bits) {
  return static_cast<float>(c10::Half(bits, c10::Half::from_bits()));
}
inline double value_of(const __nv_bfloat16*, uint16_t bits) {
  return static_cast<float>(c10::BFloat16(bits, c10::BFloat16::from_bits()));
}

// What a lane brings to a product: registers of 4 bytes, of A and of B.
struct Operands {
  uint32_t a[4], b[2];
};

// Element (row, k) of A, (k, column) of B: which lane has it, in which register, and where in it.
template <typename T>
double a_of(const std::byte* lanes, int row, int k) {
  constexpr int kPacked = 4 / sizeof(T), kHalf = 4 * kPacked;
  Operands o;
  std::memcpy(&o, lanes + (row % 8 * 4 + k % kHalf / kPacked) * sizeof(o), sizeof(o));
  const uint32_t bits = o.a[row / 8 + k / kHalf * 2];
  if constexpr (kPacked == 1)
    return std::bit_cast<float>(bits & 0xffffe000u);
  else
    return value_of(static_cast<const T*>(nullptr), uint16_t(bits >> 16 * (k % 2)));
}
template <typename T>
double b_of(const std::byte* lanes, int k, int column) {
  constexpr int kPacked = 4 / sizeof(T), kHalf = 4 * kPacked;
  Operands o;
  std::memcpy(&o, lanes + (column * 4 + k % kHalf / kPacked) * sizeof(o), sizeof(o));
  const uint32_t bits = o.b[k / kHalf];
  if constexpr (kPacked == 1)
    return std::bit_cast<float>(bits & 0xffffe000u);
  else
    return value_of(static_cast<const T*>(nullptr), uint16_t(bits >> 16 * (k % 2)));
}

}  // namespace simt

namespace colorseg::cuda {

inline void load_matrices(uint32_t (&to)[4], const void* row) {
  simt::load_matrices(to, row, false);
}
inline void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  simt::load_matrices(to, row, true);
}

template <typename T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                  const float (&c)[4]) {
  const simt::Operands own{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const std::byte* lanes = simt::gather(~0u, &own, sizeof(own));
  for (int i = 0; i < 4; ++i) {
    const int row = simt::lane() / 4 + i / 2 * 8, column = simt::lane() % 4 * 2 + i % 2;
    double sum = c[i];
    for (int k = 0; k < 32 / static_cast<int>(sizeof(T)); ++k)
      sum += simt::a_of<T>(lanes, row, k) * simt::b_of<T>(lanes, k, column);
    d[i] = static_cast<float>(sum);
  }
}

inline void copy_async(void* to, const void* from, bool inside) {
  simt::copy_later(to, from, inside);
}
inline void await_copies() { simt::finish_copies(); }

// To 10 bits of mantissa, ties away from zero.
inline float to_tf32(float x) {
  if (!std::isfinite(x)) return x;
  return std::bit_cast<float>((std::bit_cast<uint32_t>(x) + 0x1000u) & 0xffffe000u);
}

}  // namespace colorseg::cuda

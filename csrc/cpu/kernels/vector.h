// One native vector register of float32, and the few operations the convolutions need of it.
//
// Compiler vector extensions, so that every platform has them; only fused multiply-add needs a
// name of the instruction set.  Wider types than the machine's own are slow: they spill.
#pragma once
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace colorseg::cpu::COLORSEG_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kWidth = kVectorBytes / sizeof(float);

typedef float Vector __attribute__((vector_size(kVectorBytes)));
typedef int32_t Indices __attribute__((vector_size(kVectorBytes)));
typedef float UnalignedVector
    __attribute__((vector_size(kVectorBytes), aligned(sizeof(float)), may_alias));

inline Vector load(const float* at) { return *reinterpret_cast<const UnalignedVector*>(at); }
inline void store(float* at, Vector v) { *reinterpret_cast<UnalignedVector*>(at) = v; }
// Past the caches, to an aligned address: no line is read before it is overwritten, and the reader
// of a large map finds it in memory.  finish_streams() orders such stores before what follows.
inline void stream(float* at, Vector v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(at, v);
#elif defined(__AVX2__)
  _mm256_stream_ps(at, v);
#elif defined(__SSE2__)
  _mm_stream_ps(at, v);
#else
  store(at, v);
#endif
}
inline void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}
inline Vector broadcast(float x) { return x - Vector{}; }  // x - 0 is x, also for -0

inline Vector multiply_add(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// NaN stays.
inline Vector clamp(Vector x, float low, float high) {
#if defined(__AVX512F__)
  return _mm512_min_ps(broadcast(high), _mm512_max_ps(broadcast(low), x));
#elif defined(__AVX2__)
  return _mm256_min_ps(broadcast(high), _mm256_max_ps(broadcast(low), x));
#else
  x = x < low ? broadcast(low) : x;
  return x > high ? broadcast(high) : x;
#endif
}

// Keeps v in a register: GCC would load it again at each use, and each load may cross a cache line.
inline void keep_in_register(Vector& v) {
#if defined(__x86_64__)
  __asm__("" : "+v"(v));
#elif defined(__aarch64__)
  __asm__("" : "+w"(v));
#endif
}

// All bits set in the first `count` lanes.
inline Indices first_lanes(int64_t count) {
  Indices lane;
  for (int i = 0; i < kWidth; ++i) lane[i] = i;
  return lane < static_cast<int32_t>(count) - Indices{};
}

// The even and the odd lanes of two neighbours, and back.
inline Vector even_lanes(Vector a, Vector b) {
  Indices index;
  for (int i = 0; i < kWidth; ++i) index[i] = 2 * i;
  return __builtin_shuffle(a, b, index);
}
inline Vector odd_lanes(Vector a, Vector b) {
  Indices index;
  for (int i = 0; i < kWidth; ++i) index[i] = 2 * i + 1;
  return __builtin_shuffle(a, b, index);
}
inline Vector interleave(Vector even, Vector odd, int first) {  // first: 0, or kWidth / 2
  Indices index;
  for (int i = 0; i < kWidth; ++i) index[i] = first + i / 2 + i % 2 * kWidth;
  return __builtin_shuffle(even, odd, index);
}

// Calls body(i) for every vector of a line of at least kWidth values; the last one overlaps the one
// before it.
template <typename Body>
inline void for_each_vector(int64_t count, Body body) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) body(i);
  if (i < count) body(count - kWidth);
}

// Adds up neighboring lanes: two vectors become one.
inline Vector pair_sums(Vector a, Vector b) { return even_lanes(a, b) + odd_lanes(a, b); }

// Adds up lanes until a quarter of them is left: four vectors become one, in which kWidth / 4 lanes
// each belong to v[0], v[1], v[2] and v[3].
inline Vector quarter_sums(const Vector* v) {
  return pair_sums(pair_sums(v[0], v[1]), pair_sums(v[2], v[3]));
}
constexpr int kQuarter = kWidth / 4;

}  // namespace colorseg::cpu::COLORSEG_ISA

// 2x2 max-pool and nearest upsample between a map and one of half its height and width.
//
// Memory bound.  In a plane (channels = 1) neighbours of a 2x2 square are adjacent, so the square
// advances by 2 and the small map by 1; interleaved, the lanes are channels and both advance by 1.
// Both neighbours are read off one pointer: a strided read without gaps is what vectorises.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace colorseg::cpu::COLORSEG_ISA {

// Calls body(step, count, small_offset, top_left) for every line of the tile that can be treated in
// one loop; the square at top_left spans +channels to the right and +full_width * channels down.
template <typename Body>
inline void for_each_line(const Tile& t, Body body) {
  const int64_t line = t.full_width * t.channels;
  for (int64_t r = 0; r < t.rows; ++r) {
    if (t.channels == 1) {
      body.template operator()<2>(t.width, r * t.width, 2 * r * line);
      continue;
    }
    for (int64_t x = 0; x < t.width; ++x) {
      body.template operator()<1>(t.channels, (r * t.width + x) * t.channels,
                                  2 * r * line + 2 * x * t.channels);
    }
  }
}

template <typename T>
struct MaxPool2 {
  const T* __restrict full;
  T* __restrict pooled;
  int32_t* __restrict argmax;
  int64_t right, down;

  template <int kStep>
  void operator()(int64_t count, int64_t small, int64_t top_left) const {
    const T* __restrict top = full + top_left, * __restrict bottom = top + down;
    const int64_t next = kStep == 2 ? 1 : right;
    for (int64_t i = 0; i < count; ++i) {
      T best = top[kStep * i];
      int32_t where = 0;
      take(top[kStep * i + next], 1, best, where);
      take(bottom[kStep * i], 2, best, where);
      take(bottom[kStep * i + next], 3, best, where);
      pooled[small + i] = best;
      argmax[small + i] = where;
    }
  }
  // torch's rule: the first maximum wins a tie, the last NaN wins over everything
  static void take(T value, int32_t index, T& best, int32_t& where) {
    const bool better = (value > best) | (value != value);
    best = better ? value : best;
    where = better ? index : where;
  }
};

template <typename T>
void maxpool2(Tile t, const T* full, T* pooled, int32_t* argmax) {
  for_each_line(t, MaxPool2<T>{full, pooled, argmax, t.channels, t.full_width * t.channels});
}

template <typename T>
struct MaxPool2Backward {
  const T* __restrict grad_pooled;
  const int32_t* __restrict argmax;
  T* __restrict grad_full;
  int64_t right, down;

  template <int kStep>
  void operator()(int64_t count, int64_t small, int64_t top_left) const {
    const int64_t next = kStep == 2 ? 1 : right;
    scatter<kStep>(count, small, grad_full + top_left, next, 0);
    scatter<kStep>(count, small, grad_full + top_left + down, next, 2);
  }
  // One line of the squares: codes `first` and first + 1.
  template <int kStep>
  void scatter(int64_t count, int64_t small, T* __restrict line, int64_t next,
               int32_t first) const {
    const T* __restrict grad = grad_pooled + small;
    const int32_t* __restrict where = argmax + small;
    for (int64_t i = 0; i < count; ++i) {
      const T left = where[i] == first ? grad[i] : T(0);
      const T other = where[i] == first + 1 ? grad[i] : T(0);
      line[kStep * i] = left;
      line[kStep * i + next] = other;
    }
  }
};

// Leaves an odd last line or column as it is: the caller zeroes it.
template <typename T>
void maxpool2_backward(Tile t, const T* grad_pooled, const int32_t* argmax, T* grad_full) {
  for_each_line(t, MaxPool2Backward<T>{grad_pooled, argmax, grad_full, t.channels,
                                       t.full_width * t.channels});
}

template <typename T>
struct Upsample2 {
  const T* __restrict x;
  T* __restrict full;
  int64_t right, down;

  template <int kStep>
  void operator()(int64_t count, int64_t small, int64_t top_left) const {
    T* __restrict top = full + top_left;
    T* __restrict bottom = top + down;
    const int64_t next = kStep == 2 ? 1 : right;
    for (int64_t i = 0; i < count; ++i) {
      const T value = x[small + i];
      top[kStep * i] = value;
      top[kStep * i + next] = value;
      bottom[kStep * i] = value;
      bottom[kStep * i + next] = value;
    }
  }
};

template <typename T>
void upsample2(Tile t, const T* x, T* full) {
  for_each_line(t, Upsample2<T>{x, full, t.channels, t.full_width * t.channels});
}

template <typename T>
struct Upsample2Backward {
  const T* __restrict grad_full;
  T* __restrict grad;
  int64_t right, down;

  template <int kStep>
  void operator()(int64_t count, int64_t small, int64_t top_left) const {
    const T* __restrict top = grad_full + top_left, * __restrict bottom = top + down;
    const int64_t next = kStep == 2 ? 1 : right;
    for (int64_t i = 0; i < count; ++i) {
      grad[small + i] =
          (top[kStep * i] + top[kStep * i + next]) + (bottom[kStep * i] + bottom[kStep * i + next]);
    }
  }
};

template <typename T>
void upsample2_backward(Tile t, const T* grad_full, T* grad) {
  for_each_line(t, Upsample2Backward<T>{grad_full, grad, t.channels, t.full_width * t.channels});
}

// Four codes of 2 bits in a byte, the first one lowest; the last byte is filled up with zeros.
inline void pack_codes(int64_t count, const int32_t* __restrict codes, uint8_t* __restrict packed) {
  const int64_t whole = count / 4;
  for (int64_t i = 0; i < whole; ++i) {
    packed[i] = static_cast<uint8_t>(codes[4 * i] | codes[4 * i + 1] << 2 | codes[4 * i + 2] << 4 |
                                     codes[4 * i + 3] << 6);
  }
  if (count % 4 == 0) return;
  int32_t last = 0;
  for (int64_t i = 4 * whole; i < count; ++i) last |= codes[i] << 2 * (i % 4);
  packed[whole] = static_cast<uint8_t>(last);
}

inline void unpack_codes(int64_t count, const uint8_t* __restrict packed,
                         int32_t* __restrict codes) {
  const int64_t whole = count / 4;
  for (int64_t i = 0; i < whole; ++i) {
    const int32_t byte = packed[i];
    codes[4 * i] = byte & 3;
    codes[4 * i + 1] = byte >> 2 & 3;
    codes[4 * i + 2] = byte >> 4 & 3;
    codes[4 * i + 3] = byte >> 6;
  }
  for (int64_t i = 4 * whole; i < count; ++i) codes[i] = packed[whole] >> 2 * (i % 4) & 3;
}

}  // namespace colorseg::cpu::COLORSEG_ISA

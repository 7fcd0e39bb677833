// The weight gradient of a convolution: sums over positions of one flat map times another.
//
// A tile is kBlock channels of `a` times 3 taps of one channel of `b`: accumulators in registers
// over all positions, added up across lanes at the end.
#pragma once
#include <algorithm>

#include "multiply.h"

namespace colorseg::cpu::COLORSEG_ISA {

template <int kChannels, int kTaps>
void correlate_tile(const float* a, int64_t a_stride, const float* b, const TapGroup& group,
                    int64_t positions, float* partial) {
  constexpr int kSums = kChannels * kTaps;
  Vector sum[kSums] = {};
  const auto step = [&](int64_t p, Indices mask) {
    Vector right[kTaps];
#pragma GCC unroll 4
    for (int t = 0; t < kTaps; ++t) right[t] = load(b + group.b_offset[t] + p);
#pragma GCC unroll 8
    for (int o = 0; o < kChannels; ++o) {
      Vector left = (Vector)((Indices)load(a + p + o * a_stride) & mask);
      keep_in_register(left);
#pragma GCC unroll 4
      for (int t = 0; t < kTaps; ++t)
        sum[o * kTaps + t] = multiply_add(left, right[t], sum[o * kTaps + t]);
    }
  };
  const int64_t whole = positions / kWidth * kWidth;
  const Indices all = Indices{} - 1, rest = first_lanes(positions - whole);
  for (int64_t p = 0; p < whole; p += kWidth) step(p, all);
  // what lies behind the last position must not count
  if (whole < positions) step(whole, rest);
#pragma GCC unroll 8
  for (int first = 0; first < kSums; first += 4) {
    const Vector zero{};
    const Vector four[4] = {sum[first], first + 1 < kSums ? sum[first + 1] : zero,
                            first + 2 < kSums ? sum[first + 2] : zero,
                            first + 3 < kSums ? sum[first + 3] : zero};
    float* to = partial + first * kQuarter;
    store(to, load(to) + quarter_sums(four));
  }
}

// Floats of the partial sums of a tile.
inline int64_t partial_size(int64_t channels, int64_t taps) {
  return (channels * taps + 3) / 4 * kWidth;
}

// The sums that partial sums stand for: of four vectors, [4][4].
inline void whole_sums(const Vector* partial, float* sums) {
  if constexpr (kQuarter == 4) {
    store(sums, quarter_sums(partial));
  } else {
    for (int i = 0; i < 4; i += kQuarter)
      store(sums + 4 * i, kQuarter == 1 ? partial[i] : pair_sums(partial[i], partial[i + 1]));
  }
}

// Of a tile.
inline void whole_sums(const float* partial, int64_t count, float* sums) {
  for (int64_t i = 0; i < count; i += 16) {
    Vector four[4] = {};
    for (int64_t k = 0; k < 4 && i + 4 * k < count; ++k)
      four[k] = load(partial + (i + 4 * k) * kQuarter);
    whole_sums(four, sums + i);
  }
}

template <int kChannels>
void correlate_taps(const float* a, int64_t a_stride, const float* b, const TapGroup& group,
                    int64_t positions, float* partial) {
  switch (group.taps) {
    case 3:
      return correlate_tile<kChannels, 3>(a, a_stride, b, group, positions, partial);
    case 2:
      return correlate_tile<kChannels, 2>(a, a_stride, b, group, positions, partial);
    default:
      return correlate_tile<kChannels, 1>(a, a_stride, b, group, positions, partial);
  }
}

inline void correlate_block(int64_t block, const float* a, int64_t a_stride, const float* b,
                            const TapGroup& group, int64_t positions, float* partial) {
  switch (block) {
    case 8:
      return correlate_taps<8>(a, a_stride, b, group, positions, partial);
    case 4:
      return correlate_taps<4>(a, a_stride, b, group, positions, partial);
    case 2:
      return correlate_taps<2>(a, a_stride, b, group, positions, partial);
    default:
      return correlate_taps<1>(a, a_stride, b, group, positions, partial);
  }
}

// Calls body(channel of a, block, channel of b, group, place in the partial sums) for every tile.
template <typename Body>
inline int64_t for_each_correlation(int64_t a_channels, int64_t b_channels,
                                    const std::vector<TapGroup>& groups, Body body) {
  int64_t at = 0;
  for (int64_t i = 0; i < a_channels; i += block_at(i, a_channels)) {
    const int64_t block = block_at(i, a_channels);
    for (int64_t j = 0; j < b_channels; ++j) {
      for (const TapGroup& group : groups) {
        body(i, block, j, group, at);
        at += partial_size(block, group.taps);
      }
    }
  }
  return at;
}

// Floats of partial sums that correlate adds to.
inline int64_t correlation_size(int64_t a_channels, int64_t b_channels,
                                const std::vector<TapGroup>& groups) {
  return for_each_correlation(a_channels, b_channels, groups,
                              [](int64_t, int64_t, int64_t, const TapGroup&, int64_t) {});
}

// Adds the products of a[i] and b[j] over `positions` to partial sums.
inline void correlate(const FlatMap& a, const FlatMap& b, const std::vector<TapGroup>& groups,
                      int64_t positions, float* partial) {
  for_each_correlation(a.channels, b.channels, groups,
                       [&](int64_t i, int64_t block, int64_t j, const TapGroup& group, int64_t at) {
                         correlate_block(block, a.data + i * a.channel_stride, a.channel_stride,
                                         b.data + j * b.channel_stride, group, positions,
                                         partial + at);
                       });
}

// gradient[i * a_stride + j * b_stride + weight] = the sum that partial sums stand for.
inline void finish_correlation(int64_t a_channels, int64_t b_channels,
                               const std::vector<TapGroup>& groups, const float* partial,
                               float* gradient, int64_t a_stride, int64_t b_stride) {
  for_each_correlation(a_channels, b_channels, groups,
                       [&](int64_t i, int64_t block, int64_t j, const TapGroup& group, int64_t at) {
                         float sums[kBlock * kGroupTaps + 16];
                         whole_sums(partial + at, block * group.taps, sums);
                         for (int64_t o = 0; o < block; ++o) {
                           float* to = gradient + (i + o) * a_stride + j * b_stride;
                           for (int64_t t = 0; t < group.taps; ++t)
                             to[group.weight[t]] = sums[o * group.taps + t];
                         }
                       });
}

// sum[i] of the chunks' sums, [chunks][count], in double.
inline void sum_chunks(const float* of_chunks, int64_t chunks, int64_t count, int64_t first,
                       int64_t last, float* sum) {
  constexpr int64_t kRun = 4 * kWidth;
  for (int64_t i = first; i < last; i += kRun) {
    const int64_t run = last - i < kRun ? last - i : kRun;
    double total[kRun] = {};
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const float* __restrict from = of_chunks + chunk * count + i;
      if (run == kRun) {
        for (int64_t l = 0; l < kRun; ++l) total[l] += from[l];
      } else {
        for (int64_t l = 0; l < run; ++l) total[l] += from[l];
      }
    }
    for (int64_t l = 0; l < run; ++l) sum[i + l] = static_cast<float>(total[l]);
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

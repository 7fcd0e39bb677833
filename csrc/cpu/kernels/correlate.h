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
                    int64_t positions, float* sums) {
  Vector sum[kChannels * kTaps] = {};
  const auto step = [&](const float* a_at, const float* const* b_at, int64_t p, Indices mask) {
    Vector right[kTaps];
#pragma GCC unroll 4
    for (int t = 0; t < kTaps; ++t) right[t] = load(b_at[t] + p);
#pragma GCC unroll 8
    for (int o = 0; o < kChannels; ++o) {
      Vector left = (Vector)((Indices)load(a_at + p + o * a_stride) & mask);
      keep_in_register(left);
#pragma GCC unroll 4
      for (int t = 0; t < kTaps; ++t)
        sum[o * kTaps + t] = multiply_add(left, right[t], sum[o * kTaps + t]);
    }
  };
  const int64_t whole = positions / kWidth * kWidth;
  const Indices all = Indices{} - 1, rest = first_lanes(positions - whole);
  for (const TapGroup::Round& round : group.rounds) {
    const float* b_at[kTaps];
    for (int t = 0; t < kTaps; ++t) b_at[t] = b + round.b_offset[t];
    const float* a_at = a + round.a_offset;
    for (int64_t p = 0; p < whole; p += kWidth) step(a_at, b_at, p, all);
    // what lies behind the last position must not count
    if (whole < positions) step(a_at, b_at, whole, rest);
  }
  constexpr int kSums = kChannels * kTaps;
#pragma GCC unroll 4
  for (int first = 0; first < kSums; first += kWidth) {
    Vector lanes[kWidth] = {};
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) lanes[i] = first + i < kSums ? sum[first + i] : Vector{};
    store(sums + first, sums_of_lanes(lanes));
  }
}

template <int kChannels>
void correlate_taps(const float* a, int64_t a_stride, const float* b, const TapGroup& group,
                    int64_t positions, float* sums) {
  switch (group.taps) {
    case 3:
      return correlate_tile<kChannels, 3>(a, a_stride, b, group, positions, sums);
    case 2:
      return correlate_tile<kChannels, 2>(a, a_stride, b, group, positions, sums);
    default:
      return correlate_tile<kChannels, 1>(a, a_stride, b, group, positions, sums);
  }
}

// gradient[i * a_stride + j * b_stride + weight] += sum over positions of a[i] * b[j].
inline void correlate(const FlatMap& a, const FlatMap& b, const std::vector<TapGroup>& groups,
                      int64_t positions, float* gradient, int64_t a_stride, int64_t b_stride) {
  float sums[kBlock * kGroupTaps + kWidth];
  for (int64_t i = 0; i < a.channels;) {
    const int64_t block = block_at(i, a.channels);
    const float* left = a.data + i * a.channel_stride;
    for (int64_t j = 0; j < b.channels; ++j) {
      const float* right = b.data + j * b.channel_stride;
      for (const TapGroup& group : groups) {
        const auto tile = block == 8   ? correlate_taps<8>
                          : block == 4 ? correlate_taps<4>
                          : block == 2 ? correlate_taps<2>
                                       : correlate_taps<1>;
        tile(left, a.channel_stride, right, group, positions, sums);
        for (int64_t o = 0; o < block; ++o) {
          float* to = gradient + (i + o) * a_stride + j * b_stride;
          for (int64_t t = 0; t < group.taps; ++t) to[group.weight[t]] += sums[o * group.taps + t];
        }
      }
    }
    i += block;
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

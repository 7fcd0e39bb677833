// The product of a convolution: flat maps times packed weights, register-blocked.
//
// A tile is kVectors vectors of positions times kBlock output channels, all accumulators in
// registers; each step loads the vectors once at a tap's distance and multiplies them by one
// broadcast weight per channel.
#pragma once
#include "geometry.h"
#include "vector.h"

namespace colorseg::cpu::COLORSEG_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)  // 32 registers
constexpr int kBlock = 8;
#else  // 16
constexpr int kBlock = 4;
#endif
constexpr int kVectors = 3;

// Output channels are cut into blocks of 8 (or 4), then 4, 2 and 1 for the rest.
inline int64_t block_at(int64_t channel, int64_t channels) {
  int64_t block = kBlock;
  while (block > channels - channel) block /= 2;
  return block;
}

constexpr float kNoBias[8] = {};

// What one tile reads and writes: `taps` offsets per input channel, weights [input][tap][block].
struct TileArguments {
  const float* in;
  int64_t in_channels, in_channel_stride;
  const int32_t* offsets;
  int64_t taps;
  const float *weights, *bias;
  float* out;
  int64_t out_channel_stride;
};

// The arithmetic of a float32 product; see pairs.h for another.
struct Floats {
  // Products that are added up one after the other before they are added to the result: the error
  // of a sum grows with its length.
  static constexpr int64_t kSumLength = 72;
  static Vector weight(float w) { return broadcast(w); }
  static Vector add_product(Vector w, Vector x, Vector sum) { return multiply_add(w, x, sum); }
};

template <typename Product, int kChannels, int kVectorCount>
void multiply_tile(const TileArguments& a) {
  constexpr int64_t kLength = Product::kSumLength;
  const int64_t segment = a.taps < kLength ? kLength / (a.taps > 0 ? a.taps : 1) : 1;
  const float *in = a.in, *w = a.weights;
  for (int64_t first = 0; first < a.in_channels; first += segment) {
    const int64_t left = a.in_channels - first, count = left < segment ? left : segment;
    Vector sum[kChannels][kVectorCount] = {};
    for (int64_t c = 0; c < count; ++c, in += a.in_channel_stride) {
      for (int64_t t = 0; t < a.taps; ++t, w += kChannels) {
        const float* at = in + a.offsets[t];
        Vector x[kVectorCount];
#pragma GCC unroll 4
        for (int v = 0; v < kVectorCount; ++v) x[v] = load(at + v * kWidth);
#pragma GCC unroll 8
        for (int o = 0; o < kChannels; ++o) {
          const Vector weight = Product::weight(w[o]);
#pragma GCC unroll 4
          for (int v = 0; v < kVectorCount; ++v)
            sum[o][v] = Product::add_product(weight, x[v], sum[o][v]);
        }
      }
    }
#pragma GCC unroll 8
    for (int o = 0; o < kChannels && first == 0; ++o) {
      const Vector bias = broadcast(a.bias[o]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectorCount; ++v) sum[o][v] += bias;
    }
#pragma GCC unroll 8
    for (int o = 0; o < kChannels && first > 0; ++o) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectorCount; ++v)
        sum[o][v] += load(a.out + o * a.out_channel_stride + v * kWidth);
    }
#pragma GCC unroll 8
    for (int o = 0; o < kChannels; ++o) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectorCount; ++v)
        store(a.out + o * a.out_channel_stride + v * kWidth, sum[o][v]);
    }
  }
}

template <typename Product, int kChannels>
void multiply_vectors(int64_t vectors, const TileArguments& a) {
  if (vectors >= kVectors) return multiply_tile<Product, kChannels, kVectors>(a);
  if (vectors == 2) return multiply_tile<Product, kChannels, 2>(a);
  multiply_tile<Product, kChannels, 1>(a);
}

template <typename Product = Floats>
void multiply_block(int64_t block, int64_t vectors, const TileArguments& a) {
  switch (block) {
    case 8:
      return multiply_vectors<Product, 8>(vectors, a);
    case 4:
      return multiply_vectors<Product, 4>(vectors, a);
    case 2:
      return multiply_vectors<Product, 2>(vectors, a);
    default:
      return multiply_vectors<Product, 1>(vectors, a);
  }
}

// Weights of the product in the order the tiles read them: [phase][block][input][tap][channel].
// The weight of (out, in, k) lies at out * out_stride + in * in_stride + k.
inline void pack_weights(const float* weight, int64_t out_channels, int64_t out_stride,
                         int64_t in_channels, int64_t in_stride, const TapTable& taps,
                         float* packed) {
  for (int64_t phase = 0; phase < taps.phases(); ++phase) {
    for (int64_t o = 0; o < out_channels; o += block_at(o, out_channels)) {
      const int64_t block = block_at(o, out_channels);
      for (int64_t c = 0; c < in_channels; ++c) {
        for (int64_t t = taps.begin[phase]; t < taps.begin[phase + 1]; ++t) {
          for (int64_t j = 0; j < block; ++j)
            *packed++ = weight[(o + j) * out_stride + c * in_stride + taps.weight[t]];
        }
      }
    }
  }
}

// out = bias + packed weights * in over `positions`; writes up to kVectors * kWidth - 1 more.
// bias: of all phases, or of the first only.
template <typename Product = Floats>
void multiply(const FlatMap& in, const TapTable& taps, const float* weights, const float* bias,
              bool bias_once, int64_t positions, const FlatMap& out) {
  for (int64_t phase = 0; phase < taps.phases(); ++phase) {
    const int64_t first = taps.begin[phase], count = taps.begin[phase + 1] - first;
    const float* start = phase > 0 && bias_once ? nullptr : bias;
    for (int64_t p = 0; p < positions; p += kVectors * kWidth) {
      const int64_t vectors = (positions - p + kWidth - 1) / kWidth;
      const float* w = weights;
      for (int64_t o = 0; o < out.channels;) {
        const int64_t block = block_at(o, out.channels);
        float* to = out.data + o * out.channel_stride + phase * out.phase_stride + p;
        multiply_block<Product>(
            block, vectors,
            {in.data + p, in.channels, in.channel_stride, taps.offset.data() + first, count, w,
             start ? start + o : kNoBias, to, out.channel_stride});
        w += block * in.channels * count;
        o += block;
      }
    }
    weights += out.channels * in.channels * count;
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

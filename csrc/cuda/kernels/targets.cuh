// What the cross-entropy of a pixel is taken against: a class, or shares of the colors near it.
#pragma once
#include "pixels.cuh"

namespace colorseg::cuda {

// What a pixel should be: a class and its weight.
template <typename A>
struct HardTarget {
  int label;
  A w, total;  // its weight, also the sum of what it takes off the classes
  template <typename T>
  __device__ HardTarget(const CrossEntropy<T, A>& p, int64_t, int, int label)
      : label(label), w(p.weight && label >= 0 ? p.weight[label] : A(1)), total(w) {}
  // w_c q_c; sum_c w_c q_c z_c, of which a class has all; (1 - s) of the loss
  __device__ A weighted(int c) const { return c == label ? w : A(0); }
  template <typename T>
  __device__ A toward(const Pixel<const T>& z, int) const {
    return label < 0 ? A(0) : widen(z[label]);
  }
  __device__ A loss(A lse, A toward) const { return w * (lse - toward); }
};

// Soft targets: the palette colors up to the last neighbor in the order of (distance, index).
// Shares are computed anew at each use: arrays of neighbors would not stay in registers.
template <typename A>
struct SoftTarget {
  const A *palette, *weight;
  Rgb<A> rgb;
  A nearest, farthest, falloff, inverse;
  int last;
  A w = A(1), total;
  template <typename T>
  __device__ SoftTarget(const CrossEntropy<T, A>& p, int64_t image, int pixel, int)
      : palette(p.labels.palette),
        weight(p.weight),
        rgb(rgb_at(p.labels, p.map, image, pixel)),
        nearest(A(0)),
        farthest(A(-1)),
        falloff(p.soft.falloff),
        inverse(A(1)),
        last(-1),
        total(A(0)) {
    A sum = A(0);
    for (int j = 0; j < p.soft.neighbors; ++j) {
      A best = A(INFINITY);
      int index = 0;
      for (int c = 0; c < p.map.channels; ++c) {
        const A distance = rgb.distance(palette, c);
        if (!within(distance, c) && distance < best) best = distance, index = c;
      }
      farthest = best, last = index;
      if (j == 0) nearest = best;
      const A share = exp((best - nearest) * falloff);
      sum += share, total += share * (weight ? weight[index] : A(1));
    }
    inverse = A(1) / sum, total *= inverse;
  }
  __device__ bool within(A distance, int c) const {
    return distance < farthest || (distance == farthest && c <= last);
  }
  __device__ A weighted(int c) const {
    const A distance = rgb.distance(palette, c);
    if (!within(distance, c)) return A(0);
    return exp((distance - nearest) * falloff) * inverse * (weight ? weight[c] : A(1));
  }
  template <typename T>
  __device__ A toward(const Pixel<const T>& z, int channels) const {
    A sum = A(0);
    for (int c = 0; c < channels; ++c) sum += weighted(c) * widen(z[c]);
    return sum;
  }
  __device__ A loss(A lse, A toward) const { return total * lse - toward; }
};

}  // namespace colorseg::cuda

// What kernels over pixels share: a block works on one chunk of an image, a thread on every
// kPixelThreads-th pixel of it.
#pragma once
#include "kernels.h"
#include "number.cuh"
#include "reduce.cuh"

namespace colorseg::cuda {

constexpr int kIgnored = -1;  // also labels out of range: they are never read as an index

// The chunk of a block: pixels [first, last) of one image.
struct Chunk {
  int64_t image;
  int first, last;
};
__device__ inline Chunk chunk_of(const PixelMap& map, int64_t index) {
  const int64_t per_image = image_chunks(map), size = pixel_chunk(map);
  const int64_t image = index / per_image, first = index % per_image * size;
  const int64_t last = first + size < map.pixels ? first + size : map.pixels;
  return {image, static_cast<int>(first), static_cast<int>(last)};
}

// Calls load(b, pixel) for kBatch of a thread's pixels of a chunk, then use(b, pixel): loads of all
// are on their way at a time.
template <int kBatch, typename Load, typename Use>
__device__ void for_pixels(const Chunk& chunk, const Load& load, const Use& use) {
  for (int first = chunk.first + threadIdx.x; first < chunk.last; first += kBatch * kPixelThreads) {
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (first + b * kPixelThreads < chunk.last) load(b, first + b * kPixelThreads);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (first + b * kPixelThreads < chunk.last) use(b, first + b * kPixelThreads);
    }
  }
}

// One pixel of a map: its channels are `stride` apart.
template <typename T>
struct Pixel {
  T* data;
  int64_t stride;
  __device__ T& operator[](int64_t c) const { return data[c * stride]; }
};
template <typename T>
__device__ Pixel<T> pixel_of(const PixelMap& map, T* data, int64_t image, int64_t p) {
  data += image * map.channels * map.pixels + p * (map.channels_last ? map.channels : 1);
  return {data, map.channels_last ? 1 : map.pixels};
}

// The palette color nearest to (r, g, b): squared distances are added red, green, blue without
// fused multiply-add, as on the CPU; a tie goes to the lowest index.
__device__ inline float square_sum(float r, float g, float b) {
  return __fadd_rn(__fadd_rn(__fmul_rn(r, r), __fmul_rn(g, g)), __fmul_rn(b, b));
}
__device__ inline double square_sum(double r, double g, double b) {
  return __dadd_rn(__dadd_rn(__dmul_rn(r, r), __dmul_rn(g, g)), __dmul_rn(b, b));
}
template <typename A>
struct Rgb {
  A r, g, b;
  // The square of the distance to color k of a palette.
  __device__ A distance(const A* palette, int k) const {
    return square_sum(r - palette[3 * k], g - palette[3 * k + 1], b - palette[3 * k + 2]);
  }
};
template <typename A>
__device__ int nearest(const Rgb<A>& rgb, const A* palette, int64_t colors) {
  A least = A(INFINITY);
  int index = 0;
  for (int k = 0; k < colors; ++k) {
    const A distance = rgb.distance(palette, k);
    if (distance < least) least = distance, index = k;
  }
  return index;
}

// The values of one pixel of an RGB target, bytes divided by 256.
template <typename A>
__device__ Rgb<A> rgb_at(const LabelSource<A>& source, const PixelMap& map, int64_t image,
                         int64_t p) {
  A rgb[3];
  for (int i = 0; i < 3; ++i) {
    const int64_t from = (3 * image + i) * map.pixels + p;
    rgb[i] = source.kind == LabelKind::kRgb
                 ? static_cast<const A*>(source.data)[from]
                 : A(static_cast<const uint8_t*>(source.data)[from]) * A(1.0 / 256);  // exact
  }
  return {rgb[0], rgb[1], rgb[2]};
}

// The labels of some pixels of an image as they are stored, or of their nearest colors.  Where they
// come from is asked once for all, so that their loads are on their way together.
template <int kBatch, typename A>
__device__ void raw_labels(const LabelSource<A>& source, const PixelMap& map, int64_t image,
                           const int (&pixels)[kBatch], int64_t (&labels)[kBatch]) {
  const int64_t first = image * map.pixels;
  if (source.kind == LabelKind::kInt64) {
#pragma unroll
    for (int b = 0; b < kBatch; ++b)
      labels[b] = static_cast<const int64_t*>(source.data)[first + pixels[b]];
  } else if (source.kind == LabelKind::kUint8) {
#pragma unroll
    for (int b = 0; b < kBatch; ++b)
      labels[b] = static_cast<const uint8_t*>(source.data)[first + pixels[b]];
  } else {
    for (int b = 0; b < kBatch; ++b)
      labels[b] = nearest(rgb_at(source, map, image, pixels[b]), source.palette, map.channels);
  }
}

// kIgnored where it does not count.
template <typename A>
__device__ int checked_label(const LabelSource<A>& source, const PixelMap& map, int64_t label) {
  if (source.ignores && label == source.ignore_index) return kIgnored;
  return label < 0 || label >= map.channels ? kIgnored : static_cast<int>(label);
}

template <typename A>
__device__ int label_at(const LabelSource<A>& source, const PixelMap& map, int64_t image,
                        int pixel) {
  const int pixels[] = {pixel};
  int64_t label[1];
  raw_labels(source, map, image, pixels, label);
  return checked_label(source, map, label[0]);
}

// One block per chunk.
inline dim3 chunk_grid(const PixelMap& map) {
  return dim3(static_cast<unsigned>(pixel_chunks(map)));
}

}  // namespace colorseg::cuda

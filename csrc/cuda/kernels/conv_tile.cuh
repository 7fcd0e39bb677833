// What own convolutions share: a tile of the input in shared memory, with what comes in front of
// the convolution done on the way, and fragments of tensor core products.
#pragma once
#include "convolve.h"
#include "number.cuh"
#include "reduce.cuh"
#include "vectors.cuh"

namespace colorseg::cuda {

constexpr int kStepBytes = 32;  // of a position's channels that one product adds up

// Rows of 16-byte vectors, one for each pixel of a tile.  An odd number of vectors keeps rows that
// are read together in different banks.
template <typename T>
__host__ __device__ int pixel_bytes(const Channels& channels) {
  const int bytes = channels.padded * static_cast<int>(sizeof(T));
  return (bytes + kStepBytes - 1) / kStepBytes * kStepBytes + 16;
}

// Pixels of the input that a tile needs, in each image.
__host__ __device__ inline int tile_rows(const ConvTaps& t, const Tiling& g) {
  return t.in_step * ((1 << g.log_rows) - 1) + t.height;
}
__host__ __device__ inline int tile_columns(const ConvTaps& t, const Tiling& g) {
  return t.in_step * ((1 << g.log_columns) - 1) + t.width;
}

// The first position of a tile.
struct Place {
  int64_t image;
  int row, column;
};
__device__ inline Place place_of(const Tiling& g, int tile) {
  const int line = tile / g.column_tiles, group = line / g.row_tiles;
  return {int64_t(group) << g.log_images, (line - group * g.row_tiles) << g.log_rows,
          (tile - line * g.column_tiles) << g.log_columns};
}

// Position m of a tile.
struct Position {
  int image, row, column;
};
__device__ inline Position position_of(const Tiling& g, int m) {
  return {m >> (g.log_rows + g.log_columns), (m >> g.log_columns) & ((1 << g.log_rows) - 1),
          m & ((1 << g.log_columns) - 1)};
}

// A rectangle of pixels of some images, which may reach beyond them.
struct Window {
  int64_t image, images;
  int first_row, first_column, count, rows, columns;  // count: of images
  int height, width;                                  // of a whole image
};

// A pixel of a window, and how far the next one is.
struct Cursor {
  int image, row, column;
  __device__ Cursor(const Window& w, int pixel) {
    const int line = pixel / w.columns;
    column = pixel - line * w.columns, image = line / w.rows, row = line - image * w.rows;
  }
  __device__ void advance(const Window& w, const Cursor& by) {
    image += by.image, row += by.row, column += by.column;
    if (column >= w.columns) column -= w.columns, ++row;
    if (row >= w.rows) row -= w.rows, ++image;
  }
};

// Whether an image has that pixel, and which one of all images' it is.
__device__ inline bool contains(const Window& w, const Cursor& at) {
  const int row = w.first_row + at.row, column = w.first_column + at.column;
  return w.image + at.image < w.images && row >= 0 && row < w.height && column >= 0 &&
         column < w.width;
}
__device__ inline int64_t offset_of(const Window& w, const Cursor& at) {
  const int row = w.first_row + at.row, column = w.first_column + at.column;
  return (w.image + at.image) * (int64_t(w.height) * w.width) + row * w.width + column;
}

// The first `valid` values from memory, zeros behind them.
template <typename T>
__device__ Vector<T> load_part(const T* from, int valid) {
  Vector<T> v;
  for (int i = 0; i < Vector<T>::kCount; ++i)
    v.values[i] = i < valid ? from[i] : narrow<T>(Arithmetic<T>(0));
  return v;
}
template <typename T>
__device__ Vector<T> load_vector(const T* from, int valid, bool aligned) {
  return aligned ? *reinterpret_cast<const Vector<T>*>(from) : load_part(from, valid);
}

// Float32 for tf32 products, rounded if kTf32.
template <typename T, bool kTf32>
__device__ T rounded(float x) {
  if constexpr (kTf32) return to_tf32(x);
  return narrow<T>(x);
}

// An affine on the way into a convolution.  Of half types, which have far fewer digits than a
// difference from the center could lose, it is one product and sum.
template <typename T>
struct InputAffine {
  ChannelAffine<float> a = {0, 1, 0};
  __device__ void read(const ChannelAffine<float>& from) { a = from; }
  __device__ float operator()(float x) const { return (x - a.center) * a.scale + a.offset; }
};
struct HalfAffine {
  float scale = 1, shift = 0;
  __device__ void read(const ChannelAffine<float>& a) {
    scale = a.scale, shift = a.offset - a.center * a.scale;
  }
  __device__ float operator()(float x) const { return x * scale + shift; }
};
template <>
struct InputAffine<__half> : HalfAffine {};
template <>
struct InputAffine<__nv_bfloat16> : HalfAffine {};

// load_window of a source whose pixels are whole vectors (kWhole), or not.
template <typename T, bool kTf32, int kUnroll, bool kWhole>
__device__ void load_pixels(const Window& w, const ConvSource<T>& source, int count, int channel,
                            int first, int step, int row_bytes, unsigned char* to) {
  constexpr int kVector = Vector<T>::kCount;
  const int left = count - channel, valid = left < 0 ? 0 : left < kVector ? left : kVector;
  const bool plain = !source.affine && !source.relu && !kTf32;
  const T* x = source.x + (valid > 0 ? channel : 0);
  InputAffine<T> affine[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (source.affine && i < valid) affine[i].read(source.affine[channel + i]);
  }
  const int pixels = w.count * w.rows * w.columns;
  const Cursor by(w, step);
  Cursor at(w, first);
  if (plain && kWhole) {
#pragma unroll 1
    for (int pixel = first; pixel < pixels; pixel += step, at.advance(w, by)) {
      const bool is_inside = valid > 0 && contains(w, at);
      copy_async(to + pixel * row_bytes, x + (is_inside ? offset_of(w, at) * count : 0), is_inside);
    }
    return;
  }
  for (int pixel = first; pixel < pixels; pixel += step * kUnroll) {
    Vector<T> loaded[kUnroll];
    bool inside[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      inside[u] = valid > 0 && contains(w, at);
      // outside, some pixel is loaded and not looked at: no branch keeps loads from each other
      const int64_t from = inside[u] ? offset_of(w, at) * count : 0;
      loaded[u] =
          kWhole ? *reinterpret_cast<const Vector<T>*>(x + from) : load_part(x + from, valid);
      at.advance(w, by);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (pixel + u * step >= pixels) break;
      Vector<T>& v = loaded[u];
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const bool counts = inside[u] && (kWhole || i < valid);
        if (plain) {
          if (!counts) v.values[i] = narrow<T>(Arithmetic<T>(0));
          continue;
        }
        float value = affine[i](widen(v.values[i]));
        if (source.relu && value < 0) value = 0;
        v.values[i] = rounded<T, kTf32>(counts ? value : 0.0f);
      }
      *reinterpret_cast<Vector<T>*>(to + (pixel + u * step) * row_bytes) = v;
    }
  }
}

// Copies a window to shared memory, pixel after pixel, zeros where there is none; it is there
// behind await_copies and a barrier.  A thread keeps its channels, and has kUnroll vectors on their
// way at a time, as many as registers are left for, or all where nothing is to be done to them; the
// block has a thread for each vector of a pixel.
template <typename T, bool kTf32, int kUnroll>
__device__ void load_window(const Window& w, const Channels& channels, const ConvSource<T>& first,
                            const ConvSource<T>& second, int row_bytes, unsigned char* to) {
  constexpr int kVector = Vector<T>::kCount;
  const int vectors = (row_bytes - 16) / 16, step = static_cast<int>(blockDim.x) / vectors;
  const int thread = static_cast<int>(threadIdx.x), place = thread % vectors * kVector;
  if (thread >= step * vectors) return;
  const int which = channels.counts[1] > 0 ? channels.which(place) : 0;
  const int count = channels.counts[which];
  const ConvSource<T>& source = which ? second : first;
  const bool whole = count % kVector == 0 && reinterpret_cast<uintptr_t>(source.x) % 16 == 0;
  const int channel = place - which * channels.begin, pixel = thread / vectors;
  to += place * sizeof(T);
  if (whole)
    load_pixels<T, kTf32, kUnroll, true>(w, source, count, channel, pixel, step, row_bytes, to);
  else
    load_pixels<T, kTf32, kUnroll, false>(w, source, count, channel, pixel, step, row_bytes, to);
}

}  // namespace colorseg::cuda

// What follows a convolution's products, on a tile of them in shared memory: see ConvTarget.
#pragma once
#include "channels.cuh"
#include "conv_tile.cuh"

namespace colorseg::cuda {

constexpr int kConvThreads = 128;

// Floats of a position's products, of kColumns channels; rows that are stored together lie in
// different banks.
template <int kColumns>
__host__ __device__ constexpr int stage_stride() {
  return kColumns % 16 == 8 ? kColumns : kColumns + 8;
}

// Whole vectors of 16 bytes at a multiple of 16.
template <int kCount>
__device__ void load_floats(const float* from, float (&to)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const auto v = *reinterpret_cast<const Vector<float>*>(from + i);
#pragma unroll
    for (int j = 0; j < 4; ++j) to[i + j] = v.values[j];
  }
}
template <int kCount>
__device__ void store_floats(const float (&from)[kCount], float* to) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4)
    *reinterpret_cast<Vector<float>*>(to + i) = {from[i], from[i + 1], from[i + 2], from[i + 3]};
}

// What a thread has summed up of its channels over all tiles of a block, in shared memory.
template <typename T>
struct RunningSums {
  static constexpr int kFloats = 2 * Vector<T>::kCount * kConvThreads;
  float* memory;
  float count = 0;
  __device__ float& first(int i) { return memory[(2 * i) * kConvThreads + threadIdx.x]; }
  __device__ float& second(int i) { return memory[(2 * i + 1) * kConvThreads + threadIdx.x]; }
};

// A block's threads take kVectors vectors of channels of kStep positions at a time.
template <typename T, int kColumns>
struct Epilogue {
  static constexpr int kVector = Vector<T>::kCount, kVectors = kColumns / kVector;
  static constexpr int kStep = kConvThreads / kVectors, kStride = stage_stride<kColumns>();

  const Convolution<T>& p;
  RunningSums<T> sums;
  int place, which, channel, channels, valid;
  bool active;

  __device__ Epilogue(const Convolution<T>& p, float* memory) : p(p), sums{memory} {
    const int thread = static_cast<int>(threadIdx.x);
    place = static_cast<int>(blockIdx.y) * kColumns + thread % kVectors * kVector;
    active = thread < kStep * kVectors && place < p.out.padded;
    which = p.out.which(place), channel = place - which * p.out.begin;
    channels = p.out.counts[which];
    valid = channels - channel < kVector ? channels - channel : kVector;
    for (int i = 0; i < kVector; ++i) sums.first(i) = sums.second(i) = 0;
  }

  // stage: [positions][kStride].
  __device__ void take(const Place& at, int phase, float* stage) {
    if (!active) return;
    const ConvTarget<T>& to = p.targets[which];
    const int shift = p.pool ? 2 : 0, positions = p.tiling.positions() >> shift;
    stage += static_cast<int>(threadIdx.x) % kVectors * kVector;
    float sum[kVector] = {}, second[kVector] = {};
    int count = 0;
    for (int m = static_cast<int>(threadIdx.x) / kVectors; m < positions; m += kStep) {
      float* values = stage + first_of(m) * kStride;
      int64_t pixel;
      if (!pixel_of(at, m, phase, pixel)) continue;
      float value[kVector];
      finish(to, values, pixel, value, second);
      ++count;
#pragma unroll
      for (int i = 0; i < kVector; ++i) sum[i] += value[i];
      if (to.moments) store_floats(value, values);
    }
    if (to.moments) {
      add_moments(at, phase, stage, sum, count);
    } else if (to.sums) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) sums.first(i) += sum[i], sums.second(i) += second[i];
    }
  }

  // Merges what the threads have of each channel, into the block's part; shared: all of it.
  __device__ void store(float* shared) {
    const ConvTarget<T>& to = p.targets[active ? which : 0];
    const bool moments = p.targets[0].moments != nullptr;
    if (!moments && !p.targets[0].sums && !p.targets[1].sums) return;
    float* counts = shared;  // the sums stay where they are
    __syncthreads();
    counts[threadIdx.x] = sums.count;
    __syncthreads();
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= kVectors || !active) return;  // the first thread of a vector
    for (int i = 0; i < valid; ++i) {
      const int64_t at = int64_t(blockIdx.x) * channels + channel + i;
      Moments all = {};
      GradientSums gradients = {};
      for (int t = thread; t < kStep * kVectors; t += kVectors) {
        const float a = sums.memory[2 * i * kConvThreads + t];
        const float b = sums.memory[(2 * i + 1) * kConvThreads + t];
        if (moments)
          merge(all, {{counts[t], a, b}});
        else
          merge(gradients, {{a, b}});
      }
      if (moments) to.moments[at] = all;
      if (to.sums) to.sums[at] = gradients;
    }
  }

 private:
  __device__ int first_of(int m) const {  // in the stage, of value m or of square m
    if (!p.pool) return m;
    const int columns = p.tiling.log_columns - 1, line = m >> columns;
    return (line << (columns + 2)) + ((m & ((1 << columns) - 1)) << 1);
  }

  // The pixel of the result that value m is; false where there is none.
  __device__ bool pixel_of(const Place& at, int m, int phase, int64_t& pixel) const {
    const int pool = p.pool ? 1 : 0, step = p.taps.out_step;
    const Tiling& g = p.tiling;
    const int columns = g.log_columns - pool, rows = g.log_rows - pool;
    const int column = m & ((1 << columns) - 1), line = m >> columns;
    const int64_t image = at.image + (line >> rows);
    const int y = ((at.row >> pool) + (line & ((1 << rows) - 1))) * step + phase / step;
    const int x = ((at.column >> pool) + column) * step + phase % step;
    const int height = p.out_height >> pool, width = p.out_width >> pool;
    pixel = (image * height + y) * width + x;
    return image < p.n && y < height && x < width;
  }

  // Reads products, stores the result and returns it; adds to `second`, the gradients times the
  // deviations.
  __device__ void finish(const ConvTarget<T>& to, const float* values, int64_t pixel,
                         float (&value)[kVector], float (&second)[kVector]) {
    load_floats(values, value);
    if (p.pool) take_maximum(values, pixel, value);
    const int64_t at = pixel * channels + channel;
    const bool aligned = channels % kVector == 0;
    Vector<T> old, map;
    if (to.adds) old = load_vector<T>(to.y + at, valid, aligned);
    if (to.map) map = load_vector<T>(to.map + at, valid, aligned);
    Vector<T> result;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const int c = i < valid ? channel + i : channel;
      float v = value[i];
      if (p.bias) v += p.bias[c];
      if (to.adds) v += widen(old.values[i]);
      if (to.affine) v = (v - to.affine[c].center) * to.affine[c].scale + to.affine[c].offset;
      if (to.relu && v < 0) v = 0;
      if (to.map) {
        const ChannelAffine<float> a = to.map_affine[c];
        const float deviation = widen(map.values[i]) - a.center;
        if (to.map_relu && deviation * a.scale + a.offset <= 0) v = 0;
        second[i] += v * deviation;
      }
      result.values[i] = narrow<T>(v);
      value[i] = widen(result.values[i]);  // statistics are of what is stored
    }
    if (aligned) {
      *reinterpret_cast<Vector<T>*>(to.y + at) = result;
    } else {
      for (int i = 0; i < valid; ++i) to.y[at + i] = result.values[i];
    }
  }

  __device__ void take_maximum(const float* values, int64_t pixel, float (&best)[kVector]) {
    unsigned codes = 0;
#pragma unroll
    for (int corner = 1; corner < 4; ++corner) {
      float x[kVector];
      load_floats(values + ((corner >> 1 << p.tiling.log_columns) + corner % 2) * kStride, x);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        if (x[i] > best[i] || x[i] != x[i])  // the first maximum, the last NaN, as torch
          best[i] = x[i], codes = (codes & ~(3u << 2 * i)) | static_cast<unsigned>(corner) << 2 * i;
      }
    }
    if (!p.codes) return;
    uint8_t* to = p.codes + (pixel * channels + channel) / 4;
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      if (i < valid) to[i / 4] = static_cast<uint8_t>(codes >> 2 * i);
    }
  }

  // Mean and squared deviations of this tile, merged into those of the tiles before.
  __device__ void add_moments(const Place& at, int phase, const float* stage,
                              const float (&sum)[kVector], int count) {
    if (count == 0) return;
    const int shift = p.pool ? 2 : 0, positions = p.tiling.positions() >> shift;
    float mean[kVector], squares[kVector] = {};
#pragma unroll
    for (int i = 0; i < kVector; ++i) mean[i] = sum[i] / static_cast<float>(count);
    for (int m = static_cast<int>(threadIdx.x) / kVectors; m < positions; m += kStep) {
      int64_t pixel;
      if (!pixel_of(at, m, phase, pixel)) continue;
      float value[kVector];
      load_floats(stage + first_of(m) * kStride, value);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const float deviation = value[i] - mean[i];
        squares[i] += deviation * deviation;
      }
    }
    const float before = sums.count, after = before + static_cast<float>(count);
    const float share = static_cast<float>(count) / after;
    sums.count = after;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      float &to_mean = sums.first(i), &to_squares = sums.second(i);
      const float delta = mean[i] - to_mean;
      if (!isfinite(to_mean + mean[i])) {  // as their plain sum would be
        to_mean = before > 0 ? to_mean + mean[i] : mean[i], to_squares = NAN;
      } else {
        to_mean += delta * share;
        to_squares += squares[i] + delta * delta * before * share;
      }
    }
  }
};

}  // namespace colorseg::cuda

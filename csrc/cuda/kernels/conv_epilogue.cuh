// What follows a convolution's products, on a tile of them in shared memory: see ConvTarget.
#pragma once
#include "channels.cuh"
#include "conv_stage.cuh"
#include "conv_tile.cuh"

namespace colorseg::cuda {

// A block's threads take kVectors vectors of channels of kStep positions at a time.  kGradient:
// what only data gradients do, ConvTarget's adds, map and sums; else what only results do.
template <typename T, int kColumns, bool kGradient>
struct Epilogue {
  static constexpr int kVector = Vector<T>::kCount, kVectors = kColumns / kVector;
  static constexpr int kStep = kConvThreads / kVectors, kStride = stage_stride<kColumns>();
  // positions that a thread has on their way, as registers allow
  static constexpr int kBatch = (sizeof(T) == 2 ? 2 : 4) / (kGradient ? 2 : 1);

  const Convolution<T>& p;
  RunningSums<T> sums;
  // of a data gradient, what the forward pass read the thread's channels of the map through
  ChannelAffine<float>* affines;
  int place, which, channel, channels, valid;
  bool active;

  // memory: epilogue_floats, there behind a barrier.
  __device__ Epilogue(const Convolution<T>& p, float* memory) : p(p), sums{memory} {
    const int thread = static_cast<int>(threadIdx.x);
    place = static_cast<int>(blockIdx.y) * kColumns + thread % kVectors * kVector;
    active = thread < kStep * kVectors && place < p.out.padded;
    which = p.out.which(place), channel = place - which * p.out.begin;
    channels = p.out.counts[which];
    valid = channels - channel < kVector ? channels - channel : kVector;
    for (int i = 0; i < kVector; ++i) sums.first(i) = sums.second(i) = 0;
    affines = reinterpret_cast<ChannelAffine<float>*>(memory + RunningSums<T>::kFloats);
    if (kGradient && thread < kVectors && active) {
      const ChannelAffine<float>* from = p.targets[which].map_affine;
      for (int i = 0; i < valid && from; ++i) affines[thread * kVector + i] = from[channel + i];
    }
    affines += thread % kVectors * kVector;
  }

  // stage: [positions][kStride].
  __device__ void take(const Place& at, int phase, float* stage) {
    if (!active) return;
    const ConvTarget<T>& to = p.targets[which];
    float bias[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      bias[i] = !kGradient && p.bias && i < valid ? p.bias[channel + i] : 0;
    const int positions = p.tiling.positions() >> (pools() ? 2 : 0);
    stage += static_cast<int>(threadIdx.x) % kVectors * kVector;
    float sum[kVector] = {}, second[kVector] = {};
    int count = 0;
    for (int m = static_cast<int>(threadIdx.x) / kVectors; m < positions; m += kStep * kBatch) {
      Loaded loaded[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) load(to, at, m + b * kStep, phase, positions, loaded[b]);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (loaded[b].at < 0) continue;
        float* values = stage + first_of(m + b * kStep) * kStride;
        float value[kVector];
        finish(to, bias, values, loaded[b], value, second);
        ++count;
#pragma unroll
        for (int i = 0; i < kVector; ++i) sum[i] += value[i];
        if (!kGradient && to.moments) store_floats(value, values);
      }
    }
    if constexpr (kGradient) {
      if (!to.sums) return;
#pragma unroll
      for (int i = 0; i < kVector; ++i) sums.first(i) += sum[i], sums.second(i) += second[i];
    } else {
      if (to.moments) add_moments(at, phase, stage, sum, count);
    }
  }

  // Merges what the threads have of each channel into the block's part, a warp for each channel;
  // shared: all of it.
  __device__ void store(float* shared) {
    if (kGradient ? !p.targets[0].sums && !p.targets[1].sums : !p.targets[0].moments) return;
    float* counts = shared;  // the sums stay where they are
    __syncthreads();
    counts[threadIdx.x] = sums.count;
    __syncthreads();
    const int lane = threadIdx.x % kWarp, warps = kConvThreads / kWarp;
    const auto sum = [](double x) { return warp_sum(x); };
    for (int column = static_cast<int>(threadIdx.x) / kWarp; column < kColumns; column += warps) {
      const int at = static_cast<int>(blockIdx.y) * kColumns + column;
      const int target = p.out.which(at), c = at - target * p.out.begin;
      if (at >= p.out.padded || c >= p.out.counts[target]) continue;
      const ConvTarget<T>& to = p.targets[target];
      const float* a = sums.memory + column % kVector * 2 * kConvThreads;
      const int64_t part = int64_t(blockIdx.x) * p.out.counts[target] + c;
      const auto thread = [&](int64_t row) { return row * kVectors + column / kVector; };
      if constexpr (!kGradient) {
        const auto get = [&](int64_t row) {
          return Moments{{counts[thread(row)], a[thread(row)], a[thread(row) + kConvThreads]}};
        };
        const Moments all = merged(Moments{}, lane, kStep, kWarp, get, sum);
        if (lane == 0) to.moments[part] = all;
      } else if (to.sums) {
        const auto get = [&](int64_t row) {
          return GradientSums{{a[thread(row)], a[thread(row) + kConvThreads]}};
        };
        const GradientSums all = merged(GradientSums{}, lane, kStep, kWarp, get, sum);
        if (lane == 0) to.sums[part] = all;
      }
    }
  }

 private:
  __device__ bool pools() const { return !kGradient && p.pool; }

  // What a value meets, on its way from memory while others are.
  struct Loaded {
    int64_t at;  // in the result; negative: there is none
    Vector<T> old, map;
  };
  __device__ void load(const ConvTarget<T>& to, const Place& at, int m, int phase, int positions,
                       Loaded& loaded) const {
    loaded.at = -1;
    int64_t pixel;
    if (m >= positions || !pixel_of(at, m, phase, pixel)) return;
    loaded.at = pixel * channels + channel;
    const bool aligned = channels % kVector == 0;
    if (kGradient && to.adds) loaded.old = load_vector<T>(to.y + loaded.at, valid, aligned);
    if (kGradient && to.map) loaded.map = load_vector<T>(to.map + loaded.at, valid, aligned);
  }

  __device__ int first_of(int m) const {  // in the stage, of value m or of square m
    if (!pools()) return m;
    const int columns = p.tiling.log_columns - 1, line = m >> columns;
    return (line << (columns + 2)) + ((m & ((1 << columns) - 1)) << 1);
  }

  // The pixel of the result that value m is; false where there is none.
  __device__ bool pixel_of(const Place& at, int m, int phase, int64_t& pixel) const {
    const int pool = pools() ? 1 : 0, step = p.taps.out_step;
    const Tiling& g = p.tiling;
    const int columns = g.log_columns - pool, rows = g.log_rows - pool;
    const int column = m & ((1 << columns) - 1), line = m >> columns;
    const int64_t image = at.image + (line >> rows);
    const int y = ((at.row >> pool) + (line & ((1 << rows) - 1))) * step + phase / step;
    const int x = ((at.column >> pool) + column) * step + phase % step;
    const int height = p.out_height >> pool, width = p.out_width >> pool;
    pixel = image * (int64_t(height) * width) + y * width + x;
    return image < p.n && y < height && x < width;
  }

  // Reads products, stores the result and returns it; adds to `second`, the gradients times the
  // deviations.
  __device__ void finish(const ConvTarget<T>& to, const float (&bias)[kVector], const float* values,
                         const Loaded& loaded, float (&value)[kVector], float (&second)[kVector]) {
    load_floats(values, value);
    if (pools()) take_maximum(values, loaded.at, value);
    Vector<T> result;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      float v = value[i];
      if constexpr (!kGradient) v += bias[i];
      if (kGradient && to.adds) v += widen(loaded.old.values[i]);
      if (kGradient && to.map) {
        const ChannelAffine<float> a = affines[i];
        const float deviation = widen(loaded.map.values[i]) - a.center;
        if (to.map_relu && deviation * a.scale + a.offset <= 0) v = 0;
        second[i] += v * deviation;
      }
      result.values[i] = narrow<T>(v);
      value[i] = widen(result.values[i]);  // statistics are of what is stored
    }
    if (channels % kVector == 0) {
      *reinterpret_cast<Vector<T>*>(to.y + loaded.at) = result;
    } else {
      for (int i = 0; i < valid; ++i) to.y[loaded.at + i] = result.values[i];
    }
  }

  __device__ void take_maximum(const float* values, int64_t at, float (&best)[kVector]) {
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
    uint8_t* to = p.codes + at / 4;
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      if (i < valid) to[i / 4] = static_cast<uint8_t>(codes >> 2 * i);
    }
  }

  // Mean and squared deviations of this tile, merged into those of the tiles before.
  __device__ void add_moments(const Place& at, int phase, const float* stage,
                              const float (&sum)[kVector], int count) {
    if (count == 0) return;
    const int positions = p.tiling.positions() >> (pools() ? 2 : 0);
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

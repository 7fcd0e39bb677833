// Walks over the values of one channel of a map of either layout, and adds up over them.
//
// Planes (n, channels, pixels): a block takes a chunk of positions of one channel.  Interleaved
// (n, pixels, channels): it takes those of kWarp channels, a lane each; or of all channels, a
// vector each, where those are whole.
#pragma once
#include "batch_norm.h"
#include "number.cuh"
#include "reduce.cuh"
#include "vectors.cuh"

namespace colorseg::cuda {

constexpr int kChannelThreads = 256;
constexpr int kRows = kChannelThreads / kWarp;  // positions side by side, interleaved

// One block for each chunk of each channel, or of each kWarp channels.
inline dim3 channel_grid(const PixelMap& map) {
  const int64_t groups = map.channels_last ? (map.channels + kWarp - 1) / kWarp : map.channels;
  return dim3(static_cast<unsigned>(channel_chunks(map)), static_cast<unsigned>(groups));
}

__device__ inline int64_t channel_of(const PixelMap& map) {
  return map.channels_last ? int64_t(blockIdx.y) * kWarp + threadIdx.x % kWarp : blockIdx.y;
}

// Calls body(index in the map) for every value of the thread's channel that the thread takes.
template <typename Body>
__device__ void for_each_value(const PixelMap& map, int64_t channel, const Body& body) {
  if (channel >= map.channels) return;
  const int64_t chunk = channel_chunk(map), count = map.n * map.pixels;
  const int64_t first = int64_t(blockIdx.x) * chunk;
  const int64_t last = first + chunk < count ? first + chunk : count;
  if (map.channels_last) {
    for (int64_t p = first + threadIdx.x / kWarp; p < last; p += kRows)
      body(p * map.channels + channel);
    return;
  }
  int64_t image = (first + threadIdx.x) / map.pixels;
  int64_t pixel = (first + threadIdx.x) - image * map.pixels;
  for (int64_t p = first + threadIdx.x; p < last; p += kChannelThreads) {
    body((image * map.channels + channel) * map.pixels + pixel);
    pixel += kChannelThreads;
    while (pixel >= map.pixels) pixel -= map.pixels, ++image;
  }
}

// Calls body(index) for value i itself, or for its four copies in a map upsampled 2x2 from lines of
// `width` (0: not upsampled).
template <typename Body>
__device__ void for_each_copy(const PixelMap& map, int64_t i, int64_t width, const Body& body) {
  if (width == 0) return body(i);
  const int64_t inner = map.channels_last ? map.channels : 1;
  const int64_t pixel = i / inner, channel = i - pixel * inner;
  const int64_t line = pixel / width, column = pixel - line * width;
  const int64_t first = (line * 4 * width + 2 * column) * inner + channel;
  for (int64_t copy :
       {first, first + inner, first + 2 * width * inner, first + (2 * width + 1) * inner})
    body(copy);
}

// What get(first), get(first + step), ... below `count` are together; `sum` adds a number up over
// the threads that share the work.  Means are added up before deviations from their mean are, so
// that there is one division, not one for each of them.
template <typename Get, typename Sum>
__device__ Moments merged(const Moments&, int64_t first, int64_t count, int64_t step,
                          const Get& get, const Sum& sum) {
  double values = 0, total = 0, squares = 0;
  for (int64_t i = first; i < count; i += step) {
    const Moments m = get(i);
    values += m.values[0], total += m.values[0] * m.values[1];
  }
  values = sum(values), total = sum(total);
  const double mean = values > 0 ? total / values : 0;
  for (int64_t i = first; i < count; i += step) {
    const Moments m = get(i);
    const double deviation = m.values[1] - mean;
    squares += m.values[2] + m.values[0] * deviation * deviation;
  }
  return {{values, mean, sum(squares)}};
}
template <typename Get, typename Sum>
__device__ GradientSums merged(const GradientSums&, int64_t first, int64_t count, int64_t step,
                               const Get& get, const Sum& sum) {
  GradientSums all = {};
  for (int64_t i = first; i < count; i += step) {
    const GradientSums g = get(i);
    for (int j = 0; j < GradientSums::kCount; ++j) all.values[j] += g.values[j];
  }
  for (int j = 0; j < GradientSums::kCount; ++j) all.values[j] = sum(all.values[j]);
  return all;
}

// Merges what the threads of a block have of a channel into parts[chunk][channel]; shared:
// [kChannelThreads].
template <typename S>
__device__ void store_part(const PixelMap& map, int64_t channel, const S& sums, S* shared,
                           S* parts) {
  const auto own = [&](int64_t) { return sums; };
  S all;
  if (map.channels_last) {  // a lane's channel is that of the same lane of all warps
    shared[threadIdx.x] = sums;
    __syncthreads();
    const auto at = [&](int64_t row) { return shared[row * kWarp + threadIdx.x % kWarp]; };
    all = merged(sums, 0, kRows, 1, at, [](double x) { return x; });
  } else {
    auto* room = reinterpret_cast<double*>(shared);
    all = merged(sums, 0, 1, 1, own, [&](double x) { return block_sum(x, room); });
  }
  const unsigned writers = map.channels_last ? kWarp : 1;
  if (threadIdx.x < writers && channel < map.channels)
    parts[int64_t(blockIdx.x) * map.channels + channel] = all;
}

// Calls use(b) for every vector of the thread's channels in the block's chunk, kSweepBatch of them
// at a time after load(b, index) of each; then flush(), for numbers that only few values may be
// added to.
template <typename T, typename Load, typename Use, typename Flush>
__device__ void sweep_chunk(const PixelMap& map, const Load& load, const Use& use,
                            const Flush& flush) {
  const int vectors = static_cast<int>(map.channels) / Vector<T>::kCount;
  const int rows = kSweepThreads / vectors, row = static_cast<int>(threadIdx.x) / vectors;
  if (row >= rows) return;
  const int64_t chunk = channel_chunk(map), count = map.n * map.pixels;
  const int64_t first = int64_t(blockIdx.x) * chunk;
  const int64_t last = first + chunk < count ? first + chunk : count;
  const int channel = sweep_channel<T>(map);
  for (int64_t p = first + row; p < last; p += kSweepBatch * rows) {
#pragma unroll
    for (int b = 0; b < kSweepBatch; ++b) {
      if (p + b * rows < last) load(b, (p + b * rows) * map.channels + channel);
    }
#pragma unroll
    for (int b = 0; b < kSweepBatch; ++b) {
      if (p + b * rows < last) use(b);
    }
    flush();
  }
}

// Merges what the threads of a block have of their vector's channels into parts[chunk][channel];
// shared: [kSweepThreads].
template <typename T, typename S>
__device__ void store_vector_parts(const PixelMap& map, const S (&own)[Vector<T>::kCount],
                                   S* shared, S* parts) {
  const int vectors = static_cast<int>(map.channels) / Vector<T>::kCount;
  const int rows = kSweepThreads / vectors;
  for (int i = 0; i < Vector<T>::kCount; ++i) {
    shared[threadIdx.x] = own[i];
    __syncthreads();
    const auto at = [&](int64_t row) { return shared[row * vectors + threadIdx.x]; };
    if (static_cast<int>(threadIdx.x) < vectors) {
      parts[int64_t(blockIdx.x) * map.channels + sweep_channel<T>(map) + i] =
          merged(S{}, 0, rows, 1, at, [](double x) { return x; });
    }
    __syncthreads();
  }
}

// What `count` parts of a channel are together, in every thread of a block; shared: [kMostWarps].
template <typename S>
__device__ S merged_parts(int64_t channels, int64_t channel, const S* parts, int64_t count,
                          double* shared) {
  return merged(
      S{}, threadIdx.x, count, kChannelThreads,
      [&](int64_t i) { return parts[i * channels + channel]; },
      [&](double x) { return block_sum(x, shared); });
}

}  // namespace colorseg::cuda

// Walks over the values of one channel of a map of either layout, and adds up over them.
//
// Planes (n, channels, pixels): a block takes kChannelChunk positions of one channel.  Interleaved
// (n, pixels, channels): a block takes kChannelChunk positions of kWarp channels, a lane each.
#pragma once
#include "batch_norm.h"
#include "number.cuh"
#include "reduce.cuh"

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
  const int64_t first = int64_t(blockIdx.x) * kChannelChunk, count = map.n * map.pixels;
  const int64_t last = first + kChannelChunk < count ? first + kChannelChunk : count;
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

__device__ inline void merge(Moments& a, const Moments& b) {
  const double count = a.values[0] + b.values[0];
  if (b.values[0] == 0) return;
  if (!isfinite(a.values[1] + b.values[1])) {  // as their plain sum would be
    a = {{count, a.values[0] > 0 ? a.values[1] + b.values[1] : b.values[1], NAN}};
    return;
  }
  const double delta = b.values[1] - a.values[1], share = b.values[0] / count;
  a.values[1] += delta * share;
  a.values[2] += b.values[2] + delta * delta * a.values[0] * share;
  a.values[0] = count;
}
__device__ inline void merge(GradientSums& a, const GradientSums& b) {
  for (int i = 0; i < GradientSums::kCount; ++i) a.values[i] += b.values[i];
}

template <typename S>
__device__ S shuffled(const S& sums, int lanes) {
  S other;
  for (int i = 0; i < S::kCount; ++i)
    other.values[i] = __shfl_xor_sync(kAllLanes, sums.values[i], lanes);
  return other;
}

// Merges what the lanes of a warp have; all get the same, because all merge in the same order.
template <typename S>
__device__ S merged_lanes(S sums) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const S other = shuffled(sums, lanes);
    S first = threadIdx.x & lanes ? other : sums;
    merge(first, threadIdx.x & lanes ? sums : other);
    sums = first;
  }
  return sums;
}

// Merges what the threads of a block have of a channel into parts[chunk][channel]; shared:
// [kChannelThreads].
template <typename S>
__device__ void store_part(const PixelMap& map, int64_t channel, S sums, S* shared, S* parts) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (!map.channels_last) sums = merged_lanes(sums);  // all lanes have the same channel
  shared[threadIdx.x] = sums;
  __syncthreads();
  if (warp > 0 || (lane > 0 && !map.channels_last) || channel >= map.channels) return;
  for (int w = 1; w < kRows; ++w) merge(sums, shared[w * kWarp + lane]);
  parts[int64_t(blockIdx.x) * map.channels + channel] = sums;
}

// What `count` parts of a channel are together, in every thread of a block; shared: [kRows].
template <typename S>
__device__ S merged_parts(int64_t channels, int64_t channel, const S* parts, int64_t count,
                          S* shared) {
  S sums = {};
  for (int64_t i = threadIdx.x; i < count; i += kChannelThreads)
    merge(sums, parts[i * channels + channel]);
  sums = merged_lanes(sums);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = sums;
  __syncthreads();
  sums = shared[0];
  for (int w = 1; w < kRows; ++w) merge(sums, shared[w]);
  return sums;
}

}  // namespace colorseg::cuda

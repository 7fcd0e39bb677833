// Walks over the values of one channel of a map of either layout, and adds up over them.
//
// Planes (n, channels, pixels): a block takes a chunk of positions of one channel.  Interleaved
// (n, pixels, channels): it takes those of kWarp channels, a lane each; or, where they are whole,
// those of kSweepColumns vectors of them.
#pragma once
#include <cstring>

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

// The positions that the block takes.
struct Chunk {
  int64_t first, last;
  explicit __device__ Chunk(const PixelMap& map) {
    const int64_t chunk = channel_chunk(map), count = map.n * map.pixels;
    first = int64_t(blockIdx.x) * chunk;
    last = first + chunk < count ? first + chunk : count;
  }
};

// Calls body(index in the map) for every value of the thread's channel that the thread takes.
template <typename Body>
__device__ void for_each_value(const PixelMap& map, int64_t channel, const Body& body) {
  if (channel >= map.channels) return;
  const auto [first, last] = Chunk(map);
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
  const SweepShape<T> shape(map);
  const SweepPlace place = sweep_place(shape);
  if (!place.active) return;
  const Chunk chunk(map);
  const int rows = shape.rows();
  for (int64_t p = chunk.first + place.row; p < chunk.last; p += kSweepBatch * rows) {
#pragma unroll
    for (int b = 0; b < kSweepBatch; ++b) {
      if (p + b * rows < chunk.last) load(b, (p + b * rows) * map.channels + place.channel);
    }
#pragma unroll
    for (int b = 0; b < kSweepBatch; ++b) {
      if (p + b * rows < chunk.last) use(b);
    }
    flush();
  }
}

// One block for each chunk of each group of columns.
template <typename T>
dim3 chunk_grid(const PixelMap& map) {
  return dim3(static_cast<unsigned>(channel_chunks(map)),
              static_cast<unsigned>(SweepShape<T>(map).groups()));
}

// Two sums for each channel of a thread's vectors.
template <typename T>
struct PairSums {
  double first[Vector<T>::kCount] = {}, second[Vector<T>::kCount] = {};
};

template <typename T>
constexpr size_t kPairSumsBytes = size_t(2) * Vector<T>::kCount * kSweepThreads * sizeof(double);

// Adds up what the threads of a block have, and calls store(channel, first, second) for each
// channel, a thread each; shared: kPairSumsBytes.
template <typename T, typename Store>
__device__ void add_pairs(const PixelMap& map, const PairSums<T>& own, double* shared,
                          const Store& store) {
  constexpr int kCount = Vector<T>::kCount;
  const SweepShape<T> shape(map);
  const int thread = static_cast<int>(threadIdx.x), columns = shape.columns();
  double* const seconds = shared + kCount * kSweepThreads;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    shared[i * kSweepThreads + thread] = own.first[i];
    seconds[i * kSweepThreads + thread] = own.second[i];
  }
  __syncthreads();
  const int vector = static_cast<int>(blockIdx.y) * columns + thread % columns,
            i = thread / columns;
  if (i >= kCount || vector >= shape.vectors) return;
  double first = 0, second = 0;
  for (int row = 0; row < shape.rows(); ++row) {
    const int at = i * kSweepThreads + row * columns + thread % columns;
    first += shared[at], second += seconds[at];
  }
  store(vector * kCount + i, first, second);
}

// The affines of a vector's channels, by vectors of 16 bytes.
template <int kCount>
__device__ void load_affines(const ChannelAffine<float>* from, ChannelAffine<float> (&to)[kCount]) {
  constexpr int kLoads = kCount * 3 / Vector<float>::kCount;
  Vector<float> loaded[kLoads];
  static_assert(sizeof(loaded) == sizeof(to));
#pragma unroll
  for (int i = 0; i < kLoads; ++i) loaded[i] = reinterpret_cast<const Vector<float>*>(from)[i];
  memcpy(to, loaded, sizeof(to));
}

// What `count` parts of a channel are together, for the threads that share it: kWarp of them, or
// the block with kMostWarps of shared memory.
template <int kThreads, typename S>
__device__ S merged_parts(int64_t channels, int64_t channel, const S* parts, int64_t count,
                          double* shared) {
  return merged(
      S{}, threadIdx.x % kThreads, count, kThreads,
      [&](int64_t i) { return parts[i * channels + channel]; },
      [&](double x) { return kThreads == kWarp ? warp_sum(x) : block_sum(x, shared); });
}

template <int kThreads>
__device__ int64_t merge_channel() {
  return int64_t(blockIdx.x) * (kChannelThreads / kThreads) + threadIdx.x / kThreads;
}

// Launches a kernel of (channels, parts, count, arguments...) that merges a channel's parts: few
// by a warp, without barriers; many by a block.
template <typename Kernel, typename S, typename... Arguments>
void launch_merge(Kernel by_warp, Kernel by_block, int64_t channels, const S* parts, int64_t count,
                  Stream stream, const Arguments&... arguments) {
  constexpr int64_t kFew = 256;
  const int64_t side = count <= kFew ? kChannelThreads / kWarp : 1;  // channels of a block
  launch(count <= kFew ? by_warp : by_block,
         dim3(static_cast<unsigned>((channels + side - 1) / side)), dim3(kChannelThreads),
         kMostWarps * sizeof(double), stream, channels, parts, count, arguments...);
}

}  // namespace colorseg::cuda

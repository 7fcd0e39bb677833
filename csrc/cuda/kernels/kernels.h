// The torch-free CUDA kernels as the operators see them: pointers to device memory, sizes, and the
// stream that the work is queued on.  Nothing here waits for it.
#pragma once
#include "../launch.h"

namespace colorseg::cuda {

// For kernels that step through any number of values, some in each thread of 256.
inline dim3 flat_grid(int64_t count) {
  const int64_t blocks = (count + 1023) / 1024, most = 4096;
  return dim3(static_cast<unsigned>(blocks < most ? blocks : most));
}

// Logits, or a gradient of them: (n, channels, pixels), or (n, pixels, channels).
struct PixelMap {
  int64_t n, channels, pixels;
  bool channels_last;
};

// Pixels of an image that a block takes: some for each of its threads, no more than keep a GPU
// busy. It depends on the map alone, so that sums, added in the order of the chunks, have the same
// bits on every device.
constexpr int kPixelThreads = 128;
__host__ __device__ inline int64_t pixel_chunk(const PixelMap& map) {
  const int64_t most_chunks = 16384;
  const int64_t share = (map.n * map.pixels + most_chunks - 1) / most_chunks;
  const int64_t rounds = (share + kPixelThreads - 1) / kPixelThreads;
  return (rounds > 0 ? rounds : 1) * kPixelThreads;
}
__host__ __device__ inline int64_t image_chunks(const PixelMap& map) {
  return (map.pixels + pixel_chunk(map) - 1) / pixel_chunk(map);
}
inline int64_t pixel_chunks(const PixelMap& map) { return map.n * image_chunks(map); }

enum class LabelKind { kInt64, kUint8, kRgbBytes, kRgb };

// Where labels come from: (n, pixels), or RGB (n, 3, pixels) with a palette [colors][3].
template <typename A>
struct LabelSource {
  const void* data;
  LabelKind kind;
  bool ignores;
  int64_t ignore_index;
  const A* palette;
};

// rgb is that of `source`; labels are (n, pixels).
template <typename A>
void nearest_colors(const PixelMap& map, const LabelSource<A>& source, int64_t* labels, Stream);

// What color_cross_entropy adds up over the pixels of a chunk.
struct CrossEntropySums {
  double loss, weight, valid, correct;
};

// Scalars, all on the device; null where not wanted.
template <typename A>
struct CrossEntropyResults {
  A* loss;
  double* normalizer;
  int64_t *correct, *valid;
  A* correction;  // what the gradient still has to be multiplied by
};

// Targets spread over the `neighbors` palette colors nearest to an RGB pixel, in shares
// proportional to exp(squared distance * falloff); 0: labels.
template <typename A>
struct SoftTargets {
  int neighbors;
  A falloff;
};

// Pointers that may be null are not wanted: loss (of each pixel), argmax, gradient.
template <typename T, typename A>
struct CrossEntropy {
  PixelMap map;
  const T* logits;
  LabelSource<A> labels;
  const A* weight;  // [channels] or null
  A smoothing;
  SoftTargets<A> soft;
  bool mean;
  A *log_sum_exp, *loss;
  int64_t* argmax;
  T* gradient;
  CrossEntropySums* sums;  // [chunks], scratch
};

template <typename T, typename A>
void cross_entropy(const CrossEntropy<T, A>&, const CrossEntropyResults<A>&, Stream);

// upstream: dL/d(loss), of each pixel or one for all; normalizer: what a mean divides by, or null.
template <typename T, typename A>
void cross_entropy_backward(const CrossEntropy<T, A>&, const A* upstream, bool each,
                            const double* normalizer, Stream);

// values *= *factor, which costs nothing where it is 1.
template <typename T, typename A>
void scale(int64_t count, const A* factor, T* values, Stream);

constexpr int kMostClasses = 256;

// Classes that the soft IoU is of, by value: a kernel's parameters.
struct ClassList {
  int count;
  int16_t ids[kMostClasses];
};

template <typename T, typename A>
struct SoftIouLoss {
  PixelMap map;
  const T* logits;
  LabelSource<A> labels;
  ClassList classes;
  bool per_image;
  double smooth_numerator, smooth_denominator;
  const A* weight;       // [classes] or null
  bool mean;             // over rows and classes
  double *parts, *sums;  // scratch [chunks][classes][3]; (rows, classes, 2)
  T* slopes;             // of two channels, or null
  uint8_t* bytes;        // labels, 255 where ignored, or null
};

// losses: (rows, classes), or one value if reduced; in double where A is.
template <typename T, typename A>
void soft_iou(const SoftIouLoss<T, A>&, bool reduced, A* losses, Stream);

// From the logits and labels, or from the slopes of two channels where they are not null; slopes:
// scratch (rows, channels, 2).
template <typename T, typename A>
void soft_iou_backward(const SoftIouLoss<T, A>&, const A* upstream, bool each, A* slopes,
                       T* gradient, Stream);

}  // namespace colorseg::cuda

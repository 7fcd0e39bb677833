// The torch-free CPU kernels: one table of function pointers per element type and instruction set.
//
// A kernel sees a piece of a feature map that fits in the cache, never a tensor.  The plain loops
// in the headers beside this one are compiled once for each instruction set (scalar.cpp, avx2.cpp,
// avx512.cpp) and vectorised by the compiler; dispatch.cpp picks the table once.  avx512_bf16.cpp
// adds what has no plain loop.
#pragma once
#include <cstdint>

#include "geometry.h"
#include "pixel_kernels.h"

namespace colorseg::cpu {

constexpr int64_t kLanes = 64;  // values that a kernel treats side by side: 4 AVX-512 registers

// `pixels` x `channels` interleaved values: lines of a channels_last map, or of one plane (channels
// = 1).
struct Run {
  int64_t pixels, channels;
};

// `rows` lines of `width` pixels of the smaller map of a 2x2 resampling; the larger map has lines
// of `full_width` pixels (2 * width, or one more where a max-pool drops the last column).
struct Tile {
  int64_t rows, width, channels, full_width;
};

// (x - center) * scale + offset, an entry per interleaved channel: keeps its digits when |mean| >>
// deviation.
template <typename T>
struct Affine {
  const T *center, *scale, *offset;
};

// Logits of consecutive pixels of one image: `channels` values per pixel.
template <typename T>
struct Logits {
  const T* data;
  int64_t channels, channel_stride, pixel_stride;
};

// What color_cross_entropy adds up over its pixels.
struct CrossEntropySums {
  double loss, weight;
  int64_t valid, correct;
};

// Per-class weights [channels] (null: all 1), their sum, and the label smoothing.
template <typename T>
struct ClassWeights {
  const T* weight;
  T total, smoothing;
};

// The RGB values of pixels, and the palette over whose `neighbors` nearest colors a target is
// spread, in shares proportional to exp(squared distance * falloff); with 0 the labels say all.
template <typename T>
struct SoftTargets {
  const T *red, *green, *blue, *palette;
  int64_t neighbors;
  T falloff;
};

// dL/d(loss of a pixel): an entry per pixel, or the same for all where `each` is null.
template <typename T>
struct PixelGradient {
  const T* each;
  T common;
};

// soft_iou_sums of two channels from ready labels, as Isa's labels_from_* take them; returns what
// those return.  slopes may be null and has the pixels' stride.
template <typename T, typename Label>
using TwoClassSums = int64_t (*)(Logits<T>, int64_t pixels, const Label* target, int64_t ignore,
                                 const int64_t* classes, int64_t selected, double* sums, T* slopes);

template <typename T>
struct Kernels {
  // 2x2 resampling
  void (*maxpool2)(Tile, const T* full, T* pooled, int32_t* argmax);
  void (*maxpool2_backward)(Tile, const T* grad_pooled, const int32_t* argmax, T* grad_full);
  void (*upsample2)(Tile, const T* x, T* full);
  void (*upsample2_backward)(Tile, const T* grad_full, T* grad);

  // per-channel arithmetic; sums are [channels]
  void (*moments)(Run, const T* x, double* mean, double* m2);
  void (*affine_relu)(Run, const T* x, Affine<T>, bool relu, T* y);
  // g = grad where the affine's value is positive (or everywhere without relu):
  // sums of g and of g * (x - center)
  void (*backward_sums)(Run, const T* grad, const T* x, Affine<T>, bool relu, double* sum_g,
                        double* sum_gx);
  // grad_x = out.scale * g, and with statistics + out.center * (x - center) + out.offset
  void (*backward_apply)(Run, const T* grad, const T* x, Affine<T>, bool relu, Affine<T> out,
                         bool statistics, T* grad_x);

  void (*add_relu)(int64_t count, const T* residual, bool relu, T* y);  // y <- relu(y + residual)
  void (*relu_backward)(int64_t count, const T* grad, const T* y, T* passed);  // y: the ReLU's

  void (*nearest_color)(int64_t pixels, const T* red, const T* green, const T* blue,
                        const T* palette, int64_t colors, int32_t* labels);
  void (*nearest_color_bytes)(int64_t pixels, const uint8_t* red, const uint8_t* green,
                              const uint8_t* blue, const T* palette, int64_t colors,
                              int32_t* labels);

  // losses over `pixels` of one image; labels are -1 where ignored; scratch is [2 * channels *
  // kLanes], for the cross-entropy 3
  // loss, argmax and grad may be null; grad is dL/d(logits) if dL/d(loss of a pixel) is `common`,
  // written past the caches with `streams`
  CrossEntropySums (*cross_entropy)(Logits<T>, int64_t pixels, const int32_t* labels,
                                    ClassWeights<T>, SoftTargets<T>, T* scratch, T* log_sum_exp,
                                    T* loss, int64_t* argmax, T common, T* grad, bool streams);
  void (*cross_entropy_backward)(Logits<T>, int64_t pixels, const int32_t* labels, ClassWeights<T>,
                                 SoftTargets<T>, const T* log_sum_exp, PixelGradient<T>, T* scratch,
                                 T* grad);
  void (*scale)(int64_t count, T factor, T* values);  // in place
  // sums is [selected][3]: intersection, probability, target; scratch additionally [2 * selected *
  // kLanes]
  void (*soft_iou_sums)(Logits<T>, int64_t pixels, const int32_t* labels, const int64_t* classes,
                        int64_t selected, T* scratch, double* sums);
  TwoClassSums<T, int64_t> soft_iou_sums_of_int64;
  TwoClassSums<T, uint8_t> soft_iou_sums_of_uint8;
  // inside, outside: dL/d(probability) of a selected class where it is, and where it is not, the
  // target
  void (*soft_iou_backward)(Logits<T>, int64_t pixels, const int32_t* labels,
                            const int64_t* classes, int64_t selected, const T* inside,
                            const T* outside, T* scratch, T* grad);
  // the same of two channels, from the slopes that are in the first channel of grad
  void (*soft_iou_backward_in_place)(Logits<T> like, int64_t pixels, const int64_t* classes,
                                     int64_t selected, const T* inside, const T* outside, T* grad);
};

// Convolutions on flat maps, see geometry.h, in float32.
struct ConvKernels {
  // the weight of (out, in, k) lies at out * out_stride + in * in_stride + k
  void (*pack_weights)(const float* weight, int64_t out_channels, int64_t out_stride,
                       int64_t in_channels, int64_t in_stride, const TapTable&, float* packed);
  void (*multiply)(const FlatMap& in, const TapTable&, const float* packed, const float* bias,
                   bool bias_once, int64_t positions, const FlatMap& out);
  void (*pack_winograd)(const float* weight, int64_t out_channels, int64_t out_stride,
                        int64_t in_channels, int64_t in_stride, bool flipped, float* packed);
  int64_t (*winograd_scratch)(int64_t in_channels);
  // reads patches that begin at a position of each 2 x 2 square of `squares` + patch
  void (*winograd)(const FlatMap& in, int64_t patch, const Runs& squares, const float* packed,
                   const float* bias, const FlatMap& out, float* scratch);
  // weight gradients: correlate adds to partial sums, which finish turns into the gradient
  int64_t (*correlation_size)(int64_t a_channels, int64_t b_channels, const std::vector<TapGroup>&);
  void (*correlate)(const FlatMap& a, const FlatMap& b, const std::vector<TapGroup>&,
                    int64_t positions, float* partial);
  void (*finish_correlation)(int64_t a_channels, int64_t b_channels, const std::vector<TapGroup>&,
                             const float* partial, float* gradient, int64_t a_stride,
                             int64_t b_stride);
  // sum[i] = the sum in double of chunks, [chunks][count], for i from first to last
  void (*sum_chunks)(const float* of_chunks, int64_t chunks, int64_t count, int64_t first,
                     int64_t last, float* sum);
  // weight gradients through Winograd's products; patch: of x, squares: as of winograd
  int64_t (*winograd_correlation_size)(int64_t y_channels, int64_t x_channels);
  int64_t (*winograd_correlation_scratch)(int64_t channels);  // of both maps
  void (*winograd_correlate)(const FlatMap& y, const FlatMap& x, int64_t patch, const Runs& squares,
                             float* partial, float* scratch);
  void (*finish_winograd_correlation)(int64_t y_channels, int64_t x_channels, const float* partial,
                                      float* gradient, int64_t y_stride, int64_t x_stride);
  void (*place)(const float* from, int64_t height, int64_t width, int64_t first, int64_t last,
                const Activation&, const Lines& to);
  void (*collect)(const Lines& from, int64_t height, int64_t width, bool box, float* to);
  void (*collect_pooled)(const Lines& from, int64_t height, int64_t width, float* to);
  void (*box_sums)(const float* from, int64_t height, int64_t width, int64_t first, int64_t last,
                   float* to);
  void (*add)(int64_t count, const float* x, float* y);  // y += x
  double (*sum)(int64_t count, const float* x);
};

// Lines of `width` values, `pitch` apart.
struct Rows {
  const float* data;
  int64_t height, width, pitch;
};

// What convolutions in bfloat16 need besides.  A position holds a pair of channels, as 32 bits that
// travel as a float: the even channel in the lower half.  An odd channel at the end has a partner
// of zeros (null).  Sums are float32.
struct PairKernels {
  bool (*supported)();  // beside the instruction set of its name
  // ConvKernels::multiply; `packed` is what its pack_weights makes of pairs of weights
  void (*multiply)(const FlatMap& in, const TapTable&, const float* packed, const float* bias,
                   bool bias_once, int64_t positions, const FlatMap& out);
  // both round to nearest even; lines of `from` are `pitch` apart, those of the result dense
  void (*join)(const Rows& from, const float* odd, const Activation& of_even,
               const Activation& of_odd, float* pairs);
  void (*join_halves)(int64_t count, const uint16_t* even, const uint16_t* odd, float* pairs);
  void (*narrow)(const Rows& from, const Activation&, uint16_t* y);
};

struct Isa {
  const char* name;
  bool (*supported)();
  int64_t (*peak_fma)(int64_t rounds, float* result);  // operations done, see peak.h
  // a max-pool's argmax, 2 bits per value, and back
  void (*pack_codes)(int64_t count, const int32_t* codes, uint8_t* packed);
  void (*unpack_codes)(int64_t count, const uint8_t* packed, int32_t* codes);
  // int32 labels from ready ones, -1 where label == ignore; returns how many others are outside 0
  // .. classes - 1
  int64_t (*labels_from_int64)(int64_t pixels, const int64_t* target, int64_t classes,
                               int64_t ignore, int32_t* labels);
  int64_t (*labels_from_uint8)(int64_t pixels, const uint8_t* target, int64_t classes,
                               int64_t ignore, int32_t* labels);
  void (*labels_to_uint8)(int64_t pixels, const int32_t* labels, uint8_t* bytes);  // -1 is 255
  ConvKernels conv;
  PixelKernels pixels;
  Kernels<float> f32;
  Kernels<double> f64;
};

extern const Isa scalar_isa;
#if defined(__x86_64__)
extern const Isa avx2_isa, avx512_isa;
extern const PairKernels avx512_bf16_pairs;
#endif

const Isa& isa();  // the one in use: the widest that this machine has, or COLORSEG_CPU_ISA

const PairKernels* pair_kernels();  // null where the instruction set in use has none

template <typename T>
const Kernels<T>& kernels();
template <>
inline const Kernels<float>& kernels<float>() {
  return isa().f32;
}
template <>
inline const Kernels<double>& kernels<double>() {
  return isa().f64;
}

}  // namespace colorseg::cpu

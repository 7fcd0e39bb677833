// The library's own convolution: cuts the batch into pieces, runs them on torch's threads.
//
// A piece is some small images or a band of lines of a large one; its flat maps
// (kernels/geometry.h) stay in the cache of one thread from the placing of x to what the caller
// does with the result.
#pragma once
#include <array>
#include <vector>

#include "conv_scratch.h"

namespace colorseg::cpu {

// A function that lives at least as long as the call it is passed to; unlike std::function it never
// allocates.
template <typename Signature>
class FunctionRef;
template <typename Result, typename... Arguments>
class FunctionRef<Result(Arguments...)> {
 public:
  template <typename F>
  FunctionRef(const F& f)
      : object_(&f), call_([](const void* object, Arguments... arguments) -> Result {
          return (*static_cast<const F*>(object))(arguments...);
        }) {}
  Result operator()(Arguments... arguments) const { return call_(object_, arguments...); }

 private:
  const void* object_;
  Result (*call_)(const void*, Arguments...);
};

// One of the inputs that are convolved side by side: (n, channels, height, width), dense.
struct Source {
  const float* data = nullptr;
  int64_t channels = 0;
  const float *center = nullptr, *scale = nullptr, *offset = nullptr;  // [channels] or null
  bool relu = false;
  Activation activation(int64_t c) const {
    if (scale == nullptr) return {0, 1, 0, false, relu};
    return {center ? center[c] : 0.0f, scale[c], offset[c], true, relu};
  }
};
using Sources = std::array<Source, 2>;

// The result of one piece, before it leaves the cache.
class PieceResult {
 public:
  PieceResult(const ConvPlan& plan, const Piece& piece, const FlatMap& map, bool of_x);
  // The lines [line(), line() + lines()) of one channel, of image piece.image + i.
  void collect(int64_t i, int64_t channel, float* to) const;
  // Where these lines lie, if the map has no phases.
  bool in_place() const { return step_ == 1; }
  Rows rows(int64_t i, int64_t channel) const;
  // Their first `lines` behind a 2x2 max-pool.
  void collect_pooled(int64_t i, int64_t channel, int64_t lines, ConvScratch& s, float* to) const;
  // The lines that a result of `height` lines keeps of them: all, or behind a 2x2 max-pool those
  // whose pairs end here.
  struct Kept {
    int64_t first, count;
  };
  Kept kept(bool pool, int64_t height) const {
    if (!pool) return {line_, lines_};
    return {line_ / 2, std::min((line_ + lines_) / 2, height) - line_ / 2};
  }
  int64_t line() const { return line_; }
  int64_t lines() const { return lines_; }
  int64_t width() const { return width_; }

 private:
  const ConvPlan& plan_;
  const Piece& piece_;
  const FlatMap& map_;
  bool box_;
  int64_t step_, line_, lines_, width_;
};

using Finish = FunctionRef<void(const Piece&, const PieceResult&, ConvScratch&)>;

// Weights as the products read them.
std::vector<float> pack_forward(const ConvPlan& plan, const float* weight);

// bias: [y_channels] or null; finish is called once for each piece, by several threads.
void convolve(const ConvPlan& plan, const Sources& sources, const float* packed, const float* bias,
              const Finish& finish);

using NextPiece = FunctionRef<int64_t()>;

// The same on the calling thread alone, for the pieces that next() returns until it is negative.
void convolve_pieces(const ConvPlan& plan, const Sources& sources, const float* packed,
                     const float* bias, const Finish& finish, NextPiece next);

// The lines [first, last) of the gradient of one channel of y, of image n; the result points at
// line 0.
using GradientLines =
    FunctionRef<const float*(int64_t n, int64_t c, int64_t first, int64_t last, ConvScratch&)>;

struct ConvBackward {
  int64_t x_channels;  // of the data gradient that finish gets: the first ones, may be 0
  float* grad_weight;  // or null
  double* grad_bias;   // [y_channels] or null
};

void convolve_backward(const ConvPlan& plan, const Sources& sources, const float* weight,
                       const GradientLines& gradient, const ConvBackward& wanted,
                       const Finish& finish);

}  // namespace colorseg::cpu

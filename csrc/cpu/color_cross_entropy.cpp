// One pass over the logits, which makes the gradient too if it will be wanted: a second pass would
// read them and compute the exponentials again.
#include "../color_cross_entropy.h"

#include "block.h"
#include "pixels.h"

namespace colorseg::cpu {
namespace {

// Class weights in the dtype of the logits, kept alive for the kernels.
template <typename T>
struct Weights {
  std::vector<T> values;
  ClassWeights<T> view;
  Weights(const OptionalTensor& weight, int64_t channels, double smoothing) {
    double total = 0;
    for (double w : doubles_of(weight, channels, 1)) values.push_back(T(w)), total += w;
    view = {weight ? values.data() : nullptr, T(total), T(smoothing)};
  }
};

// What the kernels need for a chunk.
template <typename T>
class ChunkScratch {
 public:
  ChunkScratch(const PixelShape& s, const SoftOptions& soft)
      : tiles_(3 * s.channels * kLanes), rgb_(soft.neighbors ? 3 * kChunkPixels : 0) {}
  T* tiles() const { return tiles_.get(); }
  T* rgb() const { return rgb_.get(); }

 private:
  PixelScratch<T> tiles_, rgb_;
};

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Null pointers: not wanted.
template <typename T>
struct PerPixel {
  T *log_sum_exp, *loss;
  int64_t* argmax;
};

template <typename T>
CrossEntropySums run_forward(const Tensor& logits, bool channels_last, LabelSource<T>& source,
                             const PixelShape& s, const ClassWeights<T>& weights,
                             const SoftOptions& soft, const PerPixel<T>& out, T common,
                             T* gradient) {
  std::vector<CrossEntropySums> parts(chunk_count(s));
  const T* z = logits.const_data_ptr<T>();
  for_each_chunk(s, [&](const Chunk& chunk) {
    int32_t labels[kChunkPixels];
    const ChunkScratch<T> scratch(s, soft);
    const auto view = logits_at(z, s, channels_last, chunk);
    const int64_t at = chunk.n * s.pixels() + chunk.first;
    source.fill(chunk, labels);
    parts[chunk.index] = kernels<T>().cross_entropy(
        view, chunk.count, labels, weights, source.soft_targets(chunk, soft, scratch.rgb()),
        scratch.tiles(), out.log_sum_exp + at, out.loss ? out.loss + at : nullptr,
        out.argmax ? out.argmax + at : nullptr, common,
        gradient ? gradient + (view.data - z) : nullptr,
        beyond_caches(s.n * s.channels * s.pixels() * sizeof(T)));
  });
  source.throw_if_out_of_range();
  CrossEntropySums sums{0, 0, 0, 0};
  for (const CrossEntropySums& part : parts) {
    sums.loss += part.loss, sums.weight += part.weight, sums.valid += part.valid,
        sums.correct += part.correct;
  }
  return sums;
}

template <typename T>
void scale(Tensor& x, T factor) {
  if (factor == T(1)) return;
  T* values = x.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, x.numel(), 16384, [&](int64_t begin, int64_t end) {
    kernels<T>().scale(end - begin, factor, values + begin);
  });
}

Outputs color_cross_entropy(const Tensor& logits_, const Tensor& target,
                            const OptionalTensor& palette, const OptionalTensor& weight,
                            int64_t ignore_index, double label_smoothing, int64_t soft_neighbors,
                            double soft_sigma, const std::string& reduction_, bool return_stats,
                            bool with_gradient) {
  const SoftOptions soft{soft_neighbors, soft_sigma};
  const PixelShape s =
      check_color_cross_entropy(logits_, target, palette, weight, label_smoothing, soft);
  const Reduction reduction = reduction_from(reduction_);
  const bool channels_last = is_channels_last(logits_), each = reduction == Reduction::kNone;
  COLORSEG_CHECK(!(with_gradient && each),
                 "with_gradient needs a scalar loss: reduction mean or sum, got none");
  const Tensor logits = dense(logits_, channels_last);
  const Ints sizes{s.n, s.height, s.width};
  const ScalarType dtype = logits.scalar_type();
  Tensor per_pixel = new_tensor(logits, each ? sizes : Ints{0}, dtype);
  Tensor log_sum_exp = new_tensor(logits, sizes, dtype);
  Tensor argmax = new_tensor(logits, return_stats ? sizes : Ints{0}, ScalarType::Long);
  Tensor gradient =
      with_gradient ? new_tensor(logits, {s.n, s.channels, s.height, s.width}, dtype, channels_last)
                    : nothing(logits);
  CrossEntropySums sums;
  dispatch_dtype(logits, "color_cross_entropy", [&](auto zero) {
    using T = decltype(zero);
    LabelSource<T> source(target, palette, s, ignore_index);
    const Weights<T> weights(weight, s.channels, label_smoothing);
    const PerPixel<T> out{log_sum_exp.mutable_data_ptr<T>(),
                          each ? per_pixel.mutable_data_ptr<T>() : nullptr,
                          return_stats ? argmax.mutable_data_ptr<int64_t>() : nullptr};
    // a mean's divisor before it is known: right unless there are weights or ignored pixels
    const double guess = reduction == Reduction::kMean ? double(s.n * s.pixels()) : 1;
    sums = run_forward<T>(logits, channels_last, source, s, weights.view, soft, out, T(1 / guess),
                          with_gradient ? gradient.mutable_data_ptr<T>() : nullptr);
    if (with_gradient && reduction == Reduction::kMean && sums.valid > 0)
      scale(gradient, T(guess / sums.weight));
  });
  const double mean =
      sums.valid == 0 ? 0 : sums.loss / sums.weight;  // all ignored: 0, where torch gives NaN
  const Tensor total = scalar_of(logits, reduction == Reduction::kMean ? mean : sums.loss, dtype);
  return {each ? per_pixel : total,
          log_sum_exp,
          scalar_of(logits, sums.weight, ScalarType::Double),
          argmax,
          scalar_of(logits, double(sums.correct), ScalarType::Long),
          scalar_of(logits, double(sums.valid), ScalarType::Long),
          gradient};
}

Tensor color_cross_entropy_backward(const Tensor& grad_loss_, const Tensor& logits_,
                                    const Tensor& target, const OptionalTensor& palette,
                                    const OptionalTensor& weight, const Tensor& log_sum_exp,
                                    const Tensor& normalizer, int64_t ignore_index,
                                    double label_smoothing, int64_t soft_neighbors,
                                    double soft_sigma, const std::string& reduction_) {
  const SoftOptions soft{soft_neighbors, soft_sigma};
  const PixelShape s =
      check_color_cross_entropy(logits_, target, palette, weight, label_smoothing, soft);
  const Reduction reduction = reduction_from(reduction_);
  const bool channels_last = is_channels_last(logits_), each = reduction == Reduction::kNone;
  const Tensor logits = dense(logits_, channels_last), grad_loss = dense(grad_loss_, false);
  Tensor grad =
      new_tensor(logits, {s.n, s.channels, s.height, s.width}, logits.scalar_type(), channels_last);
  const double divisor = reduction == Reduction::kMean ? *normalizer.const_data_ptr<double>() : 1;
  dispatch_dtype(logits, "color_cross_entropy_backward", [&](auto zero) {
    using T = decltype(zero);
    LabelSource<T> source(target, palette, s, ignore_index);
    const Weights<T> weights(weight, s.channels, label_smoothing);
    const auto* upstream = grad_loss.const_data_ptr<T>();
    const T common = each ? T(0) : T(*upstream / divisor);
    const auto* z = logits.const_data_ptr<T>();
    const auto* lse = log_sum_exp.const_data_ptr<T>();
    auto* out = grad.mutable_data_ptr<T>();
    for_each_chunk(s, [&](const Chunk& chunk) {
      int32_t labels[kChunkPixels];
      const ChunkScratch<T> scratch(s, soft);
      const int64_t at = chunk.n * s.pixels() + chunk.first;
      source.fill(chunk, labels);
      const auto view = logits_at(z, s, channels_last, chunk);
      kernels<T>().cross_entropy_backward(view, chunk.count, labels, weights.view,
                                          source.soft_targets(chunk, soft, scratch.rgb()), lse + at,
                                          {each ? upstream + at : nullptr, common}, scratch.tiles(),
                                          out + (view.data - z));
    });
    source.throw_if_out_of_range();
  });
  return grad;
}

// The gradient that the forward pass left, for any dL/d(loss); usually that is 1.
void color_cross_entropy_scale_(Tensor gradient, const Tensor& grad_loss) {
  dispatch_dtype(gradient, "color_cross_entropy_scale_", [&](auto zero) {
    using T = decltype(zero);
    scale(gradient, *grad_loss.const_data_ptr<T>());
  });
}

}  // namespace
}  // namespace colorseg::cpu

STABLE_TORCH_LIBRARY_IMPL(colorseg, CPU, m) {
  m.impl("color_cross_entropy", TORCH_BOX(&colorseg::cpu::color_cross_entropy));
  m.impl("color_cross_entropy_backward", TORCH_BOX(&colorseg::cpu::color_cross_entropy_backward));
  m.impl("color_cross_entropy_scale_", TORCH_BOX(&colorseg::cpu::color_cross_entropy_scale_));
}

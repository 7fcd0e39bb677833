// One pass over the logits forward, one backward; bound by one exponential per logit in each.
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

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename T>
CrossEntropySums run_forward(const Tensor& logits, bool channels_last, LabelSource<T>& source,
                             const PixelShape& s, const ClassWeights<T>& weights, T* log_sum_exp,
                             T* loss, int64_t* argmax) {
  std::vector<CrossEntropySums> parts(chunk_count(s));
  for_each_chunk(s, [&](const Chunk& chunk) {
    int32_t labels[kChunkPixels];
    std::vector<T> scratch(s.channels * kLanes);
    source.fill(chunk, labels);
    const int64_t at = chunk.n * s.pixels() + chunk.first;
    parts[chunk.index] = kernels<T>().cross_entropy(
        logits_at(logits.const_data_ptr<T>(), s, channels_last, chunk), chunk.count, labels,
        weights, scratch.data(), log_sum_exp + at, loss + at, argmax ? argmax + at : nullptr);
  });
  source.throw_if_out_of_range();
  CrossEntropySums sums{0, 0, 0, 0};
  for (const CrossEntropySums& part : parts) {
    sums.loss += part.loss, sums.weight += part.weight, sums.valid += part.valid,
        sums.correct += part.correct;
  }
  return sums;
}

Outputs color_cross_entropy(const Tensor& logits_, const Tensor& target,
                            const OptionalTensor& palette, const OptionalTensor& weight,
                            int64_t ignore_index, double label_smoothing,
                            const std::string& reduction_, bool return_stats) {
  const PixelShape s = check_color_cross_entropy(logits_, target, palette, weight, label_smoothing);
  const Reduction reduction = reduction_from(reduction_);
  const bool channels_last = is_channels_last(logits_);
  const Tensor logits = dense(logits_, channels_last);
  const Ints sizes{s.n, s.height, s.width};
  Tensor per_pixel = new_tensor(logits, sizes, logits.scalar_type()),
         log_sum_exp = new_tensor(logits, sizes, logits.scalar_type());
  Tensor argmax = new_tensor(logits, return_stats ? sizes : Ints{0}, ScalarType::Long);
  CrossEntropySums sums;
  dispatch_dtype(logits, "color_cross_entropy", [&](auto zero) {
    using T = decltype(zero);
    LabelSource<T> source(target, palette, s, ignore_index);
    const Weights<T> weights(weight, s.channels, label_smoothing);
    sums = run_forward<T>(logits, channels_last, source, s, weights.view,
                          log_sum_exp.mutable_data_ptr<T>(), per_pixel.mutable_data_ptr<T>(),
                          return_stats ? argmax.mutable_data_ptr<int64_t>() : nullptr);
  });
  const double mean =
      sums.valid == 0 ? 0 : sums.loss / sums.weight;  // all ignored: 0, where torch gives NaN
  const Tensor total =
      scalar_of(logits, reduction == Reduction::kMean ? mean : sums.loss, logits.scalar_type());
  return {reduction == Reduction::kNone ? per_pixel : total,
          log_sum_exp,
          scalar_of(logits, sums.weight, ScalarType::Double),
          argmax,
          scalar_of(logits, double(sums.correct), ScalarType::Long),
          scalar_of(logits, double(sums.valid), ScalarType::Long)};
}

// dL/d(loss of a pixel), for `count` pixels from `at` on.
template <typename T>
void pixel_gradient(Reduction reduction, const T* grad_loss, T common, int64_t at, int64_t count,
                    T* out) {
  for (int64_t i = 0; i < count; ++i)
    out[i] = reduction == Reduction::kNone ? grad_loss[at + i] : common;
}

Tensor color_cross_entropy_backward(const Tensor& grad_loss_, const Tensor& logits_,
                                    const Tensor& target, const OptionalTensor& palette,
                                    const OptionalTensor& weight, const Tensor& log_sum_exp,
                                    const Tensor& normalizer, int64_t ignore_index,
                                    double label_smoothing, const std::string& reduction_) {
  const PixelShape s = check_color_cross_entropy(logits_, target, palette, weight, label_smoothing);
  const Reduction reduction = reduction_from(reduction_);
  const bool channels_last = is_channels_last(logits_);
  const Tensor logits = dense(logits_, channels_last), grad_loss = dense(grad_loss_, false);
  Tensor grad =
      new_tensor(logits, {s.n, s.channels, s.height, s.width}, logits.scalar_type(), channels_last);
  const double divisor = reduction == Reduction::kMean ? *normalizer.const_data_ptr<double>() : 1;
  dispatch_dtype(logits, "color_cross_entropy_backward", [&](auto zero) {
    using T = decltype(zero);
    LabelSource<T> source(target, palette, s, ignore_index);
    const Weights<T> weights(weight, s.channels, label_smoothing);
    const auto* upstream = grad_loss.const_data_ptr<T>();
    const T common = reduction == Reduction::kNone ? T(0) : T(*upstream / divisor);
    const auto* z = logits.const_data_ptr<T>();
    const auto* lse = log_sum_exp.const_data_ptr<T>();
    auto* out = grad.mutable_data_ptr<T>();
    for_each_chunk(s, [&](const Chunk& chunk) {
      int32_t labels[kChunkPixels];
      T per_pixel[kChunkPixels];
      std::vector<T> scratch(s.channels * kLanes);
      const int64_t at = chunk.n * s.pixels() + chunk.first;
      source.fill(chunk, labels);
      pixel_gradient(reduction, upstream, common, at, chunk.count, per_pixel);
      const auto view = logits_at(z, s, channels_last, chunk);
      kernels<T>().cross_entropy_backward(view, chunk.count, labels, weights.view, lse + at,
                                          per_pixel, scratch.data(), out + (view.data - z));
    });
    source.throw_if_out_of_range();
  });
  return grad;
}

}  // namespace
}  // namespace colorseg::cpu

STABLE_TORCH_LIBRARY_IMPL(colorseg, CPU, m) {
  m.impl("color_cross_entropy", TORCH_BOX(&colorseg::cpu::color_cross_entropy));
  m.impl("color_cross_entropy_backward", TORCH_BOX(&colorseg::cpu::color_cross_entropy_backward));
}

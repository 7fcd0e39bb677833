// One pass over the logits for the sums.  For two classes it keeps the slopes of the sigmoid, in
// the memory of the gradient, and backward is bound by memory; for more a second pass computes the
// exponentials again.
#include "../soft_iou_loss.h"

#include "block.h"
#include "pixels.h"

namespace colorseg::cpu {
namespace {

// What backward reads: the labels as bytes, or for two classes the slopes, as the first channel of
// a map in the layout of the logits; null where not wanted.
template <typename T>
struct Kept {
  uint8_t* labels;
  T* slopes;
};

// Sums per image and selected class: intersection, probability, target.
template <typename T>
std::vector<double> class_sums(const Tensor& logits, bool channels_last, LabelSource<T>& source,
                               const PixelShape& s, const Ints& classes, const Kept<T>& kept) {
  const int64_t selected = static_cast<int64_t>(classes.size()), width = 3 * selected;
  std::vector<double> parts(chunk_count(s) * width), sums(s.n * width);
  const auto* z = logits.const_data_ptr<T>();
  for_each_chunk(s, [&](const Chunk& chunk) {
    const auto view = logits_at(z, s, channels_last, chunk);
    double* part = &parts[chunk.index * width];
    if (s.channels == 2) {
      T* slopes = kept.slopes ? kept.slopes + (view.data - z) : nullptr;
      return source.read(chunk, [&](const auto* target, int64_t ignored) {
        const auto add = of_labels(target, kernels<T>().soft_iou_sums_of_int64,
                                   kernels<T>().soft_iou_sums_of_uint8);
        return add(view, chunk.count, target, ignored, classes.data(), selected, part, slopes);
      });
    }
    int32_t labels[kChunkPixels];
    const PixelScratch<T> scratch((s.channels + 2 * selected) * kLanes);
    source.fill(chunk, labels);
    if (kept.labels)
      isa().labels_to_uint8(chunk.count, labels, kept.labels + chunk.n * s.pixels() + chunk.first);
    kernels<T>().soft_iou_sums(view, chunk.count, labels, classes.data(), selected, scratch.get(),
                               part);
  });
  source.throw_if_out_of_range();
  for (int64_t i = 0; i < chunk_count(s); ++i) {
    for (int64_t k = 0; k < width; ++k)
      sums[i / chunks_per_image(s) * width + k] += parts[i * width + k];
  }
  return sums;
}

// (images, classes, 2) of intersection and union; one image stands for the batch unless per_image.
Tensor intersection_and_union(const std::vector<double>& sums, const Tensor& like, int64_t n,
                              int64_t selected, bool per_image) {
  Tensor result = new_tensor(like, {per_image ? n : 1, selected, 2}, ScalarType::Double);
  double* out = result.mutable_data_ptr<double>();
  std::fill_n(out, result.numel(), 0.0);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < selected; ++k) {
      const double* part = &sums[(i * selected + k) * 3];
      double* to = out + ((per_image ? i : 0) * selected + k) * 2;
      to[0] += part[0];
      to[1] += part[1] + part[2] - part[0];
    }
  }
  return result;
}

// Weights with mean 1, so that "mean" is the mean and "sum" the sum of what "none" returns.
std::vector<double> normalized_weights(const SoftIouOptions& o) {
  std::vector<double> w = doubles_of(o.weight, static_cast<int64_t>(o.classes.size()), 1);
  double total = 0;
  for (double v : w) total += v;
  for (double& v : w) v *= double(w.size()) / total;
  return w;
}

SoftIou soft_iou_of(const Tensor& sums, int64_t index, const SoftIouOptions& o) {
  const double* part = sums.const_data_ptr<double>() + 2 * index;
  return soft_iou(part[0], part[1], o.smooth_numerator, o.smooth_denominator);
}

Tensor reduced_loss(const Tensor& sums, const SoftIouOptions& o, ScalarType dtype) {
  const std::vector<double> w = normalized_weights(o);
  const int64_t rows = sums.size(0), selected = sums.size(1);
  const bool each = o.reduction == Reduction::kNone;
  std::vector<double> values(each ? rows * selected : 0);
  double total = 0;
  for (int64_t i = 0; i < rows * selected; ++i) {
    const double value = w[i % selected] * soft_iou_of(sums, i, o).loss;
    total += value;
    if (each) values[i] = value;
  }
  if (each)
    return tensor_of(values.data(), o.per_image ? Ints{rows, selected} : Ints{selected}, sums,
                     dtype);
  return scalar_of(sums, o.reduction == Reduction::kMean ? total / double(rows * selected) : total,
                   dtype);
}

Tensor first_channel(const Tensor& map) { return torch::stable::select(map, 1, 0); }

std::tuple<Tensor, Tensor, Tensor> soft_iou_loss(const Tensor& logits_, const Tensor& target,
                                                 const Ints& classes, bool per_image,
                                                 double smooth_numerator, double smooth_denominator,
                                                 std::optional<int64_t> ignore_index,
                                                 const OptionalTensor& weight,
                                                 const std::string& reduction, bool keep) {
  const SoftIouOptions o{classes,      per_image, smooth_numerator,         smooth_denominator,
                         ignore_index, weight,    reduction_from(reduction)};
  const PixelShape s = check_soft_iou_loss(logits_, target, o);
  const bool channels_last = is_channels_last(logits_);
  COLORSEG_CHECK(!keep || s.channels <= 255, "keep needs at most 255 channels, got ", s.channels);
  const Tensor logits = dense(logits_, channels_last);
  const bool two = s.channels == 2;
  const Tensor kept = keep && two
                          ? first_channel(new_tensor(logits, {s.n, 2, s.height, s.width},
                                                     logits.scalar_type(), channels_last))
                          : new_tensor(logits, keep ? Ints{s.n, s.height, s.width} : Ints{0},
                                       two ? logits.scalar_type() : ScalarType::Byte);
  std::vector<double> of_images;
  dispatch_dtype(logits, "soft_iou_loss", [&](auto zero) {
    using T = decltype(zero);
    LabelSource<T> source(target, {}, s, ignore_index);
    const Kept<T> to{keep && !two ? kept.mutable_data_ptr<uint8_t>() : nullptr,
                     keep && two ? kept.mutable_data_ptr<T>() : nullptr};
    of_images = class_sums(logits, channels_last, source, s, classes, to);
  });
  const Tensor sums = intersection_and_union(of_images, logits, s.n,
                                             static_cast<int64_t>(classes.size()), per_image);
  return {reduced_loss(sums, o, logits.scalar_type()), sums, kept};
}

// dL/d(probability) per image and class where it is (inside) and where it is not (outside) the
// target.
template <typename T>
struct Slopes {
  std::vector<T> inside, outside;
  Slopes(const Tensor& grad_loss, const Tensor& sums, const SoftIouOptions& o) {
    const std::vector<double> w = normalized_weights(o);
    const int64_t count = sums.size(0) * sums.size(1);
    const T* upstream = grad_loss.const_data_ptr<T>();
    for (int64_t i = 0; i < count; ++i) {
      const double share = o.reduction == Reduction::kMean ? 1.0 / double(count) : 1;
      const double g =
          double(upstream[o.reduction == Reduction::kNone ? i : 0]) * share * w[i % w.size()];
      const SoftIou iou = soft_iou_of(sums, i, o);
      inside.push_back(T(g * iou.inside));
      outside.push_back(T(g * iou.outside));
    }
  }
};

// The gradient of two classes in the place of the slopes that the forward pass kept.
template <typename T>
void backward_in_place(const PixelShape& s, bool channels_last, const Ints& classes, bool per_image,
                       const Slopes<T>& slopes, T* grad) {
  const int64_t selected = static_cast<int64_t>(classes.size());
  for_each_chunk(s, [&](const Chunk& chunk) {
    const int64_t row = per_image ? chunk.n * selected : 0;
    const auto view = logits_at<T>(grad, s, channels_last, chunk);
    kernels<T>().soft_iou_backward_in_place(view, chunk.count, classes.data(), selected,
                                            &slopes.inside[row], &slopes.outside[row],
                                            grad + (view.data - grad));
  });
}

template <typename T>
void backward_from_logits(const PixelShape& s, const Tensor& logits, bool channels_last,
                          LabelSource<T>& source, const Ints& classes, bool per_image,
                          const Slopes<T>& slopes, T* grad) {
  const int64_t selected = static_cast<int64_t>(classes.size());
  const auto* z = logits.const_data_ptr<T>();
  for_each_chunk(s, [&](const Chunk& chunk) {
    int32_t labels[kChunkPixels];
    const PixelScratch<T> scratch(2 * s.channels * kLanes);
    const int64_t row = per_image ? chunk.n * selected : 0;
    const auto view = logits_at(z, s, channels_last, chunk);
    source.fill(chunk, labels);
    kernels<T>().soft_iou_backward(view, chunk.count, labels, classes.data(), selected,
                                   &slopes.inside[row], &slopes.outside[row], scratch.get(),
                                   grad + (view.data - z));
  });
  source.throw_if_out_of_range();
}

Tensor soft_iou_loss_backward(const Tensor& grad_loss, const Tensor& logits_, const Tensor& target,
                              const Tensor& sums, const Ints& classes, bool per_image,
                              double smooth_numerator, double smooth_denominator,
                              std::optional<int64_t> ignore_index, const OptionalTensor& weight,
                              const std::string& reduction) {
  const SoftIouOptions o{classes,      per_image, smooth_numerator,         smooth_denominator,
                         ignore_index, weight,    reduction_from(reduction)};
  const PixelShape s = check_soft_iou_loss(logits_, target, o, true);
  const bool channels_last = is_channels_last(logits_);
  Tensor grad = new_tensor(logits_, {s.n, s.channels, s.height, s.width}, logits_.scalar_type(),
                           channels_last);
  dispatch_dtype(logits_, "soft_iou_loss_backward", [&](auto zero) {
    using T = decltype(zero);
    const Slopes<T> slopes(dense(grad_loss, false), sums, o);
    T* to = grad.mutable_data_ptr<T>();
    if (s.channels == 2 && holds_slopes(target, logits_)) {
      Tensor first = first_channel(grad);
      torch::stable::copy_(first, target);
      return backward_in_place(s, channels_last, classes, per_image, slopes, to);
    }
    LabelSource<T> source(target, {}, s, ignore_index);
    backward_from_logits(s, dense(logits_, channels_last), channels_last, source, classes,
                         per_image, slopes, to);
  });
  return grad;
}

void soft_iou_loss_backward_(Tensor gradient, const Tensor& grad_loss, const Tensor& sums,
                             const Ints& classes, bool per_image, double smooth_numerator,
                             double smooth_denominator, const OptionalTensor& weight,
                             const std::string& reduction) {
  const SoftIouOptions o{classes,      per_image, smooth_numerator,         smooth_denominator,
                         std::nullopt, weight,    reduction_from(reduction)};
  const PixelShape s = check_logits(gradient);
  const bool channels_last = is_channels_last(gradient);
  COLORSEG_CHECK(s.channels == 2 && (channels_last || gradient.is_contiguous()),
                 "the gradient must be a dense map of two channels");
  dispatch_dtype(gradient, "soft_iou_loss_backward_", [&](auto zero) {
    using T = decltype(zero);
    const Slopes<T> slopes(dense(grad_loss, false), sums, o);
    backward_in_place(s, channels_last, classes, per_image, slopes, gradient.mutable_data_ptr<T>());
  });
}

}  // namespace
}  // namespace colorseg::cpu

STABLE_TORCH_LIBRARY_IMPL(colorseg, CPU, m) {
  m.impl("soft_iou_loss", TORCH_BOX(&colorseg::cpu::soft_iou_loss));
  m.impl("soft_iou_loss_backward", TORCH_BOX(&colorseg::cpu::soft_iou_loss_backward));
  m.impl("soft_iou_loss_backward_", TORCH_BOX(&colorseg::cpu::soft_iou_loss_backward_));
}

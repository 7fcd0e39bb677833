// The weight gradient of a convolution, chunk by chunk of a batch.
#pragma once
#include <algorithm>

#include "convolve.h"

namespace colorseg::cpu {

// Pieces whose weight gradients are added up one after the other; their sums are added up in
// double. The number depends on shapes alone, so that results do not depend on the number of
// threads.
inline int64_t chunk_count(const ConvPlan& p) {
  constexpr int64_t kLeast = 8, kMost = 32, kPieces = 6;
  return std::min(p.pieces, std::clamp(p.pieces / kPieces, kLeast, kMost));
}

// The weight gradient of one chunk.
class Correlation {
 public:
  explicit Correlation(const ConvPlan& p)
      : plan_(p),
        swapped_(p.geometry.x_phases() < p.geometry.y_phases()),
        groups_(correlate_groups(p.geometry, swapped_, p.length)),
        size_(p.winograd ? isa().conv.winograd_correlation_size(a_channels(), b_channels())
                         : isa().conv.correlation_size(a_channels(), b_channels(), groups_)) {}

  void start(ConvScratch& s) const {
    s.partial.resize(std::max<size_t>(s.partial.size(), size_));
    std::fill_n(s.partial.begin(), size_, 0.0f);
  }

  void add(int64_t rows, ConvScratch& s) const {
    if (plan_.winograd)
      return isa().conv.winograd_correlate(s.y, s.x, plan_.patch(false), plan_.squares(rows),
                                           s.partial.data(), s.winograd);
    isa().conv.correlate(swapped_ ? s.x : s.y, swapped_ ? s.y : s.x, groups_,
                         plan_.geometry.positions(rows), s.partial.data());
  }

  void finish(const ConvScratch& s, float* gradient) const {
    if (plan_.winograd)
      return isa().conv.finish_winograd_correlation(a_channels(), b_channels(), s.partial.data(),
                                                    gradient, plan_.out_stride, plan_.in_stride);
    isa().conv.finish_correlation(a_channels(), b_channels(), groups_, s.partial.data(), gradient,
                                  swapped_ ? plan_.in_stride : plan_.out_stride,
                                  swapped_ ? plan_.out_stride : plan_.in_stride);
  }

 private:
  int64_t a_channels() const { return swapped_ ? plan_.x_channels : plan_.y_channels; }
  int64_t b_channels() const { return swapped_ ? plan_.y_channels : plan_.x_channels; }

  const ConvPlan& plan_;
  bool swapped_;
  std::vector<TapGroup> groups_;
  int64_t size_;
};

}  // namespace colorseg::cpu

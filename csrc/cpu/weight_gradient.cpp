#include "weight_gradient.h"

#include <algorithm>

#include "pixel_conv2d.h"
#include "pixel_parts.h"

namespace colorseg::cpu {
namespace {

constexpr int64_t kLeastWeights = 1 << 15;  // of a tap: fewer do not pay for the copies into panels

// The numbers of the pixels of y and x that a tap connects.
struct Pairs {
  std::vector<int32_t> y, x;
};

Pairs pairs_of(const Tensor& y, const Tensor& x, int64_t i, int64_t j, const ConvOptions& o) {
  const Connected rows = connected_lines(y.size(2), x.size(2), i, 0, o);
  const Connected columns = connected_lines(y.size(3), x.size(3), j, 1, o);
  Pairs pairs;
  for (int64_t n = 0; n < y.size(0); ++n) {
    for (int64_t row = rows.first; row < rows.last; ++row) {
      const int64_t of_y = (n * y.size(2) + row) * y.size(3);
      const int64_t of_x = (n * x.size(2) + row + rows.shift) * x.size(3) + columns.shift;
      for (int64_t column = columns.first; column < columns.last; ++column) {
        pairs.y.push_back(static_cast<int32_t>(of_y + column));
        pairs.x.push_back(static_cast<int32_t>(of_x + column));
      }
    }
  }
  return pairs;
}

}  // namespace

bool gradient_by_taps(const Tensor& grad_y, const Tensor& x, const Tensor& weight,
                      const ConvOptions& o, bool channels_last) {
  return channels_last && fits_panels(x, weight, o) && grad_y.numel() > 0 &&
         weight.size(0) * weight.size(1) >= kLeastWeights &&
         std::max(x.numel() / x.size(1), grad_y.numel() / grad_y.size(1)) <= INT32_MAX;
}

Tensor weight_gradient_by_taps(const Tensor& grad_y, const Tensor& x, const Tensor& weight,
                               const ConvOptions& o) {
  const int64_t out = weight.size(0), in = weight.size(1), kernel_width = weight.size(3);
  const int64_t taps = weight.size(2) * kernel_width;
  Tensor grad = new_tensor(weight, sizes_of(weight), ScalarType::Float, true);
  auto* const to = grad.mutable_data_ptr<float>();
  const auto *of_y = grad_y.const_data_ptr<float>(), *of_x = x.const_data_ptr<float>();
  const int64_t panel = isa().pixels.panel, panels = out / panel;
  const int64_t parts = std::min(panels, static_cast<int64_t>(torch::stable::get_num_threads()));
  for (int64_t tap = 0; tap < taps; ++tap) {
    const Pairs pairs = pairs_of(grad_y, x, tap / kernel_width, tap % kernel_width, o);
    const WeightGradient g{of_y,
                           of_x,
                           out,
                           in,
                           static_cast<int64_t>(pairs.y.size()),
                           pairs.y.data(),
                           pairs.x.data(),
                           to + tap * in,
                           taps * in};
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * panels / parts * panel, last = end * panels / parts * panel;
      for (int64_t row = first; row < last; ++row)
        std::fill_n(g.out + row * g.out_stride, in, 0.0f);
      isa().pixels.gradient(g, first, last,
                            thread_scratch(isa().pixels.gradient_scratch(last - first)));
    });
  }
  return grad;
}

}  // namespace colorseg::cpu

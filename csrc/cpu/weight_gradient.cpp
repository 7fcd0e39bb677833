#include "weight_gradient.h"

#include <cstring>

namespace colorseg::cpu {
namespace {

constexpr double kMostLive = 0.75;  // of the products: else nine passes cost more than they spare
constexpr int64_t kThreadBytes = 1 << 17;  // less to copy than this is not worth waking a thread

// Along one axis, the lines of y that a tap connects with lines of x, which are `shift` further.
struct Live {
  int64_t first, count, shift;
};

Live live_lines(int64_t y_size, int64_t x_size, int64_t tap, int axis, const ConvOptions& o) {
  const int64_t shift = tap * o.dilation[axis] - o.padding[2 * axis];
  const int64_t first = std::max<int64_t>(0, -shift), last = std::min(y_size, x_size - shift);
  return {first, std::max<int64_t>(0, last - first), shift};
}

// What share of an axis's products meets a line of x.
double live_share(const Tensor& y, const Tensor& x, const Tensor& weight, int axis,
                  const ConvOptions& o) {
  const int64_t taps = weight.size(2 + axis), size = y.size(2 + axis);
  int64_t live = 0;
  for (int64_t t = 0; t < taps; ++t) live += live_lines(size, x.size(2 + axis), t, axis, o).count;
  return double(live) / double(taps * size);
}

// A window of a map as a matrix, [pixels, channels]: the map itself if it is all of it.
Tensor pixels_of(const Tensor& map, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  const int64_t n = map.size(0), channels = map.size(1), height = map.size(2), width = map.size(3);
  if (rows == height && columns == width) {
    Tensor lines = torch::stable::transpose(map, 1, 2);
    return torch::stable::reshape(torch::stable::transpose(lines, 2, 3),
                                  {n * height * width, channels});
  }
  Tensor matrix = new_tensor(map, {n * rows * columns, channels}, map.scalar_type());
  if (matrix.numel() == 0) return matrix;
  const int64_t pixel = map.element_size() * channels, line = pixel * columns;
  const auto* from = static_cast<const char*>(map.const_data_ptr());
  auto* to = static_cast<char*>(matrix.mutable_data_ptr());
  torch::stable::parallel_for(
      0, n * rows, kThreadBytes / line + 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t at = (i / rows * height + row + i % rows) * width + column;
          std::memcpy(to + i * line, from + at * pixel, line);
        }
      });
  return matrix;
}

}  // namespace

bool gradient_by_taps(const Tensor& grad_y, const Tensor& x, const Tensor& weight,
                      const ConvOptions& o, bool channels_last) {
  const bool wide = x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double;
  if (!channels_last || !wide || o.groups != 1 || o.transposed || o.stride[0] != 1 ||
      o.stride[1] != 1 || grad_y.numel() == 0 || x.size(1) * grad_y.size(1) < 4096)
    return false;
  const int64_t taps = weight.size(2) * weight.size(3);
  return taps == 1 ||
         live_share(grad_y, x, weight, 0, o) * live_share(grad_y, x, weight, 1, o) < kMostLive;
}

Tensor weight_gradient_by_taps(const Tensor& grad_y, const Tensor& x, const Tensor& weight,
                               const ConvOptions& o) {
  const auto of_tap = [&](int64_t i, int64_t j) {  // [out, in]; zeros where it connects no pixels
    const Live rows = live_lines(grad_y.size(2), x.size(2), i, 0, o);
    const Live columns = live_lines(grad_y.size(3), x.size(3), j, 1, o);
    const Tensor of_y = pixels_of(grad_y, rows.first, rows.count, columns.first, columns.count);
    const Tensor of_x = pixels_of(x, rows.first + rows.shift, rows.count,
                                  columns.first + columns.shift, columns.count);
    return torch::stable::matmul(torch::stable::transpose(of_y, 0, 1), of_x);
  };
  const int64_t kernel_width = weight.size(3), taps = weight.size(2) * kernel_width;
  if (taps == 1) return torch::stable::reshape(of_tap(0, 0), sizes_of(weight));
  Tensor grad = new_tensor(weight, sizes_of(weight), weight.scalar_type(), true);
  const int64_t line = grad.element_size() * weight.size(1);
  auto* to = static_cast<char*>(grad.mutable_data_ptr());
  for (int64_t tap = 0; tap < taps; ++tap) {
    const Tensor product = of_tap(tap / kernel_width, tap % kernel_width);
    const auto* from = static_cast<const char*>(product.const_data_ptr());
    for (int64_t c = 0; c < weight.size(0); ++c)
      std::memcpy(to + (c * taps + tap) * line, from + c * line, line);
  }
  return grad;
}

}  // namespace colorseg::cpu

// See kernels/nearest_color.cu.
#include "../nearest_color.h"

#include "device.h"

namespace colorseg::cuda {
namespace {

Tensor nearest_color(const Tensor& rgb, const Tensor& palette) {
  check_nearest_color(rgb, palette);
  const PixelMap map{rgb.size(0), palette.size(0), rgb.size(2) * rgb.size(3), false};
  check_grid(map);
  Tensor labels = new_tensor(rgb, {rgb.size(0), rgb.size(2), rgb.size(3)}, ScalarType::Long);
  const OnDevice device(rgb);
  const auto assign = [&](auto zero, ScalarType arithmetic) {
    using A = decltype(zero);
    const DeviceLabels<A> source(rgb, palette, arithmetic, std::nullopt);
    nearest_colors(map, source.source(), pointer<int64_t>(labels), device.stream());
  };
  if (rgb.scalar_type() == ScalarType::Double || palette.scalar_type() == ScalarType::Double) {
    assign(double(), ScalarType::Double);
  } else {
    assign(float(), ScalarType::Float);
  }
  return labels;
}

}  // namespace
}  // namespace colorseg::cuda

STABLE_TORCH_LIBRARY_IMPL(colorseg, COLORSEG_CUDA_KEY, m) {
  m.impl("nearest_color", TORCH_BOX(&colorseg::cuda::nearest_color));
}

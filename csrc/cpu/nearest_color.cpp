// One pass over the image: 3 values read and one label written per pixel, all distances in
// registers.
#include "../nearest_color.h"

#include "pixels.h"

namespace colorseg::cpu {
namespace {

template <typename T>
void assign(const Tensor& rgb, const Tensor& palette, const PixelShape& s, int64_t* out) {
  LabelSource<T> source(rgb, palette, s, std::nullopt);
  for_each_chunk(s, [&](const Chunk& chunk) {
    int32_t labels[kChunkPixels];
    source.fill(chunk, labels);
    std::copy_n(labels, chunk.count, out + chunk.n * s.pixels() + chunk.first);
  });
}

Tensor nearest_color(const Tensor& rgb, const Tensor& palette) {
  check_nearest_color(rgb, palette);
  const PixelShape s{rgb.size(0), palette.size(0), rgb.size(2), rgb.size(3)};
  Tensor labels = new_tensor(rgb, {s.n, s.height, s.width}, ScalarType::Long);
  int64_t* out = labels.mutable_data_ptr<int64_t>();
  if (rgb.scalar_type() == ScalarType::Double || palette.scalar_type() == ScalarType::Double) {
    assign<double>(rgb, palette, s, out);
  } else {
    assign<float>(rgb, palette, s, out);
  }
  return labels;
}

}  // namespace
}  // namespace colorseg::cpu

STABLE_TORCH_LIBRARY_IMPL(colorseg, CPU, m) {
  m.impl("nearest_color", TORCH_BOX(&colorseg::cpu::nearest_color));
}

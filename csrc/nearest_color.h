// Checks of the palette assignment, shared by every device.
#pragma once
#include "color_cross_entropy.h"

namespace colorseg {

inline void check_nearest_color(const Tensor& rgb, const Tensor& palette) {
  check_rgb(rgb);
  check_palette(palette);
  check_same_device("the palette", palette, rgb, "rgb");
}

}  // namespace colorseg

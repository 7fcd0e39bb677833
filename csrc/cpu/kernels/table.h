// Fills the table of kernels of one instruction set; COLORSEG_ISA names it and keeps its symbols
// apart.
#pragma once
#include "color_cross_entropy.h"
#include "correlate.h"
#include "nearest_color.h"
#include "normalize.h"
#include "peak.h"
#include "pixel_gradient.h"
#include "pixel_lattice.h"
#include "pixel_winograd.h"
#include "place.h"
#include "resample.h"
#include "soft_iou_loss.h"
#include "two_classes.h"
#include "winograd_gradient.h"

namespace colorseg::cpu::COLORSEG_ISA {

template <typename T>
constexpr Kernels<T> table() {
  return {maxpool2<T>,  // in the order of kernels.h
          maxpool2_backward<T>,
          upsample2<T>,
          upsample2_backward<T>,
          moments<T>,
          affine_relu<T>,
          backward_sums<T>,
          backward_apply<T>,
          add_relu<T>,
          relu_backward<T>,
          nearest_color<T>,
          nearest_color_bytes<T>,
          cross_entropy<T>,
          cross_entropy_backward<T>,
          scale<T>,
          soft_iou_sums<T>,
          soft_iou_sums_of_two<T, int64_t>,
          soft_iou_sums_of_two<T, uint8_t>,
          soft_iou_backward<T>,
          soft_iou_backward_in_place<T>};
}

constexpr ConvKernels conv_table() {
  return {pack_weights,
          multiply<Floats>,
          pack_winograd,
          winograd_scratch,
          winograd,
          correlation_size,
          correlate,
          finish_correlation,
          sum_chunks,
          winograd_correlation_size,
          winograd_correlation_scratch,
          winograd_correlate,
          finish_winograd_correlation,
          place,
          collect,
          collect_pooled,
          box_sums,
          add,
          sum};
}

template <typename Square>
constexpr WinogradKernels winograd_table() {
  return {Square::kSide, Square::kProducts, pack_forms<Square>, pixel_winograd_scratch<Square>,
          pixel_winograd<Square>};
}

constexpr PixelKernels pixel_table() {
  return {kPanel,
          pack_panel,
          multiply_panels,
          winograd_table<Square2>(),
          winograd_table<Square4>(),
          {{1, pack_forms<LatticeForms<1>>},
           {3, pack_forms<LatticeForms<3>>},
           {7, pack_forms<LatticeForms<7>>}},
          pixel_lattice_scratch,
          pixel_lattice,
          pixel_gradient_scratch,
          pixel_gradient};
}

}  // namespace colorseg::cpu::COLORSEG_ISA

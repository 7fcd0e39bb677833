#include "pixel_lattice.h"

#include <array>

#include "kernels/kernels.h"
#include "pixel_parts.h"

namespace colorseg::cpu {
namespace {

// Products of lattices, sums of lines included, against products that others find between borders;
// and how many pixels are multiplied in the time in which another weight is read.
constexpr double kLatticeCost = 0.9, kWeightPixels = 12;

// The longer lattices of an axis, and those with a line less.
std::array<LatticeAxis, 2> lattice_axes(int64_t size, int64_t dilation) {
  const int64_t lines = size / dilation, longer = size % dilation;
  return {LatticeAxis{size, dilation, 0, longer, lines + 1},
          LatticeAxis{size, dilation, longer, lines > 0 ? dilation - longer : 0, lines}};
}

}  // namespace

int64_t lattice_lines(const Tensor& x, const ConvOptions& o) {
  int64_t most = 0;
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t dilation = o.dilation[axis];
    if (dilation < 1 || o.padding[2 * axis] != dilation || o.padding[2 * axis + 1] != dilation)
      return 0;
    most = std::max(most, (x.size(2 + axis) + dilation - 1) / dilation);
  }
  return most <= 3 ? most : 0;
}

double lattice_products(const Tensor& x, const ConvOptions& o) {
  double products = 1, weights = 1;
  for (int axis = 0; axis < 2; ++axis) {
    int64_t along = 0, forms = 0;
    for (const LatticeAxis& a : lattice_axes(x.size(2 + axis), o.dilation[axis])) {
      along += a.phases * (2 * a.lines - 1);
      forms += a.phases > 0 ? 2 * a.lines - 1 : 0;
    }
    products *= double(along), weights *= double(forms);
  }
  return kLatticeCost * products + kWeightPixels * weights / double(x.size(0));
}

void lattice_convolution(const PixelMaps& maps, const Tensor& x, int64_t forms,
                         const Ints& dilation) {
  const PixelKernels& kernels = isa().pixels;
  for (const LatticeAxis& rows : lattice_axes(x.size(2), dilation[0])) {
    for (const LatticeAxis& columns : lattice_axes(x.size(3), dilation[1])) {
      const PixelLattices w{maps, forms, {rows, columns}};
      const int64_t lattices = x.size(0) * rows.phases * columns.phases;
      const int64_t panels = w.out_channels / kernels.panel;
      const int64_t threads = torch::stable::get_num_threads();
      const int64_t halves = std::min({int64_t{2}, panels, threads});  // of the weights, per thread
      const int64_t each = threads / halves, most = each * kMostRows;
      const int64_t parts = std::min(lattices, each * ((lattices + most - 1) / most));
      torch::stable::parallel_for(0, halves * parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const Part of_lattices = part_of(lattices, i % parts, parts);
          const Part of_panels = part_of(panels, i / parts, halves);
          const LatticePart part{of_lattices.first, of_lattices.count, of_panels.first,
                                 of_panels.count};
          kernels.lattice(w, part, thread_scratch(kernels.lattice_scratch(w, part)));
        }
      });
    }
  }
}

}  // namespace colorseg::cpu

// 3x3 kernels so far dilated that only a few lines of a map meet, in channels_last and for many
// channels: a lane is a channel, and the products are those of panels.h.
//
// With padding and dilation d, the lines p, p + d, p + 2 d ... of a map meet each other alone: a
// map is made of small ones, its lattices, of up to three lines each way.  Along one axis with
// taps a, b and c, two lines are y0 = b x0 + c x1, y1 = a x0 + b x1: three products for four by
// Karatsuba's trick, of b with x0 + x1, c - b with x1 and a - b with x0.  Of three lines, the first
// two are Winograd's F(2, 3) of (0, x0, x1, x2), and the third, a x1 + b x2, takes one product
// more, of b: five for seven.
#pragma once
#include "panels.h"

namespace colorseg::cpu::COLORSEG_ISA {

// One product along an axis: of which form of the taps, with which sum of the lines of x, and to
// which of y it is added.
struct LatticeProduct {
  int form, x[3], y[3];
};
constexpr LatticeProduct kLatticeProducts[3][5] = {
    {{0, {1}, {1}}},
    {{0, {1, 1}, {1, 1}}, {1, {0, 1}, {1}}, {2, {1}, {0, 1}}},
    {{0, {0, 0, 1}, {0, 0, 1}},
     {3, {0, -1}, {1, 0, -1}},
     {4, {1, 0, -1}, {0, -1}},
     {5, {1, 1}, {1, 1}},
     {6, {-1, 1}, {1, -1}}}};

// Forms of the taps, of lattices of one line b, of two besides c - b and a - b, and of three
// besides a, c, (a + b + c) / 2 and (a - b + c) / 2.
template <int kCount>
struct LatticeForms {
  static constexpr int kForms = kCount;
  static void kernel(const Vector* tap, int64_t step, Vector* u, int64_t to) {
    const Vector a = tap[0], b = tap[step], c = tap[2 * step];
    u[0] = b;
    if (kForms > 1) u[to] = c - b, u[2 * to] = a - b;
    if (kForms < 7) return;
    u[3 * to] = a, u[4 * to] = c;
    const Vector outer = 0.5f * (a + c), inner = 0.5f * b;
    u[5 * to] = outer + inner, u[6 * to] = outer - inner;
  }
};

// Floats of scratch that pixel_lattice needs.
inline int64_t pixel_lattice_scratch(const PixelLattices& w, const LatticePart& part) {
  const int64_t out = part.panels * kPanel, cells = w.axis[0].lines * w.axis[1].lines;
  return part.count * (w.in_channels + kWidth + (cells + 1) * (out + kWidth));
}

// The first pixel of a lattice.
inline int64_t lattice_pixel(const PixelLattices& w, int64_t index) {
  const LatticeAxis &rows = w.axis[0], &columns = w.axis[1];
  const int64_t n = index / (rows.phases * columns.phases);
  const int64_t row = rows.first + index / columns.phases % rows.phases;
  return (n * rows.size + row) * columns.size + columns.first + index % columns.phases;
}

struct Term {  // of a sum: the line and column of a lattice, and 1 or -1
  int64_t row, column;
  float sign;
};

// The terms of the outer product of two sums of lines.
inline int terms_of(const int* rows, const int* columns, Term* terms) {
  int count = 0;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) {
      if (rows[i] * columns[j] != 0)
        terms[count++] = {i, j, static_cast<float>(rows[i] * columns[j])};
    }
  }
  return count;
}

// v = the sum of terms of one lattice, whose channels begin at `at`.
template <int kTerms>
void sum_terms(const float* const* at, const Term* terms, int64_t channels, float* v) {
  for (int64_t c = 0; c < channels; c += kWidth) {
    Vector sum = terms[0].sign * load(at[0] + c);
    for (int t = 1; t < kTerms; ++t) sum += terms[t].sign * load(at[t] + c);
    store(v + c, sum);
  }
}

inline void pixel_lattice(const PixelLattices& w, const LatticePart& part, float* scratch) {
  const LatticeAxis &rows = w.axis[0], &columns = w.axis[1];
  const int64_t count = part.count, cells = rows.lines * columns.lines;
  const int64_t in = w.in_channels, out = part.panels * kPanel;
  const int64_t first_out = part.first_panel * kPanel;
  // not a power of two: the pixels of a tile are read side by side
  const int64_t in_stride = in + kWidth, out_stride = out + kWidth;
  float* const patches = scratch;
  float* const products = patches + count * in_stride;
  float* const sums = products + count * out_stride;  // [cell][lattice][out]
  for (int64_t i = 0; i < cells * count * out; ++i) sums[i] = 0;
  const auto pixel = [&](int64_t row, int64_t column) {
    return row * rows.dilation * columns.size + column * columns.dilation;
  };
  const auto multiply = [&](const LatticeProduct& of_rows, const LatticeProduct& of_columns) {
    Term terms[4];
    const int read = terms_of(of_rows.x, of_columns.x, terms);
    for (int64_t i = 0; i < count; ++i) {
      const float* at[4];
      for (int t = 0; t < read; ++t)
        at[t] =
            w.x + (lattice_pixel(w, part.first + i) + pixel(terms[t].row, terms[t].column)) * in;
      const auto sum = read == 1 ? sum_terms<1> : read == 2 ? sum_terms<2> : sum_terms<4>;
      sum(at, terms, in, patches + i * in_stride);
    }
    multiply_panels(
        {patches, in_stride, count, in,
         w.weights + ((of_rows.form * w.forms + of_columns.form) * w.out_channels + first_out) * in,
         out, products, out_stride, nullptr, nullptr, false});
    const int written = terms_of(of_rows.y, of_columns.y, terms);
    for (int t = 0; t < written; ++t) {
      float* sum = sums + (terms[t].row * columns.lines + terms[t].column) * count * out;
      for (int64_t i = 0; i < count; ++i, sum += out) {
        for (int64_t c = 0; c < out; c += kWidth)
          store(sum + c, load(sum + c) + terms[t].sign * load(products + i * out_stride + c));
      }
    }
  };
  const auto products_of = [](int64_t lines) { return 2 * lines - 1; };
  for (int64_t i = 0; i < products_of(rows.lines); ++i) {
    for (int64_t j = 0; j < products_of(columns.lines); ++j)
      multiply(kLatticeProducts[rows.lines - 1][i], kLatticeProducts[columns.lines - 1][j]);
  }
  const float* sum = sums;
  for (int64_t cell = 0; cell < cells; ++cell) {
    const int64_t shift = pixel(cell / columns.lines, cell % columns.lines);
    for (int64_t i = 0; i < count; ++i, sum += out) {
      const int64_t at = (lattice_pixel(w, part.first + i) + shift) * w.out_channels + first_out;
      for (int64_t c = 0; c < out; c += kWidth)
        store(w.y + at + c, finished(load(sum + c), w.bias ? w.bias + first_out + c : nullptr,
                                     w.residual ? w.residual + at + c : nullptr, w.relu));
    }
  }
}

}  // namespace colorseg::cpu::COLORSEG_ISA

// The kernels of convolutions with many channels in channels_last, torch-free: a part of kernels.h.
#pragma once
#include <cstdint>

namespace colorseg::cpu {

// Where the weight of (out, in, tap) lies.
struct WeightView {
  const float* data;
  int64_t out_channels, out_stride, in_channels, in_stride, tap_stride;
  const float* at(int64_t out, int64_t in) const {
    return data + out * out_stride + in * in_stride;
  }
};

// out = relu(in * weights + bias + residual), of [rows][channels] with channels side by side.
// Weights are packed; bias and residual, which lies as out does, may be null, and residual out.
struct PanelProduct {
  const float* in;
  int64_t in_stride, rows, in_channels;
  const float* weights;
  int64_t out_channels;
  float* out;
  int64_t out_stride;
  const float *bias, *residual;
  bool relu;
};

// y = relu(conv(x) + bias + residual), of maps in channels_last; bias and residual may be null, and
// residual y.
struct PixelMaps {
  const float *x, *weights;
  float* y;
  const float *bias, *residual;
  bool relu;
  int64_t in_channels, out_channels;
};

// By a 3x3 kernel.  Squares of outputs, which are as far apart as the dilation, begin at rows x
// columns of each image.
struct PixelWinograd : PixelMaps {
  const int64_t *x_size, *y_size, *padding, *dilation;
  const int32_t *rows, *columns;
  int64_t square_rows, square_columns;
};

// Each of the lines first .. first + phases - 1 of a map begins a lattice of as many lines, one to
// three, which are as far apart as the dilation.  Without phases there are none of that kind.
struct LatticeAxis {
  int64_t size, dilation, first, phases, lines;
};

// By a 3x3 kernel of maps that are padded by the dilation.
struct PixelLattices : PixelMaps {
  int64_t forms;  // of the packed weights, each way
  LatticeAxis axis[2];
};

// Of the lattices of a convolution, and of its panels of output channels.
struct LatticePart {
  int64_t first, count, first_panel, panels;
};

// The gradient of one tap's weights, [y_channels][x_channels] with rows out_stride apart: the sum
// over pairs of pixels, whose numbers are given, of the product of their channels.
struct WeightGradient {
  const float *y, *x;
  int64_t y_channels, x_channels, pixels;
  const int32_t *of_y, *of_x;
  float* out;
  int64_t out_stride;
};

// By squares of side x side outputs.
struct WinogradKernels {
  int64_t side, products;
  void (*pack)(const WeightView&, int64_t panel, float* packed);
  int64_t (*scratch)(int64_t squares, int64_t in_channels, int64_t out_channels);
  void (*convolve)(const PixelWinograd&, int64_t first, int64_t count, float* scratch);
};

// Convolutions of maps in channels_last, see panels.h; numbers of channels are multiples of panel.
struct PixelKernels {
  int64_t panel;
  void (*pack_panel)(const WeightView&, int64_t panel, float* packed);
  void (*multiply_panels)(const PanelProduct&);
  WinogradKernels winograd2, winograd4;
  struct {
    int64_t forms;  // each way
    void (*pack)(const WeightView&, int64_t panel, float* packed);
  } lattices[3];  // of up to one, two and three lines
  int64_t (*lattice_scratch)(const PixelLattices&, const LatticePart&);
  void (*lattice)(const PixelLattices&, const LatticePart&, float* scratch);
  int64_t (*gradient_scratch)(int64_t y_channels);
  // adds to the rows [first, last)
  void (*gradient)(const WeightGradient&, int64_t first, int64_t last, float* scratch);
};

}  // namespace colorseg::cpu

#include "pixel_conv2d.h"

#include "pixel_lattice.h"
#include "pixel_parts.h"

namespace colorseg::cpu {
namespace {

constexpr int64_t kMostScratch = 20 << 18;  // floats of a thread's transformed patches and products
// Winograd's transforms cost as much as so many products, which few channels would not pay for.
constexpr double kTransforms = 1.2;
constexpr int64_t kLeastChannels = 64, kLeastPixels = 1600;  // pixels: to pack weights for once

// Where squares begin along one axis, whose lines are as far apart as the dilation.
std::vector<int32_t> squares_along(int64_t size, int64_t dilation, int64_t side) {
  std::vector<int32_t> first;
  for (int64_t phase = 0; phase < std::min(dilation, size); ++phase) {
    for (int64_t line = phase; line < size; line += side * dilation)
      first.push_back(static_cast<int32_t>(line));
  }
  return first;
}

// Products per channel and image of a 3x3 kernel: those that meet a line of x, and Winograd's.
double live_products(const Tensor& x, const ConvOptions& o) {
  double products = 1;
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t size = x.size(2 + axis), y_size = conv_output_size(size, 3, axis, o);
    int64_t lines = 0;
    for (int64_t tap = 0; tap < 3; ++tap)
      lines += connected_lines(y_size, size, tap, axis, o).count();
    products *= double(lines);
  }
  return products;
}
double winograd_products(const Tensor& x, const ConvOptions& o, const WinogradKernels& kernels) {
  double products = kTransforms * double(kernels.products);
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t y_size = conv_output_size(x.size(2 + axis), 3, axis, o);
    products *= double(squares_along(y_size, o.dilation[axis], kernels.side).size());
  }
  return products;
}

constexpr Packing kLattices[] = {Packing::kLattice1, Packing::kLattice2, Packing::kLattice3};

const WinogradKernels& winograd_kernels(const Tensor& packed) {
  const PixelKernels& kernels = isa().pixels;
  return packed.size(0) == kernels.winograd2.products ? kernels.winograd2 : kernels.winograd4;
}

Ints output_sizes(const Tensor& x, const Tensor& packed, const Ints& padding,
                  const Ints& dilation) {
  const ConvOptions o{{1, 1}, padding, dilation, 1, false, {0, 0}};
  const int64_t kernel = packed.dim() > 3 ? 3 : 1;
  return {x.size(0), packed.size(-3) * packed.size(-1), conv_output_size(x.size(2), kernel, 0, o),
          conv_output_size(x.size(3), kernel, 1, o)};
}

void winograd(const PixelMaps& maps, const Tensor& x, const Tensor& packed, const Ints& padding,
              const Ints& dilation, const Tensor& y) {
  const WinogradKernels& kernels = winograd_kernels(packed);
  const int64_t x_size[2] = {x.size(2), x.size(3)}, y_size[2] = {y.size(2), y.size(3)};
  const int64_t before[2] = {padding[0], padding[2]};
  const std::vector<int32_t> rows = squares_along(y_size[0], dilation[0], kernels.side);
  const std::vector<int32_t> columns = squares_along(y_size[1], dilation[1], kernels.side);
  const PixelWinograd w{maps,
                        x_size,
                        y_size,
                        before,
                        dilation.data(),
                        rows.data(),
                        columns.data(),
                        static_cast<int64_t>(rows.size()),
                        static_cast<int64_t>(columns.size())};
  const auto scratch = [&](int64_t squares) {
    return kernels.scratch(squares, w.in_channels, w.out_channels);
  };
  const int64_t most = std::clamp<int64_t>(kMostScratch / scratch(1), 12, kMostRows);
  for_each_part(x.size(0) * w.square_rows * w.square_columns, most,
                [&](int64_t first, int64_t count) {
                  kernels.convolve(w, first, count, thread_scratch(scratch(count)));
                });
}

}  // namespace

bool fits_panels(const Tensor& x, const Tensor& weight, const ConvOptions& o) {
  const int64_t panel = isa().pixels.panel;
  return x.scalar_type() == ScalarType::Float && weight.scalar_type() == ScalarType::Float &&
         o.groups == 1 && !o.transposed && o.stride[0] == 1 && o.stride[1] == 1 && x.numel() > 0 &&
         weight.size(0) % panel == 0 && weight.size(1) % panel == 0;
}

Connected connected_lines(int64_t y_size, int64_t x_size, int64_t tap, int axis,
                          const ConvOptions& o) {
  const int64_t shift = tap * o.dilation[axis] - o.padding[2 * axis];
  return {std::max<int64_t>(0, -shift), std::min(y_size, x_size - shift), shift};
}

Packing pixel_packing(const Tensor& x, const Tensor& weight, const ConvOptions& o, bool each_call,
                      bool exact) {
  const int64_t height = weight.size(2), width = weight.size(3);
  if (!fits_panels(x, weight, o) || (each_call && x.numel() / x.size(1) < kLeastPixels))
    return Packing::kNone;
  if (height == 1 && width == 1) {
    const bool inside = std::all_of(o.padding.begin(), o.padding.end(), [](auto p) { return !p; });
    return inside ? Packing::kPanels : Packing::kNone;
  }
  if (height != 3 || width != 3 || std::min(weight.size(0), weight.size(1)) < kLeastChannels)
    return Packing::kNone;
  const double live = live_products(x, o);
  const double by2 = winograd_products(x, o, isa().pixels.winograd2);
  const double by4 = winograd_products(x, o, isa().pixels.winograd4);
  const int64_t lines = each_call ? 0 : lattice_lines(x, o);
  if (lines > 0 && lattice_products(x, o) < std::min({live, by2, exact ? by2 : by4}))
    return kLattices[lines - 1];
  if (std::min(by2, exact ? by2 : by4) >= live) return Packing::kNone;
  return exact || by2 <= by4 ? Packing::kWinograd2 : Packing::kWinograd4;
}

ConvOptions adjoint_options(const ConvOptions& o, const Tensor& weight) {
  ConvOptions adjoint = o;
  for (int side = 0; side < 4; ++side)
    adjoint.padding[side] =
        o.dilation[side / 2] * (weight.size(2 + side / 2) - 1) - o.padding[side];
  return adjoint;
}

Tensor pack_pixels(const Tensor& weight_, Packing packing, bool adjoint) {
  const Tensor weight = is_channels_last(weight_) ? weight_ : dense(weight_, false);
  const PixelKernels& kernels = isa().pixels;
  const int64_t taps = weight.size(2) * weight.size(3), tap = weight.stride(3);
  WeightView view{weight.const_data_ptr<float>(),
                  weight.size(0),
                  weight.stride(0),
                  weight.size(1),
                  weight.stride(1),
                  tap};
  if (adjoint) {
    std::swap(view.out_channels, view.in_channels), std::swap(view.out_stride, view.in_stride);
    view.data += (taps - 1) * tap, view.tap_stride = -tap;
  }
  const int64_t panels = view.out_channels / kernels.panel;
  Ints sizes{panels, view.in_channels, kernels.panel};
  auto pack = kernels.pack_panel;
  if (packing == Packing::kWinograd2 || packing == Packing::kWinograd4) {
    const WinogradKernels& winograd =
        packing == Packing::kWinograd2 ? kernels.winograd2 : kernels.winograd4;
    sizes.insert(sizes.begin(), winograd.products), pack = winograd.pack;
  }
  for (int64_t i = 0; i < 3; ++i) {
    if (packing != kLattices[i]) continue;
    const int64_t forms = kernels.lattices[i].forms;
    sizes.insert(sizes.begin(), {forms, forms}), pack = kernels.lattices[i].pack;
  }
  Tensor packed = new_tensor(weight, sizes, ScalarType::Float);
  auto* to = packed.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) pack(view, i, to);
  });
  return packed;
}

void pixel_convolution(const Tensor& x, const Tensor& packed, const OptionalTensor& bias_,
                       const float* residual, const Ints& padding, const Ints& dilation, bool relu,
                       Tensor& y) {
  const int64_t in = x.size(1), out = y.size(1);
  const OptionalTensor bias = bias_ ? OptionalTensor(dense(*bias_, false)) : bias_;
  const PixelMaps m{x.const_data_ptr<float>(),
                    packed.const_data_ptr<float>(),
                    y.mutable_data_ptr<float>(),
                    bias ? bias->const_data_ptr<float>() : nullptr,
                    residual,
                    relu,
                    in,
                    out};
  if (packed.dim() == 5) return lattice_convolution(m, x, packed.size(0), dilation);
  if (packed.dim() == 4) return winograd(m, x, packed, padding, dilation, y);
  for_each_part(x.size(0) * x.size(2) * x.size(3), kMostRows, [&](int64_t first, int64_t count) {
    isa().pixels.multiply_panels({m.x + first * in, in, count, in, m.weights, out,
                                  m.y + first * out, out, m.bias,
                                  residual ? residual + first * out : nullptr, relu});
  });
}

Tensor pixel_convolution(const Tensor& x, const Tensor& packed, const OptionalTensor& bias,
                         const Ints& padding, const Ints& dilation) {
  Tensor y = new_tensor(x, output_sizes(x, packed, padding, dilation), ScalarType::Float, true);
  pixel_convolution(x, packed, bias, nullptr, padding, dilation, false, y);
  return y;
}

namespace {

int64_t conv2d_packing(const Tensor& x, const Tensor& weight, const Ints& stride,
                       const Ints& padding, const Ints& dilation, int64_t groups, bool exact) {
  return static_cast<int64_t>(
      pixel_packing(x, weight, {stride, padding, dilation, groups, false, {0, 0}}, false, exact));
}

Tensor pack_conv2d(const Tensor& weight, int64_t packing) {
  const int64_t panel = isa().pixels.panel, taps = weight.size(2) * weight.size(3);
  const auto kind = static_cast<Packing>(packing);
  COLORSEG_CHECK(kind > Packing::kNone && kind <= Packing::kLattice3 &&
                     taps == (kind == Packing::kPanels ? 1 : 9) &&
                     weight.scalar_type() == ScalarType::Float && weight.size(0) % panel == 0 &&
                     weight.size(1) % panel == 0,
                 "pack_conv2d needs a weight and what conv2d_packing says of it");
  return pack_pixels(weight, kind, false);
}

// Refuses what does not fit; the sizes of y.
Ints check_packed(const Tensor& x, const Tensor& packed, const OptionalTensor& bias,
                  const Ints& padding, const Ints& dilation) {
  COLORSEG_CHECK(x.dim() == 4 && packed.dim() >= 3 && packed.dim() <= 5 &&
                     x.scalar_type() == ScalarType::Float && packed.is_contiguous() &&
                     packed.size(-1) == isa().pixels.panel && packed.size(-2) == x.size(1) &&
                     x.size(1) % isa().pixels.panel == 0,
                 "packed_conv2d needs what pack_conv2d made for such an x");
  COLORSEG_CHECK(padding.size() == 4 && dilation.size() == 2, "padding has 4, dilation 2 numbers");
  COLORSEG_CHECK(std::min(dilation[0], dilation[1]) > 0, "the dilation must be above 0");
  if (packed.dim() == 5) {
    COLORSEG_CHECK(packed.size(0) == packed.size(1), "forms of lattices must be as many each way");
    const int64_t lines = lattice_lines(x, {{1, 1}, padding, dilation, 1, false, {0, 0}});
    COLORSEG_CHECK(lines > 0 && isa().pixels.lattices[lines - 1].forms <= packed.size(0),
                   "the weight is packed for lattices of fewer lines, or another padding");
  }
  const Ints sizes = output_sizes(x, packed, padding, dilation);
  COLORSEG_CHECK(
      !bias || (bias->scalar_type() == ScalarType::Float && sizes_of(*bias) == Ints{sizes[1]}),
      "the bias does not fit");
  return sizes;
}

Tensor packed_conv2d(const Tensor& x, const Tensor& packed, const OptionalTensor& bias,
                     const OptionalTensor& residual_, const Ints& padding, const Ints& dilation,
                     bool relu) {
  const Ints sizes = check_packed(x, packed, bias, padding, dilation);
  COLORSEG_CHECK(!residual_ || (residual_->scalar_type() == ScalarType::Float &&
                                sizes_of(*residual_) == sizes),
                 "the residual does not fit");
  const OptionalTensor residual = residual_ ? OptionalTensor(dense(*residual_, true)) : residual_;
  Tensor y = new_tensor(x, sizes, ScalarType::Float, true);
  pixel_convolution(dense(x, true), packed, bias,
                    residual ? residual->const_data_ptr<float>() : nullptr, padding, dilation, relu,
                    y);
  return y;
}

// y = relu(conv(x) + bias + y)
void packed_conv2d_(const Tensor& x, const Tensor& packed, const OptionalTensor& bias, Tensor y,
                    const Ints& padding, const Ints& dilation, bool relu) {
  const Ints sizes = check_packed(x, packed, bias, padding, dilation);
  COLORSEG_CHECK(
      y.scalar_type() == ScalarType::Float && sizes_of(y) == sizes && is_channels_last(y),
      "y does not fit");
  COLORSEG_CHECK(y.const_data_ptr() != x.const_data_ptr(), "y must not be x");
  pixel_convolution(dense(x, true), packed, bias, y.const_data_ptr<float>(), padding, dilation,
                    relu, y);
}

}  // namespace
}  // namespace colorseg::cpu

STABLE_TORCH_LIBRARY_IMPL(colorseg, CPU, m) {
  m.impl("conv2d_packing", TORCH_BOX(&colorseg::cpu::conv2d_packing));
  m.impl("pack_conv2d", TORCH_BOX(&colorseg::cpu::pack_conv2d));
  m.impl("packed_conv2d", TORCH_BOX(&colorseg::cpu::packed_conv2d));
  m.impl("packed_conv2d_", TORCH_BOX(&colorseg::cpu::packed_conv2d_));
}

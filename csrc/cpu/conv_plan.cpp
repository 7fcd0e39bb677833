#include "conv_plan.h"

namespace colorseg::cpu {
namespace {

// The flat maps of a piece, in backward those of x, y and a gradient, share an L2 of 1 MB with
// weights; the least keeps the work per piece above its overhead.
constexpr int64_t kPieceFloats = 80000, kLeastPositions = 256, kMostPositions = 1100;
constexpr int64_t kMaxChannels = 256, kMaxWeights = 1 << 20;

bool winograd_wins(const Convolution& c, int64_t x_channels, int64_t y_channels) {
  const bool fits = !c.transposed && !c.upsampled && c.stride == 1 && c.kernel[0] == 3 &&
                    c.kernel[1] == 3 && c.dilation[0] == 1 && c.dilation[1] == 1 &&
                    c.padding[0] <= 2 && c.padding[1] <= 2;
  return fits && c.y_size[0] % 2 == 0 && c.y_size[1] % 2 == 0 && c.x_size[0] % 2 == 0 &&
         c.x_size[1] % 2 == 0 && x_channels >= 8 && y_channels >= 8;
}

// Cuts n images into pieces.
void cut(ConvPlan& p, const Bands& wanted) {
  const Geometry& g = p.geometry;
  const int64_t positions = g.rows.size * g.columns.pitch;
  const int64_t lines = p.x_channels * g.x_phases() + p.y_channels * g.y_phases();
  const int64_t target = std::clamp(kPieceFloats / lines, kLeastPositions, kMostPositions);
  p.images_per_piece = 1, p.bands = 1, p.rows_per_piece = p.rows;
  if (positions > 2 * target || wanted.least > 1) {
    const int64_t bands = std::max(wanted.least, divide_up(positions, target));
    // a max-pool and Winograd's squares take pairs of lines, which a row of phases is already
    const int64_t step = std::max<int64_t>(wanted.row_step, g.y_step == 2 ? 1 : 2);
    const int64_t rows = divide_up(divide_up(p.rows, bands), step) * step;
    p.rows_per_piece = std::min(p.rows, rows);
    p.bands = divide_up(p.rows, p.rows_per_piece);
  } else {
    const int64_t pieces = divide_up(p.images * positions, target);
    p.images_per_piece = std::max<int64_t>(
        1, divide_up(p.images, divide_up(pieces, wanted.piece_step) * wanted.piece_step));
  }
  p.pieces = p.bands * divide_up(p.images, p.images_per_piece);
}

}  // namespace

Piece ConvPlan::piece(int64_t index) const {
  const int64_t image = index / bands * images_per_piece, row = index % bands * rows_per_piece;
  return {index, image, std::min(images_per_piece, images - image), row,
          std::min(rows_per_piece, rows - row)};
}

bool has_own_kernels(const Tensor& x, const Tensor& weight, const OptionalTensor& skip,
                     const ConvOptions& o) {
  const int64_t channels = x.size(1) + (skip ? skip->size(1) : 0);
  const int64_t out = o.transposed ? weight.size(1) : weight.size(0);
  return x.scalar_type() == ScalarType::Float && !is_channels_last(x) && o.groups == 1 &&
         o.stride[0] == o.stride[1] && o.stride[0] <= 2 && channels <= kMaxChannels &&
         out <= kMaxChannels && weight.numel() <= kMaxWeights && x.numel() > 0 &&
         weight.size(2) * o.dilation[0] <= 64 && weight.size(3) * o.dilation[1] <= 64;
}

ConvPlan plan_convolution(const ConvShape& s, int64_t kernel_height, int64_t kernel_width,
                          const ConvOptions& o, bool upsampled, const Bands& bands, bool pairs) {
  const int64_t scale = upsampled ? 2 : 1;
  ConvPlan p{};
  p.shape = {{s.in_height / scale, s.in_width / scale},
             {s.out_height, s.out_width},
             {kernel_height, kernel_width},
             o.stride[0],
             {o.padding[0], o.padding[2]},
             {o.dilation[0], o.dilation[1]},
             o.transposed,
             upsampled};
  p.images = s.n, p.x_channels = s.in_channels + s.skip_channels, p.y_channels = s.out_channels;
  p.pairs = pairs, p.winograd = !pairs && winograd_wins(p.shape, p.x_channels, p.y_channels);
  p.geometry = make_geometry(p.shape, p.winograd, 1);
  p.kernel_area = kernel_height * kernel_width;
  p.out_stride = o.transposed ? p.kernel_area : p.x_channels * p.kernel_area;
  p.in_stride = o.transposed ? p.y_channels * p.kernel_area : p.kernel_area;
  const Geometry& g = p.geometry;
  p.rows = g.rows.size;
  cut(p, bands);
  p.geometry = make_geometry(p.shape, p.winograd, p.images_per_piece);
  const int64_t around = g.rows.reach + (p.bands > 1 ? 2 : 0);  // bands bring their neighbours
  p.margin = aligned(around * g.row + g.columns.reach);
  p.length = aligned(p.rows_per_piece * g.row + 2 * p.margin + kSlack);
  p.taps = forward_taps(g, p.length);
  return p;
}

}  // namespace colorseg::cpu

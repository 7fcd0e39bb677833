// Plans the library's own convolution: its geometry, and the pieces the batch is cut into.
#pragma once
#include "../conv2d.h"
#include "kernels/kernels.h"

namespace colorseg::cpu {

constexpr int64_t kSlack = 64;  // floats; products write up to 48 more than asked for

// Images [image, image + images), phase lines [row, row + rows) of each.
struct Piece {
  int64_t index, image, images, row, rows;
};

struct ConvPlan {
  Convolution shape;
  Geometry geometry;
  bool winograd, pairs;  // pairs: what counts as a channel of x is two in bfloat16
  int64_t images, x_channels, y_channels;
  int64_t kernel_area, out_stride, in_stride;  // of the weight
  int64_t rows;                                // phase lines of an image
  int64_t images_per_piece, rows_per_piece, bands, pieces;
  int64_t margin, length;  // floats in front of a flat map's positions, and of the whole
  TapTable taps;           // of the forward product

  Piece piece(int64_t index) const;
  // Of Winograd's product: pairs of rows, and where their patches begin in the map that is read.
  Runs squares(int64_t row_count) const {
    Runs runs = geometry.runs(divide_up(row_count, 2));
    runs.row *= 2;
    return runs;
  }
  int64_t patch(bool of_y) const {
    const int64_t around[2] = {of_y ? 2 - shape.padding[0] : shape.padding[0],
                               of_y ? 2 - shape.padding[1] : shape.padding[1]};
    return -around[0] * geometry.row - around[1];
  }
  int64_t weight_count() const { return x_channels * y_channels * kernel_area; }
};

// Whether the library has kernels for this convolution; otherwise it is left to ATen.
bool has_own_kernels(const Tensor& x, const Tensor& weight, const OptionalTensor& skip,
                     const ConvOptions& o);

// How few images are shared among threads.
struct Bands {
  int64_t least;       // bands of an image, if it has so many
  int64_t row_step;    // their phase lines are a multiple of it
  int64_t piece_step;  // pieces of several images: a multiple of it, for threads to share
};

// Where sums over pieces are results, the cut must not depend on the number of threads; and packed
// argmax codes of a pooled band start at a byte if it has a multiple of 8 lines.
inline Bands fixed_bands(int64_t images) {
  return {images > 0 && images < 4 ? 4 / images : 1, 8, 8};
}

// upsampled: x is upsampled 2x2 before the convolution that `s` describes.  pairs: of bfloat16; the
// product of them runs at twice the rate, which beats Winograd.
ConvPlan plan_convolution(const ConvShape& s, int64_t kernel_height, int64_t kernel_width,
                          const ConvOptions& o, bool upsampled, const Bands& bands,
                          bool pairs = false);

}  // namespace colorseg::cpu

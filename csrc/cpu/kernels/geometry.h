// A convolution on flat maps: what the micro-kernels know of shapes.
//
// A channel of a map is stored as one line of positions: row after row, the images of a piece side
// by side in each, with zeros behind each image's part of a row, so that a tap of the kernel is a
// constant distance between positions and borders need no branch.  A map that is read or written at
// stride 2 is split into 2 x 2 phases (even and odd rows and columns), each a line of its own. Then
// every convolution is one bilinear form with a list of taps (e.g. 9 of a 3x3 kernel):
//   forward          y[tap.y_phase][p] += w[tap.weight] * x[tap.x_phase][p + tap.offset]
//   data gradient    x[tap.x_phase][p] += w[tap.weight] * y[tap.y_phase][p - tap.offset]
//   weight gradient  w[tap.weight]     += the sum over p of
//                                         y[tap.y_phase][p] * x[tap.x_phase][p + tap.offset]
#pragma once
#include <cstdint>
#include <vector>

namespace colorseg::cpu {

constexpr int64_t kAlign = 16;  // floats of the widest vector

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t aligned(int64_t count) { return divide_up(count, kAlign) * kAlign; }

struct Tap {
  int64_t x_phase, y_phase, offset, weight;
};

struct Axis {
  int64_t x_size, y_size;  // of the maps
  int64_t size;            // of a phase
  int64_t pitch;           // with the zeros behind it
  int64_t reach;           // how far taps go beyond a phase's first and last line
};

// Positions that count: in each of `rows` rows, `segments` runs of `columns` positions.
struct Runs {
  int64_t rows, row, segments, segment, columns;  // row, segment: distances from one to the next
};

struct Geometry {
  Axis rows, columns;
  int64_t x_step, y_step;  // phases per axis
  bool box;                // y is summed over 2 x 2 squares: the convolution sees x upsampled
  bool by_rows;            // rows start at whole vectors, as Winograd's products want them
  int64_t images, row;     // side by side, and the distance between rows
  std::vector<Tap> taps;

  int64_t x_phases() const { return x_step * x_step; }
  int64_t y_phases() const { return y_step * y_step; }
  // From the first position of the first row to the last of the last row.
  int64_t positions(int64_t row_count) const {
    return (row_count - 1) * row + (images - 1) * columns.pitch + columns.size;
  }
  // The same positions row by row.
  Runs runs(int64_t row_count) const {
    if (columns.pitch % kAlign == 0) return {row_count, row, images, columns.pitch, columns.size};
    return {row_count, row, 1, 0, (images - 1) * columns.pitch + columns.size};
  }
};

// The convolution as written: sizes along (rows, columns); y_size before any resampling of it.
struct Convolution {
  int64_t x_size[2], y_size[2], kernel[2], stride, padding[2], dilation[2];
  bool transposed;
  bool upsampled;  // x, 2x2 to the nearest, before it is convolved
};

Geometry make_geometry(const Convolution& c, bool by_rows, int64_t images);

// The taps of each phase of the map that is written; the one that is read has its phases
// `phase_stride` apart.
struct TapTable {
  std::vector<int64_t> begin;  // per phase, and the end
  std::vector<int32_t> offset, weight;
  int64_t phases() const { return static_cast<int64_t>(begin.size()) - 1; }
};

TapTable forward_taps(const Geometry& g, int64_t phase_stride);
TapTable adjoint_taps(const Geometry& g, int64_t phase_stride);

// Channels are channel_stride apart, the phases of one channel phase_stride.
struct FlatMap {
  float* data;
  int64_t channels, channel_stride, phase_stride;
};

constexpr int kGroupTaps = 3;

// Up to 3 entries of the kernel whose sums are taken together.
struct TapGroup {
  int64_t taps;
  int32_t weight[kGroupTaps], b_offset[kGroupTaps];
};

// `a` is the map without phases: y, or x of a transposed convolution (then swapped is true).
std::vector<TapGroup> correlate_groups(const Geometry& g, bool swapped, int64_t b_phase_stride);

// What is done to values on their way into a flat map: relu((x - center) * scale + offset).
struct Activation {
  float center, scale, offset;
  bool affine, relu;
};

// Line 0, phase 0 of one channel of a flat map, with `step` x `step` phases.
struct Lines {
  float* data;
  int64_t pitch, phase_stride, step;
};

}  // namespace colorseg::cpu

#include "kernels/geometry.h"

#include <algorithm>

namespace colorseg::cpu {
namespace {

// One tap along one axis: y[y_phase][i] takes x[x_phase][i + shift].
struct AxisTap {
  int64_t x_phase, y_phase, shift;
};

int64_t floor_divide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
int64_t modulo(int64_t a, int64_t b) { return a - b * floor_divide(a, b); }

// The tap of entry k of the kernel along an axis.
AxisTap axis_tap(const Convolution& c, int axis, int64_t k) {
  const int64_t at = k * c.dilation[axis] - c.padding[axis], s = c.stride;
  if (c.transposed) return {0, modulo(at, s), -floor_divide(at, s)};
  if (c.upsampled) {  // y[u] = t[u] + t[u + 1], where t[m] takes x[i] if m - 1 + at = 2 i
    const int64_t phase = modulo(1 - at, 2);
    return {0, phase, (phase - 1 + at) / 2};
  }
  return {modulo(at, s), 0, floor_divide(at, s)};
}

int64_t phase_size(int64_t size, int64_t phase, int64_t step) {
  return (size - phase + step - 1) / step;
}

// Of images whose 4 x 4 patches begin at even columns: whole vectors, or as few zeros as will do.
int64_t row_pitch(const Axis& columns) {
  const bool whole = columns.x_size == columns.y_size && columns.size % kAlign == 0;
  return whole ? columns.size + kAlign : (columns.size + 3) / 2 * 2;
}

}  // namespace

Geometry make_geometry(const Convolution& c, bool by_rows, int64_t images) {
  const int64_t x_step = c.transposed || c.upsampled ? 1 : c.stride;
  const int64_t y_step = c.upsampled ? 2 : c.transposed ? c.stride : 1;
  Geometry g{{}, {}, x_step, y_step, c.upsampled, by_rows, images, 0, {}};
  Axis* axes[] = {&g.rows, &g.columns};
  std::vector<AxisTap> taps[2];
  for (int a = 0; a < 2; ++a) {
    Axis& axis = *axes[a];
    axis = {c.x_size[a], c.y_size[a] + (c.upsampled ? 1 : 0), 0, 0, 0};
    axis.size = std::max(phase_size(axis.x_size, 0, x_step), phase_size(axis.y_size, 0, y_step));
    axis.pitch = axis.size;
    for (int64_t k = 0; k < c.kernel[a]; ++k) {
      const AxisTap t = axis_tap(c, a, k);
      taps[a].push_back(t);
      // so that what a tap reads beyond a line lies in the zeros before or behind it
      axis.pitch = std::max({axis.pitch, phase_size(axis.x_size, t.x_phase, x_step) - t.shift,
                             phase_size(axis.y_size, t.y_phase, y_step) + t.shift});
      axis.reach = std::max({axis.reach, t.shift, -t.shift});
    }
  }
  if (by_rows) g.columns.pitch = row_pitch(g.columns);
  g.row = images * g.columns.pitch;
  if (by_rows) g.row = aligned(g.row);
  for (int64_t k = 0; k < c.kernel[0] * c.kernel[1]; ++k) {
    const AxisTap row = taps[0][k / c.kernel[1]], column = taps[1][k % c.kernel[1]];
    g.taps.push_back({row.x_phase * x_step + column.x_phase, row.y_phase * y_step + column.y_phase,
                      row.shift * g.row + column.shift, k});
  }
  return g;
}

TapTable forward_taps(const Geometry& g, int64_t phase_stride) {
  TapTable table{{0}, {}, {}};
  for (int64_t phase = 0; phase < g.y_phases(); ++phase) {
    for (const Tap& t : g.taps) {
      if (t.y_phase != phase) continue;
      table.offset.push_back(static_cast<int32_t>(t.x_phase * phase_stride + t.offset));
      table.weight.push_back(static_cast<int32_t>(t.weight));
    }
    table.begin.push_back(static_cast<int64_t>(table.offset.size()));
  }
  return table;
}

TapTable adjoint_taps(const Geometry& g, int64_t phase_stride) {
  Geometry swapped{g.rows, g.columns, g.y_step, g.x_step, false, g.by_rows, g.images, g.row, {}};
  for (const Tap& t : g.taps) swapped.taps.push_back({t.y_phase, t.x_phase, -t.offset, t.weight});
  return forward_taps(swapped, phase_stride);
}

std::vector<TapGroup> correlate_groups(const Geometry& g, bool swapped, int64_t b_phase_stride) {
  std::vector<TapGroup> groups;
  for (const Tap& tap : g.taps) {  // in the order of the kernel
    const Tap t = swapped ? Tap{tap.y_phase, tap.x_phase, -tap.offset, tap.weight} : tap;
    if (groups.empty() || groups.back().taps == kGroupTaps) groups.push_back({});
    TapGroup& group = groups.back();
    group.weight[group.taps] = static_cast<int32_t>(t.weight);
    group.b_offset[group.taps++] = static_cast<int32_t>(t.x_phase * b_phase_stride + t.offset);
  }
  return groups;
}

}  // namespace colorseg::cpu

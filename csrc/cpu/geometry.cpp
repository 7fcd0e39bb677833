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

// The taps of entry k of the kernel along an axis.
std::vector<AxisTap> axis_taps(const Convolution& c, int axis, int64_t k, bool polyphase) {
  const int64_t at = k * c.dilation[axis] - c.padding[axis], s = c.stride;
  if (c.transposed) return {{0, modulo(at, s), -floor_divide(at, s)}};
  if (c.upsampled) {  // y[u] = t[u] + t[u + 1], where t[m] takes x[i] if m - 1 + at = 2 i
    const int64_t phase = modulo(1 - at, 2);
    return {{0, phase, (phase - 1 + at) / 2}};
  }
  if (!polyphase) return {{modulo(at, s), 0, floor_divide(at, s)}};
  return {{modulo(at, 2), 0, floor_divide(at, 2)}, {modulo(at + 1, 2), 1, floor_divide(at + 1, 2)}};
}

int64_t phase_size(int64_t size, int64_t phase, int64_t step) {
  return (size - phase + step - 1) / step;
}

}  // namespace

Geometry make_geometry(const Convolution& c, bool polyphase, int64_t images) {
  const int64_t x_step = polyphase ? 2 : c.transposed || c.upsampled ? 1 : c.stride;
  const int64_t y_step = polyphase || c.upsampled ? 2 : c.transposed ? c.stride : 1;
  Geometry g{{}, {}, x_step, y_step, c.upsampled, images, 0, {}};
  Axis* axes[] = {&g.rows, &g.columns};
  std::vector<std::vector<AxisTap>> taps[2];
  for (int a = 0; a < 2; ++a) {
    Axis& axis = *axes[a];
    axis = {c.x_size[a], c.y_size[a] + (c.upsampled ? 1 : 0), 0, 0, 0};
    axis.size = std::max(phase_size(axis.x_size, 0, x_step), phase_size(axis.y_size, 0, y_step));
    axis.pitch = axis.size;
    for (int64_t k = 0; k < c.kernel[a]; ++k) {
      taps[a].push_back(axis_taps(c, a, k, polyphase));
      for (const AxisTap& t : taps[a].back()) {
        // so that what a tap reads beyond a line lies in the zeros before or behind it
        axis.pitch = std::max({axis.pitch, phase_size(axis.x_size, t.x_phase, x_step) - t.shift,
                               phase_size(axis.y_size, t.y_phase, y_step) + t.shift});
        axis.reach = std::max({axis.reach, t.shift, -t.shift});
      }
    }
  }
  g.row = images * g.columns.pitch;
  for (int64_t k = 0; k < c.kernel[0] * c.kernel[1]; ++k) {
    for (const AxisTap& row : taps[0][k / c.kernel[1]]) {
      for (const AxisTap& column : taps[1][k % c.kernel[1]]) {
        g.taps.push_back({row.x_phase * x_step + column.x_phase,
                          row.y_phase * y_step + column.y_phase, row.shift * g.row + column.shift,
                          k});
      }
    }
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
  Geometry swapped{g.rows, g.columns, g.y_step, g.x_step, false, g.images, g.row, {}};
  for (const Tap& t : g.taps) swapped.taps.push_back({t.y_phase, t.x_phase, -t.offset, t.weight});
  return forward_taps(swapped, phase_stride);
}

std::vector<TapGroup> correlate_groups(const Geometry& g, bool swapped, int64_t a_phase_stride,
                                       int64_t b_phase_stride) {
  std::vector<std::vector<Tap>> entries;  // of the kernel: the taps that share a weight
  for (const Tap& tap : g.taps) {
    const Tap t = swapped ? Tap{tap.y_phase, tap.x_phase, -tap.offset, tap.weight} : tap;
    entries.resize(std::max<size_t>(entries.size(), t.weight + 1));
    entries[t.weight].push_back(t);
  }
  std::vector<TapGroup> groups;
  for (size_t first = 0; first < entries.size(); first += kGroupTaps) {
    TapGroup group{std::min<int64_t>(kGroupTaps, entries.size() - first), {}, {}};
    group.rounds.resize(entries[first].size());
    for (int64_t t = 0; t < group.taps; ++t) {
      group.weight[t] = static_cast<int32_t>(first + t);
      for (size_t r = 0; r < group.rounds.size(); ++r) {
        const Tap& tap = entries[first + t][r];
        group.rounds[r].a_offset = static_cast<int32_t>(tap.y_phase * a_phase_stride);
        group.rounds[r].b_offset[t] =
            static_cast<int32_t>(tap.x_phase * b_phase_stride + tap.offset);
      }
    }
    groups.push_back(group);
  }
  return groups;
}

Patch winograd_patch(const int64_t (&padding)[2], int64_t row_distance, int64_t phase_stride) {
  Patch patch;
  for (int64_t i = 0; i < 16; ++i) {
    const int64_t row = i / 4 - padding[0], column = i % 4 - padding[1];
    patch.offset[i] =
        static_cast<int32_t>((2 * modulo(row, 2) + modulo(column, 2)) * phase_stride +
                             floor_divide(row, 2) * row_distance + floor_divide(column, 2));
  }
  return patch;
}

}  // namespace colorseg::cpu

#include "conv_taps.h"

namespace colorseg::cuda {
namespace {

// Along one axis: in a phase, the input at in_step * q + offset times the taps of a set.
struct AxisTap {
  int64_t phase, offset;
  uint64_t taps;
};
struct Axis {
  int64_t in_step, out_step;
  std::vector<AxisTap> entries;
};

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// y[q] += w[k] x[step q + k - padding].
Axis strided(int64_t kernel, int64_t step, int64_t padding) {
  Axis axis{step, 1, {}};
  for (int64_t k = 0; k < kernel; ++k) axis.entries.push_back({0, k - padding, uint64_t(1) << k});
  return axis;
}

// y[step i + k - padding] += w[k] x[i], by the result: of y[step q + phase] those k with the phase
// of k - padding.
Axis transposed(int64_t kernel, int64_t step, int64_t padding) {
  Axis axis{1, step, {}};
  for (int64_t phase = 0; phase < step; ++phase) {
    for (int64_t k = 0; k < kernel; ++k) {
      const int64_t shift = phase + padding - k;
      if (shift % step == 0)
        axis.entries.push_back({phase, floor_div(shift, step), uint64_t(1) << k});
    }
  }
  return axis;
}

// y[2 q + phase] += w[k] x[(2 q + phase + k - padding) / 2]: neighbors that read the same pixel
// become one.
Axis upsampled(int64_t kernel, int64_t padding) {
  Axis axis{1, 2, {}};
  for (int64_t phase = 0; phase < 2; ++phase) {
    for (int64_t k = 0; k < kernel; ++k) {
      const int64_t offset = floor_div(phase + k - padding, 2);
      const bool same = !axis.entries.empty() && axis.entries.back().phase == phase &&
                        axis.entries.back().offset == offset;
      if (!same) axis.entries.push_back({phase, offset, 0});
      axis.entries.back().taps |= uint64_t(1) << k;
    }
  }
  return axis;
}

// x[i] is read by y[2 (i - offset) + phase].
Axis upsampled_gradient(int64_t kernel, int64_t padding) {
  Axis axis{2, 1, {}};
  for (const AxisTap& e : upsampled(kernel, padding).entries)
    axis.entries.push_back({0, e.phase - 2 * e.offset, e.taps});
  return axis;
}

// Taps of the weight are numbered row by row.
uint64_t both(uint64_t rows, uint64_t columns, int64_t kernel_width) {
  uint64_t taps = 0;
  for (int64_t row = 0; rows >> row != 0; ++row) {
    if (rows >> row & 1) taps |= columns << row * kernel_width;
  }
  return taps;
}

std::optional<ConvTaps> product(const Axis& rows, const Axis& columns, int64_t kernel_width) {
  if (rows.in_step != columns.in_step || rows.out_step != columns.out_step || rows.out_step > 2 ||
      rows.in_step > 2 || rows.entries.size() * columns.entries.size() > kMostTaps)
    return {};
  ConvTaps t = {};
  t.in_step = static_cast<int>(rows.in_step), t.out_step = static_cast<int>(rows.out_step);
  int64_t top = 0, left = 0, bottom = 0, right = 0;
  for (int phase = 0; phase < t.phases(); ++phase) {
    t.first[phase] = t.count;
    for (const AxisTap& r : rows.entries) {
      for (const AxisTap& c : columns.entries) {
        if (r.phase != phase / t.out_step || c.phase != phase % t.out_step) continue;
        if (std::max({r.offset, -r.offset, c.offset, -c.offset}) > 100) return {};  // int8
        t.dy[t.count] = static_cast<int8_t>(r.offset);
        t.dx[t.count] = static_cast<int8_t>(c.offset);
        t.sources[t.count++] = both(r.taps, c.taps, kernel_width);
        top = std::min(top, r.offset), bottom = std::max(bottom, r.offset);
        left = std::min(left, c.offset), right = std::max(right, c.offset);
      }
    }
  }
  t.first[t.phases()] = t.count;
  t.top = static_cast<int>(top), t.left = static_cast<int>(left);
  t.height = static_cast<int>(bottom - top + 1), t.width = static_cast<int>(right - left + 1);
  return t;
}

bool has_table(const ConvOptions& o, int64_t kernel_height, int64_t kernel_width, bool upsampled) {
  const bool plain = o.stride[0] == 1 && o.stride[1] == 1 && !o.transposed;
  return o.groups == 1 && o.dilation[0] == 1 && o.dilation[1] == 1 &&
         kernel_height * kernel_width <= kMostTaps && (plain || !upsampled);
}

}  // namespace

std::optional<ConvTaps> forward_taps(const ConvOptions& o, int64_t kernel_height,
                                     int64_t kernel_width, bool is_upsampled) {
  if (!has_table(o, kernel_height, kernel_width, is_upsampled)) return {};
  const auto axis = [&](int i, int64_t kernel) {
    if (is_upsampled) return upsampled(kernel, o.padding[2 * i]);
    return o.transposed ? transposed(kernel, o.stride[i], o.padding[2 * i])
                        : strided(kernel, o.stride[i], o.padding[2 * i]);
  };
  return product(axis(0, kernel_height), axis(1, kernel_width), kernel_width);
}

std::optional<ConvTaps> gradient_taps(const ConvOptions& o, int64_t kernel_height,
                                      int64_t kernel_width, bool is_upsampled) {
  if (!has_table(o, kernel_height, kernel_width, is_upsampled)) return {};
  const auto axis = [&](int i, int64_t kernel) {
    if (is_upsampled) return upsampled_gradient(kernel, o.padding[2 * i]);
    return o.transposed ? strided(kernel, o.stride[i], o.padding[2 * i])
                        : transposed(kernel, o.stride[i], o.padding[2 * i]);
  };
  return product(axis(0, kernel_height), axis(1, kernel_width), kernel_width);
}

}  // namespace colorseg::cuda

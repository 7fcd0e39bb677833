// Batch norm's per-channel arithmetic, forward and backward.
//
// Memory bound: each kernel reads its inputs once from a cache-resident run.  Values are treated
// kLanes at a time with constants per lane: as many whole pixels as fit side by side (64 pixels of
// a plane, 2 of 32 interleaved channels), or 64 of many channels of one pixel.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace colorseg::cpu::COLORSEG_ISA {

// `rows` groups of `lanes` values, `stride` apart from `offset` on.  Lane l is of channel
// first + l % channels, where channels is at most kLanes.
struct LaneGroup {
  int64_t first, channels, lanes, rows, stride, offset;
};

template <typename Body>
inline void for_each_lane_group(const Run& run, Body body) {
  if (run.channels <= kLanes) {
    const int64_t side_by_side = kLanes / run.channels, lanes = side_by_side * run.channels;
    const int64_t rows = run.pixels / side_by_side, rest = run.pixels % side_by_side;
    if (rows > 0) body(LaneGroup{0, run.channels, lanes, rows, lanes, 0});
    if (rest > 0) body(LaneGroup{0, run.channels, rest * run.channels, 1, lanes, rows * lanes});
    return;
  }
  for (int64_t c = 0; c < run.channels; c += kLanes) {
    const int64_t lanes = run.channels - c < kLanes ? run.channels - c : kLanes;
    body(LaneGroup{c, lanes, lanes, run.pixels, run.channels, c});
  }
}

// The same constant in every lane: planes, whose constants then stay in registers.
template <typename T>
struct Same {
  T value;
  T operator[](int64_t) const { return value; }
};

template <typename T>
struct SameAffine {
  Same<T> center, scale, offset;
  SameAffine(const Affine<T>& a, const LaneGroup&)
      : center{*a.center}, scale{*a.scale}, offset{*a.offset} {}
};

// Calls body(count, position) for every row of the group; count is a constant where the lanes are
// full, which is what the vectoriser wants.
template <typename Body>
inline void for_each_row(const LaneGroup& g, Body body) {
  if (g.lanes == kLanes) {
    for (int64_t r = 0; r < g.rows; ++r) body(kLanes, g.offset + r * g.stride);
  } else {
    for (int64_t r = 0; r < g.rows; ++r) body(g.lanes, g.offset + r * g.stride);
  }
}

// A per-channel constant, repeated for every lane of the group.
template <typename T>
struct Lanes {
  T value[kLanes];
  Lanes(const T* per_channel, const LaneGroup& g) {
    if (g.channels == 1) {
      for (int64_t l = 0; l < kLanes; ++l) value[l] = per_channel[g.first];
      return;
    }
    for (int64_t l = 0; l < g.lanes; l += g.channels) {
      for (int64_t c = 0; c < g.channels; ++c) value[l + c] = per_channel[g.first + c];
    }
  }
  T operator[](int64_t lane) const { return value[lane]; }
};

template <typename T>
struct LaneAffine {
  Lanes<T> center, scale, offset;
  LaneAffine(const Affine<T>& a, const LaneGroup& g)
      : center(a.center, g), scale(a.scale, g), offset(a.offset, g) {}
};

// Adds what the lanes have summed up to sums [channels]; one channel's lanes eight at a time, which
// is faster than one after the other.
template <typename T>
inline void add_lanes(const T* lane, const LaneGroup& g, double* sums) {
  if (g.channels > 1) {
    for (int64_t l = 0; l < g.lanes; l += g.channels) {
      for (int64_t c = 0; c < g.channels; ++c) sums[g.first + c] += lane[l + c];
    }
    return;
  }
  double partial[8] = {};
  for (int64_t l = 0; l < kLanes; l += 8) {
    for (int64_t j = 0; j < 8; ++j) partial[j] += lane[l + j];
  }
  sums[g.first] += ((partial[0] + partial[1]) + (partial[2] + partial[3])) +
                   ((partial[4] + partial[5]) + (partial[6] + partial[7]));
}

template <typename T>
inline T finite_or_zero(T x) {
  return x - x == T(0) ? x : T(0);
}

template <typename T>
struct LaneShift : Lanes<T> {
  LaneShift(const T* x, const LaneGroup& g) : Lanes<T>(x, g) {
    for (int64_t l = 0; l < g.lanes; ++l) this->value[l] = finite_or_zero(this->value[l]);
  }
};

template <typename T>
struct SameShift : Same<T> {
  SameShift(const T* x, const LaneGroup&) : Same<T>{finite_or_zero(*x)} {}
};

// Mean and M2 (sum of squared deviations) per channel, from sums shifted by the first value.
template <typename Shift, typename T>
void moments_with(Run run, const T* x, double* mean, double* m2) {
  for (int64_t c = 0; c < run.channels; ++c) mean[c] = m2[c] = 0;
  for_each_lane_group(run, [&](const LaneGroup& g) {
    Shift shift(x, g);
    T sum[kLanes] = {}, square[kLanes] = {};
    for_each_row(g, [&](int64_t count, int64_t at) {
      const T* __restrict line = x + at;
      for (int64_t l = 0; l < count; ++l) {
        const T d = line[l] - shift[l];
        sum[l] += d;
        square[l] += d * d;
      }
    });
    add_lanes(sum, g, mean);
    add_lanes(square, g, m2);
  });
  for (int64_t c = 0; c < run.channels; ++c) {  // from shifted sums to moments
    const double sum = mean[c];
    mean[c] = double(finite_or_zero(x[c])) + sum / double(run.pixels);
    m2[c] -= sum * sum / double(run.pixels);
    m2[c] = m2[c] < 0 ? 0 : m2[c];  // rounding only; NaN stays
  }
}

template <typename T>
void moments(Run run, const T* x, double* mean, double* m2) {
  if (run.channels == 1) return moments_with<SameShift<T>>(run, x, mean, m2);
  moments_with<LaneShift<T>>(run, x, mean, m2);
}

template <typename Constants, typename T>
void affine_relu_with(Run run, const T* x, Affine<T> affine, bool relu, T* y) {
  for_each_lane_group(run, [&](const LaneGroup& g) {
    const Constants a(affine, g);
    for_each_row(g, [&](int64_t count, int64_t at) {
      for (int64_t l = 0; l < count; ++l) {
        const T v = (x[at + l] - a.center[l]) * a.scale[l] + a.offset[l];
        y[at + l] = relu & (v < T(0)) ? T(0) : v;  // keeps NaN, as torch does
      }
    });
  });
}

template <typename T>
void affine_relu(Run run, const T* x, Affine<T> affine, bool relu, T* y) {
  if (run.channels == 1) return affine_relu_with<SameAffine<T>>(run, x, affine, relu, y);
  affine_relu_with<LaneAffine<T>>(run, x, affine, relu, y);
}

// y <- relu(y + residual); a value at a time, so that lines of any layout will do.
template <typename T>
void add_relu(int64_t count, const T* __restrict residual, bool relu, T* __restrict y) {
  for (int64_t i = 0; i < count; ++i) {
    const T v = y[i] + residual[i];
    y[i] = relu & (v < T(0)) ? T(0) : v;
  }
}

// The gradient that passes the ReLU that made y: a NaN lets it through, as in torch.
template <typename T>
void relu_backward(int64_t count, const T* __restrict grad, const T* __restrict y,
                   T* __restrict passed) {
  for (int64_t i = 0; i < count; ++i) passed[i] = y[i] <= T(0) ? T(0) : grad[i];
}

// The gradient that passes the ReLU: zero where its input is not positive (NaN lets it through, as
// in torch).
template <typename T>
inline T relu_gradient(T grad, T x_minus_center, T scale, T offset, bool relu) {
  return relu & (x_minus_center * scale + offset <= T(0)) ? T(0) : grad;
}

template <typename Constants, typename T>
void backward_sums_with(Run run, const T* grad, const T* x, Affine<T> affine, bool relu,
                        double* sum_g, double* sum_gx) {
  for (int64_t c = 0; c < run.channels; ++c) sum_g[c] = sum_gx[c] = 0;
  for_each_lane_group(run, [&](const LaneGroup& g) {
    const Constants a(affine, g);
    T sum[kLanes] = {}, product[kLanes] = {};
    for_each_row(g, [&](int64_t count, int64_t at) {
      const T* __restrict dy = grad + at, * __restrict line = x + at;
      for (int64_t l = 0; l < count; ++l) {
        const T d = line[l] - a.center[l];
        const T passed = relu_gradient(dy[l], d, a.scale[l], a.offset[l], relu);
        sum[l] += passed;
        product[l] += passed * d;
      }
    });
    add_lanes(sum, g, sum_g);
    add_lanes(product, g, sum_gx);
  });
}

template <typename T>
void backward_sums(Run run, const T* grad, const T* x, Affine<T> affine, bool relu, double* sum_g,
                   double* sum_gx) {
  if (run.channels == 1)
    return backward_sums_with<SameAffine<T>>(run, grad, x, affine, relu, sum_g, sum_gx);
  backward_sums_with<LaneAffine<T>>(run, grad, x, affine, relu, sum_g, sum_gx);
}

// Without batch statistics x has no part in the gradient, whatever its value: 0 * NaN must not get
// in.
template <typename Constants, typename T>
void backward_apply_with(Run run, const T* grad, const T* x, Affine<T> affine, bool relu,
                         Affine<T> out, bool statistics, T* grad_x) {
  for_each_lane_group(run, [&](const LaneGroup& g) {
    const Constants a(affine, g), o(out, g);
    for_each_row(g, [&](int64_t count, int64_t at) {
      for (int64_t l = 0; l < count; ++l) {
        const T d = x[at + l] - a.center[l];
        const T passed = relu_gradient(grad[at + l], d, a.scale[l], a.offset[l], relu);
        const T direct = o.scale[l] * passed, indirect = o.center[l] * d + o.offset[l];
        grad_x[at + l] = statistics ? direct + indirect : direct;
      }
    });
  });
}

template <typename T>
void backward_apply(Run run, const T* grad, const T* x, Affine<T> affine, bool relu, Affine<T> out,
                    bool statistics, T* grad_x) {
  if (run.channels == 1)
    return backward_apply_with<SameAffine<T>>(run, grad, x, affine, relu, out, statistics, grad_x);
  backward_apply_with<LaneAffine<T>>(run, grad, x, affine, relu, out, statistics, grad_x);
}

}  // namespace colorseg::cpu::COLORSEG_ISA

// Batch norm's per-channel arithmetic, forward and backward.
//
// Memory bound: each kernel reads its inputs once from a cache-resident run.  Values are treated
// kLanes at a time with constants per lane.  In a channels_last run the lanes are channels; a plane
// is cut into rows of kLanes pixels whose lanes share the constants of the one channel.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace colorseg::cpu::COLORSEG_ISA {

// Calls body(first_channel, lanes, rows, stride, offset): `rows` groups of `lanes` values, `stride`
// apart.
template <typename Body>
inline void for_each_lane_group(const Run& run, Body body) {
  if (run.channels == 1) {
    const int64_t rows = run.pixels / kLanes, rest = run.pixels % kLanes;
    if (rows > 0) body(0, kLanes, rows, kLanes, 0);
    if (rest > 0) body(0, rest, int64_t(1), kLanes, rows * kLanes);
    return;
  }
  for (int64_t c = 0; c < run.channels; c += kLanes) {
    const int64_t lanes = run.channels - c < kLanes ? run.channels - c : kLanes;
    body(c, lanes, run.pixels, run.channels, c);
  }
}

// The affine's constants for kLanes lanes from channel `first` on; one channel is spread over all
// lanes.
template <typename T>
struct LaneAffine {
  T center[kLanes], scale[kLanes], offset[kLanes];
  LaneAffine(const Affine<T>& a, bool plane, int64_t first, int64_t lanes) {
    for (int64_t l = 0; l < lanes; ++l) {
      const int64_t c = plane ? 0 : first + l;
      center[l] = a.center[c];
      scale[l] = a.scale[c];
      offset[l] = a.offset[c];
    }
  }
};

// kLanes is a compile-time constant in the full groups, which is what the vectoriser wants.
template <typename Body>
inline void dispatch_lanes(int64_t lanes, Body body) {
  if (lanes == kLanes) {
    body(kLanes);
  } else {
    body(lanes);
  }
}

// Mean and M2 (sum of squared deviations) per channel, from sums shifted by the first value.
template <typename T>
void moments(Run run, const T* x, double* mean, double* m2) {
  const bool plane = run.channels == 1;
  if (plane) mean[0] = m2[0] = 0;
  const auto shift_of = [](T first) {
    return first - first == T(0) ? first : T(0);
  };  // 0 if not finite
  for_each_lane_group(run,
                      [&](int64_t c, int64_t lanes, int64_t rows, int64_t stride, int64_t offset) {
                        T shift[kLanes], sum[kLanes] = {}, square[kLanes] = {};
                        for (int64_t l = 0; l < lanes; ++l)
                          shift[l] = shift_of(plane ? x[0] : x[c + l]);
                        dispatch_lanes(lanes, [&](int64_t count) {
                          for (int64_t r = 0; r < rows; ++r) {
                            const T* __restrict line = x + offset + r * stride;
                            for (int64_t l = 0; l < count; ++l) {
                              const T d = line[l] - shift[l];
                              sum[l] += d;
                              square[l] += d * d;
                            }
                          }
                        });
                        for (int64_t l = 0; l < lanes; ++l) {
                          const int64_t channel = plane ? 0 : c + l;
                          mean[channel] = plane ? mean[0] + sum[l] : double(sum[l]);
                          m2[channel] = plane ? m2[0] + square[l] : double(square[l]);
                        }
                      });
  for (int64_t c = 0; c < run.channels; ++c) {  // from shifted sums to moments
    const double sum = mean[c];
    mean[c] = double(shift_of(x[c])) + sum / double(run.pixels);
    m2[c] -= sum * sum / double(run.pixels);
    m2[c] = m2[c] < 0 ? 0 : m2[c];  // rounding only; NaN stays
  }
}

template <typename T>
void affine_relu(Run run, const T* x, Affine<T> affine, bool relu, T* y) {
  for_each_lane_group(run,
                      [&](int64_t c, int64_t lanes, int64_t rows, int64_t stride, int64_t offset) {
                        const LaneAffine<T> a(affine, run.channels == 1, c, lanes);
                        dispatch_lanes(lanes, [&](int64_t count) {
                          for (int64_t r = 0; r < rows; ++r) {
                            const T* line = x + offset + r * stride;
                            T* out = y + offset + r * stride;
                            for (int64_t l = 0; l < count; ++l) {
                              const T v = (line[l] - a.center[l]) * a.scale[l] + a.offset[l];
                              out[l] = relu & (v < T(0)) ? T(0) : v;  // keeps NaN, as torch does
                            }
                          }
                        });
                      });
}

// The gradient that passes the ReLU: zero where its input is not positive (NaN lets it through, as
// in torch).
template <typename T>
inline T relu_gradient(T grad, T x_minus_center, T scale, T offset, bool relu) {
  return relu & (x_minus_center * scale + offset <= T(0)) ? T(0) : grad;
}

template <typename T>
void backward_sums(Run run, const T* grad, const T* x, Affine<T> affine, bool relu, double* sum_g,
                   double* sum_gx) {
  const bool plane = run.channels == 1;
  for (int64_t c = 0; c < run.channels; ++c) sum_g[c] = sum_gx[c] = 0;
  for_each_lane_group(
      run, [&](int64_t c, int64_t lanes, int64_t rows, int64_t stride, int64_t offset) {
        const LaneAffine<T> a(affine, plane, c, lanes);
        T sum[kLanes] = {}, product[kLanes] = {};
        dispatch_lanes(lanes, [&](int64_t count) {
          for (int64_t r = 0; r < rows; ++r) {
            const T* __restrict g = grad + offset + r * stride;
            const T* __restrict line = x + offset + r * stride;
            for (int64_t l = 0; l < count; ++l) {
              const T d = line[l] - a.center[l];
              const T passed = relu_gradient(g[l], d, a.scale[l], a.offset[l], relu);
              sum[l] += passed;
              product[l] += passed * d;
            }
          }
        });
        for (int64_t l = 0; l < lanes; ++l) {
          sum_g[plane ? 0 : c + l] += sum[l];
          sum_gx[plane ? 0 : c + l] += product[l];
        }
      });
}

// Without batch statistics x has no part in the gradient, whatever its value: 0 * NaN must not get
// in.
template <typename T>
void backward_apply(Run run, const T* grad, const T* x, Affine<T> affine, bool relu, Affine<T> out,
                    bool statistics, T* grad_x) {
  for_each_lane_group(run, [&](int64_t c, int64_t lanes, int64_t rows, int64_t stride,
                               int64_t offset) {
    const LaneAffine<T> a(affine, run.channels == 1, c, lanes), o(out, run.channels == 1, c, lanes);
    dispatch_lanes(lanes, [&](int64_t count) {
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = offset + r * stride;
        for (int64_t l = 0; l < count; ++l) {
          const T d = x[at + l] - a.center[l];
          const T direct =
              o.scale[l] * relu_gradient(grad[at + l], d, a.scale[l], a.offset[l], relu);
          const T indirect = o.center[l] * d + o.offset[l];
          grad_x[at + l] = statistics ? direct + indirect : direct;
        }
      }
    });
  });
}

}  // namespace colorseg::cpu::COLORSEG_ISA

// Running statistics of batch norms: what the operator takes, and the new value of one entry.
#pragma once
#include "common.h"

namespace colorseg {

// Of one batch norm: its running mean and variance, how many batches they are of if that is
// counted, and mean and biased variance of a batch of `count` values per channel; one without
// values is counted, and moves nothing.
struct RunningStatistics {
  Tensor mean, var;
  OptionalTensor tracked;
  Tensor batch_mean, batch_var;
  int64_t count;
  double momentum;  // negative: of the cumulative average

  double unbiased() const { return double(count) / double(count - 1); }
};

inline void check_running(const char* name, const Tensor& t, const Tensor& batch) {
  const ScalarType dtype = t.scalar_type();
  COLORSEG_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double ||
                     dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
                 name, " must be float32, float64, bfloat16 or float16, got ", toString(dtype));
  COLORSEG_CHECK(t.is_contiguous() && t.dim() == 1 && t.size(0) == batch.size(0), name,
                 " must be contiguous, of shape (", batch.size(0), "), got ", shape_of(t));
  check_same_device(name, t, batch, "the batch");
}

inline std::vector<RunningStatistics> read_running(const std::vector<Tensor>& running,
                                                   const std::vector<Tensor>& batch,
                                                   const Ints& counts,
                                                   const std::vector<double>& momenta) {
  const size_t layers = counts.size();
  COLORSEG_CHECK(
      running.size() == 3 * layers && batch.size() == 2 * layers && momenta.size() == layers,
      "update_running_statistics takes 3 running tensors, 2 of the batch, a count and "
      "a momentum for each batch norm");
  std::vector<RunningStatistics> read;
  for (size_t i = 0; i < layers; ++i) {
    const Tensor* r = &running[3 * i];
    const Tensor* b = &batch[2 * i];
    const bool counted = r[2].dim() == 0;
    for (int part = 0; part < 2; ++part) {
      COLORSEG_CHECK(b[part].scalar_type() == ScalarType::Double && b[part].is_contiguous() &&
                         b[part].dim() == 1,
                     "statistics of a batch must be float64 vectors, got ", shape_of(b[part]));
      check_running(part ? "running_var" : "running_mean", r[part], b[part]);
    }
    if (counted) {
      COLORSEG_CHECK(r[2].scalar_type() == ScalarType::Long,
                     "num_batches_tracked must be int64, got ", toString(r[2].scalar_type()));
      check_same_device("num_batches_tracked", r[2], r[0], "running_mean");
    }
    COLORSEG_CHECK(momenta[i] >= 0 || counted,
                   "a cumulative average needs the number of batches tracked");
    read.push_back({r[0], r[1], counted ? OptionalTensor(r[2]) : OptionalTensor(), b[0], b[1],
                    counts[i], momenta[i]});
  }
  return read;
}

}  // namespace colorseg

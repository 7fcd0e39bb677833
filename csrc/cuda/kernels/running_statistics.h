// The torch-free kernel behind update_running_statistics.
#pragma once
#include "kernels.h"

namespace colorseg::cuda {

enum class RunningType { kFloat, kDouble, kHalf, kBFloat16 };

// Of a vector of running statistics, and that of the batch.
struct RunningVector {
  void* running;
  RunningType type;
  const double* batch;
};

// See csrc/running_statistics.h.
struct RunningUpdate {
  RunningVector mean, var;
  int64_t* tracked;  // or null
  int channels;
  double momentum, unbiased;
};

constexpr int kMostRunningUpdates = 16;  // of a launch
struct RunningUpdates {
  RunningUpdate updates[kMostRunningUpdates];
  int count;
};

void update_running(const RunningUpdates&, Stream);

}  // namespace colorseg::cuda

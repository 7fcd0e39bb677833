// See kernels/running_statistics.cu.
#include "../running_statistics.h"

#include "device.h"
#include "kernels/running_statistics.h"

namespace colorseg::cuda {
namespace {

RunningVector vector_of(const Tensor& running, const Tensor& batch) {
  const ScalarType t = running.scalar_type();
  const RunningType type = t == ScalarType::Double     ? RunningType::kDouble
                           : t == ScalarType::Half     ? RunningType::kHalf
                           : t == ScalarType::BFloat16 ? RunningType::kBFloat16
                                                       : RunningType::kFloat;
  return {running.mutable_data_ptr(), type, static_cast<const double*>(batch.const_data_ptr())};
}

void update_running_statistics(const std::vector<Tensor>& running, const std::vector<Tensor>& batch,
                               const Ints& counts, const std::vector<double>& momenta) {
  const std::vector<RunningStatistics> all = read_running(running, batch, counts, momenta);
  if (all.empty()) return;
  const OnDevice device(all[0].mean);
  RunningUpdates updates = {};
  for (size_t i = 0; i < all.size(); ++i) {
    const RunningStatistics& s = all[i];
    updates.updates[updates.count++] = {vector_of(s.mean, s.batch_mean),
                                        vector_of(s.var, s.batch_var),
                                        s.tracked ? pointer<int64_t>(*s.tracked) : nullptr,
                                        s.count == 0 ? 0 : static_cast<int>(s.mean.size(0)),
                                        s.momentum,
                                        s.unbiased()};
    if (updates.count < kMostRunningUpdates && i + 1 < all.size()) continue;
    update_running(updates, device.stream());
    updates.count = 0;
  }
}

}  // namespace
}  // namespace colorseg::cuda

STABLE_TORCH_LIBRARY_IMPL(colorseg, COLORSEG_CUDA_KEY, m) {
  m.impl("update_running_statistics", TORCH_BOX(&colorseg::cuda::update_running_statistics));
}

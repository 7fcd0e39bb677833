// Moves running statistics of batch norms towards those of a batch, of a whole network in one call.
#include "../running_statistics.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace colorseg::cpu {
namespace {

template <typename T>
void move(const Tensor& running, const Tensor& batch, double momentum, double scale) {
  T* to = static_cast<T*>(running.mutable_data_ptr());
  const auto* from = static_cast<const double*>(batch.const_data_ptr());
  for (int64_t c = 0; c < running.size(0); ++c)
    to[c] = static_cast<T>((1 - momentum) * double(to[c]) + momentum * scale * from[c]);
}

void move_to(const Tensor& running, const Tensor& batch, double momentum, double scale) {
  switch (running.scalar_type()) {
    case ScalarType::Double:
      return move<double>(running, batch, momentum, scale);
    case ScalarType::Half:
      return move<torch::headeronly::Half>(running, batch, momentum, scale);
    case ScalarType::BFloat16:
      return move<torch::headeronly::BFloat16>(running, batch, momentum, scale);
    default:
      return move<float>(running, batch, momentum, scale);
  }
}

void update_running_statistics(const std::vector<Tensor>& running, const std::vector<Tensor>& batch,
                               const Ints& counts, const std::vector<double>& momenta) {
  for (const RunningStatistics& s : read_running(running, batch, counts, momenta)) {
    auto* tracked = s.tracked ? static_cast<int64_t*>(s.tracked->mutable_data_ptr()) : nullptr;
    if (tracked) ++*tracked;
    if (s.count == 0) continue;
    const double momentum = s.momentum < 0 ? 1.0 / double(*tracked) : s.momentum;
    move_to(s.mean, s.batch_mean, momentum, 1);
    move_to(s.var, s.batch_var, momentum, s.unbiased());
  }
}

}  // namespace
}  // namespace colorseg::cpu

STABLE_TORCH_LIBRARY_IMPL(colorseg, CPU, m) {
  m.impl("update_running_statistics", TORCH_BOX(&colorseg::cpu::update_running_statistics));
}

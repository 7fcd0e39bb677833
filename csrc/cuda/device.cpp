#include "device.h"

#include "../color_cross_entropy.h"

namespace colorseg::cuda {

void check_label_values(const Tensor& target, int64_t classes,
                        std::optional<int64_t> ignore_index) {
  if (!debugging() || target.dim() != 3) return;
  const Tensor labels = torch::stable::contiguous(
      torch::stable::to(target, ScalarType::Long, std::nullopt,
                        torch::stable::Device(torch::headeronly::DeviceType::CPU)));
  const int64_t* label = labels.const_data_ptr<int64_t>();
  int64_t bad = 0, first = 0;
  for (int64_t i = 0; i < labels.numel(); ++i) {
    if ((label[i] >= 0 && label[i] < classes) || label[i] == ignore_index) continue;
    if (bad++ == 0) first = label[i];
  }
  check_label_range(bad, first, classes, ignore_index.has_value(), ignore_index.value_or(0));
}

}  // namespace colorseg::cuda

#include "conv_scratch.h"

#include <algorithm>
#include <cstring>

namespace colorseg::cpu {
namespace {

float* first_aligned(float* at) {
  return at + (kAlign - reinterpret_cast<uintptr_t>(at) / sizeof(float) % kAlign) % kAlign;
}

int64_t winograd_scratch(const ConvPlan& p, bool backward) {
  if (!p.winograd) return 0;
  const int64_t product = isa().conv.winograd_scratch(std::max(p.x_channels, p.y_channels));
  if (!backward) return product;
  return std::max(product, isa().conv.winograd_correlation_scratch(p.x_channels + p.y_channels));
}

// Gaps between lines and images must be zero; y is not read in forward.
void make_room(const ConvPlan& p, bool backward, ConvScratch& s) {
  const Geometry& g = p.geometry;
  const int64_t x = p.x_channels * g.x_phases() * p.length;
  const int64_t y = p.y_channels * g.y_phases() * p.length;
  const int64_t winograd = winograd_scratch(p, backward);
  const int64_t lines = 2 * (p.rows_per_piece + 2 * g.rows.reach + 4);
  const int64_t plane =
      aligned(lines * (std::max(g.columns.x_size, g.columns.y_size) + 1) + kSlack);
  s.storage.resize(
      std::max<size_t>(s.storage.size(), x + y + std::max(x, y) + winograd + 3 * plane + kAlign));
  float* at = first_aligned(s.storage.data());
  const auto flat = [&](int64_t channels, int64_t phases, int64_t size) {
    const FlatMap map{at + p.margin, channels, phases * p.length, p.length};
    at += size;
    return map;
  };
  std::memset(at, 0, (backward ? x + y : x) * sizeof(float));
  s.x = flat(p.x_channels, g.x_phases(), x);
  s.y = flat(p.y_channels, g.y_phases(), y);
  s.result = flat(0, 0, std::max(x, y));
  s.winograd = at;
  for (int i = 0; i < 3; ++i) s.plane[i] = at + winograd + i * plane;
  s.codes.resize(std::max<size_t>(s.codes.size(), plane));
}

}  // namespace

ConvScratch& scratch_of(const ConvPlan& p, bool backward) {
  thread_local ConvScratch scratch;
  make_room(p, backward, scratch);
  return scratch;
}

}  // namespace colorseg::cpu

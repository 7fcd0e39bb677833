// How the convolutions of many channels are cut into parts, and the memory that a part works in.
#pragma once
#include <algorithm>
#include <vector>

#include "../common.h"

namespace colorseg::cpu {

// Pixels, squares or lattices at a time: they stay in the caches.
constexpr int64_t kMostRows = 144;

struct Part {
  int64_t first, count;
};
inline Part part_of(int64_t all, int64_t i, int64_t parts) {
  return {i * all / parts, (i + 1) * all / parts - i * all / parts};
}

// Calls body(first, count) for parts of nearly the same size, as many for each thread.
template <typename Body>
void for_each_part(int64_t rows, int64_t most, const Body& body) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t parts = std::min(rows, threads * ((rows + threads * most - 1) / (threads * most)));
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Part part = part_of(rows, i, parts);
      body(part.first, part.count);
    }
  });
}

// Memory of this thread until the next call, uninitialized.
inline float* thread_scratch(int64_t count) {
  thread_local std::vector<float> storage;
  if (storage.size() < static_cast<size_t>(count)) storage.resize(count);
  return storage.data();
}

}  // namespace colorseg::cpu

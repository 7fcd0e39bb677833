// Included in front of every source of a build with ThreadSanitizer: torch's parallel_for runs on
// an OpenMP that the sanitizer does not know, so that every loop looks like a race.
#pragma once
#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

#define torch_parallel_for colorseg_parallel_for

// Ranges of at least `grain` for up to four threads.
extern "C" inline int32_t colorseg_parallel_for(int64_t begin, int64_t end, int64_t grain,
                                                void (*body)(int64_t, int64_t, void*),
                                                void* context) {
  const int64_t count = end - begin;
  if (count <= 0) return 0;
  const int64_t threads = std::clamp<int64_t>(count / std::max<int64_t>(grain, 1), 1, 4);
  std::vector<std::exception_ptr> errors(threads);
  std::vector<std::thread> others;
  const auto part = [&](int64_t i) {
    try {
      body(begin + i * count / threads, begin + (i + 1) * count / threads, context);
    } catch (...) {
      errors[i] = std::current_exception();
    }
  };
  for (int64_t i = 1; i < threads; ++i) others.emplace_back(part, i);
  part(0);
  for (std::thread& thread : others) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  return 0;
}

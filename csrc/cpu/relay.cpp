#include "relay.h"

#include <atomic>
#include <memory>
#include <thread>

namespace colorseg::cpu {
namespace {

constexpr int kSpins = 2000;  // before a waiting thread offers its core to others

struct alignas(64) Counter {  // a cache line of its own
  std::atomic<int64_t> value;
};

// Of the calling thread, kept from call to call, and zero.
Counter* counters_of(size_t count) {
  thread_local std::unique_ptr<Counter[]> counters;
  thread_local size_t room = 0;
  if (room < count) counters.reset(new Counter[count]), room = count;
  for (size_t i = 0; i < count; ++i) counters[i].value.store(0, std::memory_order_relaxed);
  return counters.get();
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One layer as one of the threads sees it.
class Leg {
 public:
  Leg(int64_t pieces, int64_t thread, int64_t threads, Counter* taken, Counter& done)
      : pieces_(pieces), thread_(thread), threads_(threads), taken_(taken), done_(done.value) {}

  int64_t next() {
    for (; from_ < threads_; ++from_) {
      const int64_t owner = (thread_ + from_) % threads_, piece = take(owner);
      if (piece < 0) continue;
      if (piece + 1 == begin(owner + 1)) ++from_;  // the last: no use asking again
      return ++held_, piece;
    }
    if (held_ > 0) done_.fetch_add(held_, std::memory_order_release);
    for (int spins = 0; done_.load(std::memory_order_acquire) < pieces_;) {
      if (spins < kSpins)
        ++spins, pause();
      else
        std::this_thread::yield();
    }
    return -1;
  }

 private:
  int64_t begin(int64_t thread) const { return pieces_ * thread / threads_; }

  // One of the pieces that belong to `thread`, or -1.
  int64_t take(int64_t thread) {
    std::atomic<int64_t>& taken = taken_[thread].value;
    const int64_t count = begin(thread + 1) - begin(thread);
    if (taken.load(std::memory_order_relaxed) >= count) return -1;
    const int64_t i = taken.fetch_add(1, std::memory_order_relaxed);
    return i < count ? begin(thread) + i : -1;
  }

  const int64_t pieces_, thread_, threads_;
  Counter* const taken_;  // [threads]
  std::atomic<int64_t>& done_;
  int64_t held_ = 0;  // pieces that this thread took
  int64_t from_ = 0;  // threads behind this one, whose pieces it takes now: its own first
};

}  // namespace

void run_relay(const std::vector<int64_t>& pieces, int64_t threads,
               FunctionRef<void(int64_t layer, NextPiece next)> run) {
  const auto layers = static_cast<int64_t>(pieces.size());
  Counter* const done = counters_of(layers * (threads + 1));
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) {
      for (int64_t i = 0; i < layers; ++i) {
        Leg leg(pieces[i], thread, threads, done + layers + i * threads, done[i]);
        run(i, [&] { return leg.next(); });
      }
    }
  });
}

}  // namespace colorseg::cpu

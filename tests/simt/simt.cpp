#include "simt.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "the emulation switches stacks by hand, which it can on x86-64 only"
#endif

// Puts the registers that a call keeps on the stack and its pointer at *from, and goes on where
// `to` left off.  (swapcontext does the same with a system call, at twenty times the price.)
extern "C" void simt_switch(void** from, void* to);
__asm__(
    ".text\n"
    "simt_switch:\n"
    "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    "mov %rsp, (%rdi)\n"
    "mov %rsi, %rsp\n"
    "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n"
    "ret\n");

namespace simt {
namespace {

constexpr size_t kStackBytes = 128 * 1024, kSavedRegisters = 6;

// A stack, where it goes on, and what AddressSanitizer has to know of it.
struct Context {
  void* pointer = nullptr;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;
};

void switch_context(Context& from, Context& to, [[maybe_unused]] bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#endif
  simt_switch(&from.pointer, to.pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Copy {
  void* to;
  const void* from;
  bool inside;
};

struct Fiber {
  Context context;
  std::unique_ptr<char[]> memory{new char[kStackBytes]};
  dim3 index;
  State state = State::kDone;
  std::vector<Copy> copies;
};

// Lanes that have arrived at a warp operation, and what they brought.
struct Warp {
  unsigned arrived = 0;
  size_t size = 0;
  std::vector<std::byte> bring, result;
};

struct Block {
  dim3 grid, size, index;
  const std::function<void()>* kernel = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  std::vector<size_t> ready;
  size_t threads = 0, running = 0, live = 0, at_barrier = 0;
  std::unique_ptr<std::byte[]> shared;
  std::string failure;  // of a fiber; exceptions do not cross from one stack to another
  Context scheduler;
};

thread_local Block block;

std::mt19937& order() {
  thread_local std::mt19937 generator([] {
    const char* seed = std::getenv("COLORSEG_SIMT_SEED");
    return seed ? static_cast<unsigned>(std::strtoul(seed, nullptr, 10)) : 0u;
  }());
  return generator;
}

Fiber& running() { return *block.fibers[block.running]; }

void wait(State state) {
  Fiber& fiber = running();
  fiber.state = state;
  switch_context(fiber.context, block.scheduler, false);
}

void release(size_t thread) {
  block.fibers[thread]->state = State::kReady;
  block.ready.push_back(thread);
}

[[noreturn]] void fail_in_fiber(const std::string& what);

void enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler.stack, &block.scheduler.stack_bytes);
#endif
  (*block.kernel)();
  Fiber& fiber = running();
  if (!fiber.copies.empty()) fail_in_fiber("copies that nobody waited for");
  fiber.state = State::kDone;
  switch_context(fiber.context, block.scheduler, true);
}

void start(size_t thread) {
  if (thread == block.fibers.size()) block.fibers.push_back(std::make_unique<Fiber>());
  Fiber& fiber = *block.fibers[thread];
  fiber.context = {nullptr, fiber.memory.get(), kStackBytes};
  // the address that simt_switch returns to, above the registers that it takes off
  const auto top = reinterpret_cast<uintptr_t>(fiber.memory.get() + kStackBytes) & ~uintptr_t(15);
  auto* frame = reinterpret_cast<void**>(top) - 2;
  *frame = reinterpret_cast<void*>(&enter);
  fiber.context.pointer = frame - kSavedRegisters;
  const auto t = static_cast<unsigned>(thread);
  fiber.index =
      dim3(t % block.size.x, t / block.size.x % block.size.y, t / block.size.x / block.size.y);
  release(thread);
}

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error("simt: " + what + " in block (" + std::to_string(block.index.x) + ", " +
                           std::to_string(block.index.y) + ", " + std::to_string(block.index.z) +
                           ")");
}

[[noreturn]] void fail_in_fiber(const std::string& what) {
  block.failure = what;
  wait(State::kInWarp);
  std::abort();
}

unsigned lanes_of(size_t warp) {
  const size_t count = std::min<size_t>(block.threads - warp * kLanes, kLanes);
  return count == kLanes ? ~0u : (1u << count) - 1;
}

void run_block(size_t shared_bytes) {
  block.live = block.threads, block.at_barrier = 0;
  block.shared.reset(new std::byte[shared_bytes]);
  std::memset(block.shared.get(), 0xff, shared_bytes);  // NaN in every format
  block.warps.assign((block.threads + kLanes - 1) / kLanes, Warp());
  block.ready.clear();
  for (size_t t = 0; t < block.threads; ++t) start(t);
  while (block.live > 0) {
    if (block.ready.empty())
      fail(std::to_string(block.at_barrier) + " of " + std::to_string(block.live) +
           " threads wait at a barrier or in a warp operation for others that never come");
    std::swap(block.ready[order()() % block.ready.size()], block.ready.back());
    block.running = block.ready.back();
    block.ready.pop_back();
    switch_context(block.scheduler, running().context, false);
    if (!block.failure.empty()) fail(std::exchange(block.failure, ""));
    if (running().state == State::kDone) --block.live;
    if (block.live == 0 || block.at_barrier < block.live) continue;
    if (block.live < block.threads) fail("a barrier that some threads never came to");
    block.at_barrier = 0;
    for (size_t t = 0; t < block.threads; ++t) {
      if (block.fibers[t]->state == State::kAtBarrier) release(t);
    }
  }
}

}  // namespace

const dim3& thread_index() { return running().index; }
const dim3& block_index() { return block.index; }
const dim3& block_size() { return block.size; }
const dim3& grid_size() { return block.grid; }
void* shared_memory() { return block.shared.get(); }
int lane() { return static_cast<int>(block.running % kLanes); }

void copy_later(void* to, const void* from, bool inside) {
  running().copies.push_back({to, from, inside});
}

void finish_copies() {
  for (const Copy& copy : running().copies) {
    if (copy.inside)
      std::memcpy(copy.to, copy.from, 16);
    else
      std::memset(copy.to, 0, 16);
  }
  running().copies.clear();
}

void barrier() {
  ++block.at_barrier;
  wait(State::kAtBarrier);
}

const std::byte* gather(unsigned mask, const void* value, size_t size) {
  const size_t index = block.running / kLanes;
  Warp& warp = block.warps[index];
  if ((mask & lanes_of(index)) != lanes_of(index))
    fail_in_fiber("a warp operation without all lanes of the warp, which is not emulated,");
  if (warp.arrived == 0) warp.size = size, warp.bring.assign(size * kLanes, std::byte(0xff));
  if (warp.size != size) fail_in_fiber("lanes of a warp meet in different operations");
  std::memcpy(&warp.bring[lane() * size], value, size);
  warp.arrived |= 1u << lane();
  if (warp.arrived != lanes_of(index)) {
    wait(State::kInWarp);
    return warp.result.data();
  }
  warp.arrived = 0;
  std::swap(warp.bring, warp.result);
  for (int l = 0; l < kLanes; ++l) {
    if (l != lane() && lanes_of(index) >> l & 1) release(index * kLanes + l);
  }
  return warp.result.data();
}

static int64_t launch_count = 0;
int64_t launches() { return launch_count; }

void run(dim3 grid, dim3 size, size_t shared_bytes, const std::function<void()>& kernel) {
  ++launch_count;
  block.grid = grid, block.size = size, block.kernel = &kernel;
  block.threads = size_t(size.x) * size.y * size.z;
  if (block.threads == 0 || block.threads > 1024)
    fail("a block of " + std::to_string(block.threads) + " threads");
  std::vector<size_t> blocks(size_t(grid.x) * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), size_t(0));
  std::shuffle(blocks.begin(), blocks.end(), order());
  for (size_t b : blocks) {
    block.index =
        dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
             static_cast<unsigned>(b / grid.x / grid.y));
    run_block(shared_bytes);
  }
}

}  // namespace simt

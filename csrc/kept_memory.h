// Memory of large tensors on the CPU, kept for the next tensor of that size.
//
// A training step asks for the same maps as the step before.  A system's allocator returns blocks
// of megabytes to the system, which clears their pages anew when they are first touched: on a
// virtual machine a quarter of a step.
#pragma once
#include <cstdint>

namespace colorseg {

// Keeps at most so many bytes for later; 0: none, and all memory is torch's, as its profiler
// counts it.  Returns the limit before.
int64_t limit_kept_memory(int64_t bytes);

// Bytes that are kept now.
int64_t kept_memory();

}  // namespace colorseg

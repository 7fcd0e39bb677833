#include "precision.h"

#include <atomic>

namespace colorseg {
namespace {
std::atomic<bool> tf32_allowed{false};
}

bool allows_tf32() { return tf32_allowed.load(std::memory_order_relaxed); }
void set_allow_tf32(bool allowed) { tf32_allowed.store(allowed, std::memory_order_relaxed); }

}  // namespace colorseg

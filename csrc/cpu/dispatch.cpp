// Chooses the instruction set once: the widest that the machine has, or the one COLORSEG_CPU_ISA
// names.
#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace colorseg::cpu {
namespace {

const Isa& choose() {
  const std::vector<const Isa*> available = available_isas();
  const char* wanted = std::getenv("COLORSEG_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return *available.back();
  std::string names;
  for (const Isa* candidate : available) {
    if (candidate->name == std::string(wanted)) return *candidate;
    names += (names.empty() ? "" : ", ") + std::string(candidate->name);
  }
  throw std::runtime_error("COLORSEG_CPU_ISA=" + std::string(wanted) +
                           " is not available on this machine, which has " + names +
                           "; unset the variable to let colorseg choose");
}

}  // namespace

std::vector<const Isa*> available_isas() {
  std::vector<const Isa*> available;
  for (const Isa* candidate : {
           &scalar_isa,
#if defined(__x86_64__)
           &avx2_isa,
           &avx512_isa,
#endif
       }) {
    if (candidate->supported()) available.push_back(candidate);
  }
  return available;
}

const Isa& isa() {
  static const Isa& chosen = choose();
  return chosen;
}

const PairKernels* pair_kernels() {
#if defined(__x86_64__)
  static const bool usable = &isa() == &avx512_isa && avx512_bf16_pairs.supported();
  if (usable) return &avx512_bf16_pairs;
#endif
  return nullptr;
}

}  // namespace colorseg::cpu

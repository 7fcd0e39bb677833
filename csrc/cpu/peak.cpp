#include "peak.h"

#include <chrono>
#include <stdexcept>

#include "dispatch.h"

namespace colorseg::cpu {
namespace {

const Isa& named(const std::string& name) {
  std::string names;
  for (const Isa* candidate : available_isas()) {
    if (candidate->name == name) return *candidate;
    names += (names.empty() ? "" : ", ") + std::string(candidate->name);
  }
  throw std::invalid_argument("this machine has no instruction set " + name + ", but " + names);
}

}  // namespace

double measure_peak(const std::string& isa_name, double seconds) {
  using clock = std::chrono::steady_clock;
  if (!(seconds > 0)) throw std::invalid_argument("seconds must be positive");
  constexpr int64_t kRounds = 1000;  // some microseconds, so that reading the clock costs nothing
  const Isa& isa = named(isa_name);
  volatile float sink = 0;
  double operations = 0, passed = 0;
  const auto start = clock::now();
  while (passed < seconds) {
    float result;
    operations += static_cast<double>(isa.peak_fma(kRounds, &result));
    sink = result;
    passed = std::chrono::duration<double>(clock::now() - start).count();
  }
  static_cast<void>(sink);
  return operations / passed / 1e9;
}

}  // namespace colorseg::cpu

// Measures what a core can do at most; benchmarks quote their rates against it.
#pragma once
#include <string>

namespace colorseg::cpu {

// float32 GFLOP/s that the calling thread reaches within about `seconds` on the named instruction
// set.  Throws std::invalid_argument where this machine does not have it or seconds is not
// positive.
double measure_peak(const std::string& isa_name, double seconds);

}  // namespace colorseg::cpu

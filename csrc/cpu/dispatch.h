// The instruction sets this machine can run, narrowest first.
#pragma once
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace colorseg::cpu {

std::vector<const Isa*> available_isas();

}  // namespace colorseg::cpu

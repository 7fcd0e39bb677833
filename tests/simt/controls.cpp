// What tests of the emulated kernels set and ask for.
#include "../../csrc/precision.h"
#include "simt.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void set_allow_tf32(bool allowed) { colorseg::set_allow_tf32(allowed); }

EXPORTED int64_t count_launches() { return simt::launches(); }

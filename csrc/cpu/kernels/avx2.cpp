#define COLORSEG_ISA avx2
#include "table.h"

namespace colorseg::cpu {
const Isa avx2_isa = {
    "avx2",
    [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); },
    avx2::peak_fma,
    avx2::pack_codes,
    avx2::unpack_codes,
    avx2::labels_from<int64_t>,
    avx2::labels_from<uint8_t>,
    avx2::labels_to_uint8,
    avx2::conv_table(),
    avx2::pixel_table(),
    avx2::table<float>(),
    avx2::table<double>()};
}  // namespace colorseg::cpu

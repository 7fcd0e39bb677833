#define COLORSEG_ISA avx512
#include "table.h"

namespace colorseg::cpu {
namespace {
bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}
}  // namespace
const Isa avx512_isa = {"avx512",
                        supported,
                        avx512::peak_fma,
                        avx512::pack_codes,
                        avx512::unpack_codes,
                        avx512::labels_from<int64_t>,
                        avx512::labels_from<uint8_t>,
                        avx512::labels_to_uint8,
                        avx512::conv_table(),
                        avx512::pixel_table(),
                        avx512::table<float>(),
                        avx512::table<double>()};
}  // namespace colorseg::cpu

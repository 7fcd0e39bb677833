// The baseline of the platform: SSE2 on x86-64, NEON on aarch64.
#define COLORSEG_ISA scalar
#include "table.h"

namespace colorseg::cpu {
const Isa scalar_isa = {"scalar",
                        [] { return true; },
                        scalar::peak_fma,
                        scalar::pack_codes,
                        scalar::unpack_codes,
                        scalar::labels_from<int64_t>,
                        scalar::labels_from<uint8_t>,
                        scalar::labels_to_uint8,
                        scalar::conv_table(),
                        scalar::pixel_table(),
                        scalar::table<float>(),
                        scalar::table<double>()};
}  // namespace colorseg::cpu

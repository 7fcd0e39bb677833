// Whether float32 convolutions on CUDA may be computed in tf32, as torch's setting says it.
#pragma once

namespace colorseg {

bool allows_tf32();
void set_allow_tf32(bool allowed);

}  // namespace colorseg

// Element types: half types are read and written, all arithmetic is in float32, or float64 for
// float64.
#pragma once
#include "../launch.h"

namespace colorseg::cuda {

template <typename T>
struct ArithmeticOf {
  using type = float;
};
template <>
struct ArithmeticOf<double> {
  using type = double;
};
template <typename T>
using Arithmetic = typename ArithmeticOf<T>::type;

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
// The upper half of a float, exactly.  Of sm_90's own conversion, an instruction for each number,
// the compiler keeps so many on their way that kernels run out of registers.
__device__ inline float widen(__nv_bfloat16 x) {
  return __uint_as_float(static_cast<unsigned>(__bfloat16_as_ushort(x)) << 16);
}

template <typename T>
__device__ inline T narrow(Arithmetic<T> x) {
  return x;
}
template <>
__device__ inline __half narrow<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

}  // namespace colorseg::cuda

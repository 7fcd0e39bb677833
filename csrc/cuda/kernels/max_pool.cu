// A 2x2 max-pool that keeps its argmax in 2 bits: a thread takes the four values of a byte.
#include "batch_norm.h"
#include "number.cuh"

namespace colorseg::cuda {
namespace {

constexpr int kPoolThreads = 256;

// Calls body(value in the byte, index of it in the pooled map, index of its square's first value)
// for the values of the thread's byte.
template <typename Body>
__device__ void for_each_code(const Pool& pool, int64_t byte, const Body& body) {
  const int64_t inner = pool.channels_last ? pool.channels : 1;
  const int64_t values = pool.height * pool.width * inner, plane_bytes = (values + 3) / 4;
  const int64_t plane = byte / plane_bytes, first = byte % plane_bytes * 4;
  for (int64_t v = first; v < first + 4 && v < values; ++v) {
    const int64_t pixel = v / inner, row = pixel / pool.width, column = pixel - row * pool.width;
    const int64_t square = 2 * row * pool.full_width + 2 * column;
    body(static_cast<int>(v - first), plane * values + v,
         (plane * pool.full + square) * inner + (v - pixel * inner));
  }
}

// The values of a square, from its first one.
__device__ inline int64_t corner(const Pool& pool, int i) {
  return ((i / 2) * pool.full_width + i % 2) * (pool.channels_last ? pool.channels : 1);
}

template <typename T>
__global__ void forward(Pool pool, int64_t bytes, const T* full, T* pooled, uint8_t* codes) {
  await_previous();
  const int64_t byte = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (byte >= bytes) return;
  unsigned packed = 0;
  for_each_code(pool, byte, [&](int value, int64_t to, int64_t from) {
    auto best = widen(full[from]);
    unsigned code = 0;
    for (unsigned i = 1; i < 4; ++i) {  // the first maximum, the last NaN, as torch
      const auto x = widen(full[from + corner(pool, static_cast<int>(i))]);
      if (x > best || x != x) best = x, code = i;
    }
    pooled[to] = narrow<T>(best);
    packed |= code << 2 * value;
  });
  codes[byte] = static_cast<uint8_t>(packed);
}

template <typename T>
__global__ void backward(Pool pool, int64_t bytes, const T* grad, const uint8_t* codes,
                         T* grad_full) {
  await_previous();
  const int64_t byte = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (byte >= bytes) return;
  const unsigned packed = codes[byte];
  for_each_code(pool, byte, [&](int value, int64_t from, int64_t to) {
    const unsigned code = packed >> 2 * value & 3;
    for (unsigned i = 0; i < 4; ++i)
      grad_full[to + corner(pool, static_cast<int>(i))] =
          i == code ? grad[from] : narrow<T>(Arithmetic<T>(0));
  });
}

// The same of a map in channels_last with whole bytes for each pixel.
template <typename T>
__global__ void __launch_bounds__(kPoolThreads)
    backward_bytes(Pool pool, int64_t bytes, const T* grad, const uint8_t* codes, T* grad_full) {
  await_previous();
  struct alignas(4 * sizeof(T)) Four {
    T values[4];
  };
  const int64_t byte = int64_t(blockIdx.x) * kPoolThreads + threadIdx.x;
  if (byte >= bytes) return;
  const unsigned per_pixel = static_cast<unsigned>(pool.channels) / 4;
  const int64_t pixel = byte / per_pixel;
  const auto quad = static_cast<unsigned>(byte - pixel * per_pixel);
  const int64_t line = pixel / static_cast<unsigned>(pool.width);
  const int64_t image = line / static_cast<unsigned>(pool.height);
  const int64_t row = line - image * pool.height, column = pixel - line * pool.width;
  const int64_t first = image * pool.full + 2 * row * pool.full_width + 2 * column;
  const Four from = reinterpret_cast<const Four*>(grad)[byte];
  const unsigned packed = codes[byte];
#pragma unroll
  for (unsigned i = 0; i < 4; ++i) {
    Four to;
#pragma unroll
    for (int v = 0; v < 4; ++v)
      to.values[v] = (packed >> 2 * v & 3) == i ? from.values[v] : narrow<T>(Arithmetic<T>(0));
    const int64_t at = (first + (i / 2) * pool.full_width + i % 2) * per_pixel + quad;
    reinterpret_cast<Four*>(grad_full)[at] = to;
  }
}

dim3 pool_grid(const Pool& pool) {
  return dim3(static_cast<unsigned>((pool.bytes() + kPoolThreads - 1) / kPoolThreads));
}

}  // namespace

template <typename T>
void max_pool(const Pool& pool, const T* full, T* pooled, uint8_t* codes, Stream stream) {
  launch(forward<T>, pool_grid(pool), dim3(kPoolThreads), 0, stream, pool, pool.bytes(), full,
         pooled, codes);
}

template <typename T>
void max_pool_backward(const Pool& pool, const T* grad_pooled, const uint8_t* codes, T* grad_full,
                       Stream stream) {
  const bool whole = pool.channels_last && pool.channels % 4 == 0 &&
                     reinterpret_cast<uintptr_t>(grad_pooled) % (4 * sizeof(T)) == 0;
  if (whole)
    return launch(backward_bytes<T>, pool_grid(pool), dim3(kPoolThreads), 0, stream, pool,
                  pool.bytes(), grad_pooled, codes, grad_full);
  launch(backward<T>, pool_grid(pool), dim3(kPoolThreads), 0, stream, pool, pool.bytes(),
         grad_pooled, codes, grad_full);
}

#define COLORSEG_INSTANTIATE(T)                                        \
  template void max_pool(const Pool&, const T*, T*, uint8_t*, Stream); \
  template void max_pool_backward(const Pool&, const T*, const uint8_t*, T*, Stream);
COLORSEG_INSTANTIATE(float)
COLORSEG_INSTANTIATE(double)
COLORSEG_INSTANTIATE(__half)
COLORSEG_INSTANTIATE(__nv_bfloat16)

}  // namespace colorseg::cuda

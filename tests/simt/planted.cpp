// A correct kernel and the same with one fault planted in it; see test_simt.py.
//
// The kernel reverses a block's numbers through shared memory, and adds up each warp.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../../csrc/cuda/kernels/reduce.cuh"

namespace {

enum class Fault { kNone, kNoBarrier, kBeyondTheEnd, kDivergentBarrier, kHalfWarp, kNoWaiting };

__global__ void reverse(Fault fault, const float* from, float* to, float* sums) {
  float* shared = colorseg::cuda::shared_memory<float>();
  const unsigned count = blockDim.x, i = threadIdx.x;
  if (fault == Fault::kBeyondTheEnd) {
    shared[i + 1] = from[blockIdx.x * count + i];
  } else if (i % 4 == 0) {
    colorseg::cuda::copy_async(shared + i, from + blockIdx.x * count + i, true);
    if (fault != Fault::kNoWaiting) colorseg::cuda::await_copies();
  }
  if (fault == Fault::kDivergentBarrier && i >= count / 2) {
    __syncthreads();
    __syncthreads();
  } else if (fault != Fault::kNoBarrier) {
    __syncthreads();
  }
  to[blockIdx.x * count + i] = shared[count - 1 - i];
  const unsigned mask = fault == Fault::kHalfWarp ? 0xffffu : 0xffffffffu;
  float sum = from[blockIdx.x * count + i];
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(mask, sum, distance);
  sums[blockIdx.x * count + i] = sum;
}

}  // namespace

int main(int argc, char** argv) {
  const auto fault = static_cast<Fault>(argc > 1 ? std::atoi(argv[1]) : 0);
  const unsigned blocks = 3, threads = 64;
  std::vector<float> from(blocks * threads), to(from.size()), sums(from.size());
  for (size_t i = 0; i < from.size(); ++i) from[i] = float(i);
  try {
    colorseg::cuda::launch(reverse, dim3(blocks), dim3(threads), threads * sizeof(float), nullptr,
                           fault, from.data(), to.data(), sums.data());
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 2;
  }
  for (unsigned i = 0; i < from.size(); ++i) {
    const unsigned first = i / threads * threads, warp = i / 32 * 32;
    const float sum = 32 * float(warp) + 31 * 32 / 2;
    if (to[i] != from[first + threads - 1 - (i - first)] || sums[i] != sum) {
      std::printf("wrong result\n");
      return 1;
    }
  }
  std::printf("right\n");
  return 0;
}

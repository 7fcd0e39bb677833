// Running statistics of all batch norms of a network in one launch, a block each.
#include "number.cuh"
#include "running_statistics.h"

namespace colorseg::cuda {
namespace {

constexpr int kUpdateThreads = 1024;  // two rounds for the most channels of a ResNet

template <typename T>
__device__ void move(void* running, int channel, double momentum, double towards) {
  T& to = static_cast<T*>(running)[channel];
  to = narrow<T>(
      static_cast<Arithmetic<T>>((1 - momentum) * double(widen(to)) + momentum * towards));
}

__device__ void move_to(const RunningVector& v, int channel, double momentum, double scale) {
  const double towards = scale * v.batch[channel];
  switch (v.type) {
    case RunningType::kFloat:
      return move<float>(v.running, channel, momentum, towards);
    case RunningType::kDouble:
      return move<double>(v.running, channel, momentum, towards);
    case RunningType::kHalf:
      return move<__half>(v.running, channel, momentum, towards);
    case RunningType::kBFloat16:
      return move<__nv_bfloat16>(v.running, channel, momentum, towards);
  }
}

__global__ void __launch_bounds__(kUpdateThreads)
    update(const __grid_constant__ RunningUpdates all) {
  await_previous();
  const RunningUpdate& u = all.updates[blockIdx.x];
  const int64_t batches = u.tracked ? *u.tracked + 1 : 0;
  __syncthreads();  // all have read it
  if (u.tracked && threadIdx.x == 0) *u.tracked = batches;
  const double momentum = u.momentum < 0 ? 1.0 / double(batches) : u.momentum;
  for (int c = static_cast<int>(threadIdx.x); c < u.channels; c += kUpdateThreads) {
    move_to(u.mean, c, momentum, 1);
    move_to(u.var, c, momentum, u.unbiased);
  }
}

}  // namespace

void update_running(const RunningUpdates& all, Stream stream) {
  launch(update, dim3(static_cast<unsigned>(all.count)), dim3(kUpdateThreads), 0, stream, all);
}

}  // namespace colorseg::cuda

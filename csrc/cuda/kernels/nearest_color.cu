// Palette assignment: 3 values read and one label written per pixel, the palette from the cache.
#include "pixels.cuh"

namespace colorseg::cuda {
namespace {

template <typename A>
__global__ void assign(PixelMap map, LabelSource<A> source, int64_t* labels) {
  await_previous();
  const Chunk chunk = chunk_of(map, blockIdx.x);
  for (int p = chunk.first + threadIdx.x; p < chunk.last; p += blockDim.x)
    labels[chunk.image * map.pixels + p] = label_at(source, map, chunk.image, p);
}

}  // namespace

template <typename A>
void nearest_colors(const PixelMap& map, const LabelSource<A>& source, int64_t* labels,
                    Stream stream) {
  launch(assign<A>, chunk_grid(map), dim3(kPixelThreads), 0, stream, map, source, labels);
}

template void nearest_colors<float>(const PixelMap&, const LabelSource<float>&, int64_t*, Stream);
template void nearest_colors<double>(const PixelMap&, const LabelSource<double>&, int64_t*, Stream);

}  // namespace colorseg::cuda

// A chain of blocks for inference: batch norm folded and weights packed beforehand, then all layers
// in one call that allocates nothing but its result.
//
// A batch is cut into groups of images whose maps stay in the cache of the thread that takes them
// through all layers; a few images are shared among threads layer by layer.
#include "packed_chain.h"

#include "fused_block.h"
#include "relay.h"

namespace colorseg::cpu {
namespace {

constexpr int64_t kGroupImages = 4;  // whose maps share an L2 of 1 MB with the weights
constexpr size_t kCachedPlans = 16;  // per thread: shapes seen last

ConvShape shape_of_layer(const PackedLayer& l, int64_t n, int64_t height, int64_t width) {
  ConvShape s{n, l.x_lines(), 0, height, width, l.y_channels, 0, 0};
  s.out_height = conv_output_size(height, l.kernel[0], 0, l.options);
  s.out_width = conv_output_size(width, l.kernel[1], 1, l.options);
  COLORSEG_CHECK(s.out_height > 0 && s.out_width > 0,
                 "the image is too small for this network: a map of ", height, " x ", width,
                 " is left for a kernel of ", l.kernel[0], " x ", l.kernel[1]);
  return s;
}

ChainPlan make_plan(const Ints& numbers, const BatchSize& size) {
  const auto [n, channels, height, width, threads, pairs] = size;
  ChainPlan plan{numbers, size, read_packed(numbers, pairs), {}, {}, 0, 0, 0, 0, 0};
  if (pairs) plan.workspace = aligned(n * lines_of(channels, true) * height * width);  // of x
  struct Size {
    int64_t channels, height, width;
  };
  std::vector<Size> sizes{{channels, height, width}};
  const Bands bands{divide_up(threads, n), 1, threads};  // no sum goes beyond a band here
  for (const PackedLayer& l : plan.layers) {
    const Size x = sizes[l.main];
    const int64_t skip_channels = l.skip < 0 ? 0 : sizes[l.skip].channels;
    COLORSEG_CHECK(x.channels + skip_channels == l.x_channels, "this network takes ", l.x_channels,
                   " channels, got ", x.channels + skip_channels);
    COLORSEG_CHECK(
        l.skip < 0 || (sizes[l.skip].height == x.height && sizes[l.skip].width == x.width),
        "the two inputs of a layer have ", x.height, " x ", x.width, " and ",
        l.skip < 0 ? 0 : sizes[l.skip].height, " x ", l.skip < 0 ? 0 : sizes[l.skip].width,
        " pixels; use an image whose height and width are multiples of 4");
    const ConvShape s = shape_of_layer(l, n, x.height, x.width);
    const int64_t pool = l.resample == Resample::kMaxPool2 ? 2 : 1;
    const int64_t up = l.resample == Resample::kUpsample2 ? 2 : 1;
    PlannedLayer p{
        plan_convolution(s, l.kernel[0], l.kernel[1], l.options, l.upsampled, bands, pairs),
        s.out_height / pool, s.out_width / pool, plan.workspace, plan.weights};
    COLORSEG_CHECK(p.height > 0 && p.width > 0, "the image is too small for this network");
    plan.workspace += aligned(n * lines_of(l.y_channels, pairs) * p.height * p.width);
    plan.weights += l.size(), plan.pieces.push_back(p.conv.pieces);
    sizes.push_back({l.y_channels, up * p.height, up * p.width});
    plan.planned.push_back(std::move(p));
  }
  plan.y_channels = sizes.back().channels, plan.y_height = sizes.back().height,
  plan.y_width = sizes.back().width;
  return plan;
}

// The plan of this chain for this size, made at its first use on this thread.
const ChainPlan& plan_of(const Ints& numbers, const BatchSize& size) {
  thread_local std::vector<ChainPlan> cache;
  thread_local size_t oldest = 0;
  for (const ChainPlan& plan : cache) {
    if (plan.size == size && plan.numbers == numbers) return plan;
  }
  ChainPlan plan = make_plan(numbers, size);
  if (cache.size() < kCachedPlans) {
    cache.reserve(kCachedPlans);
    cache.push_back(std::move(plan));
    return cache.back();
  }
  oldest = (oldest + 1) % kCachedPlans;
  return cache[oldest] = std::move(plan);
}

// Layer i for the images at x, as the threads of a relay share it; y is theirs, too.
void run_float_layer(const ChainPlan& plan, int64_t i, const float* packed, const float* x,
                     float* y, float* maps, NextPiece next) {
  const auto source = [&](int64_t index) {
    Source s;
    if (index < 0) return s;
    if (index == 0) return s.data = x, s.channels = plan.size.channels, s;
    const PackedLayer& l = plan.layers[index - 1];
    const PlannedLayer& p = plan.planned[index - 1];
    s.data = maps + p.offset, s.channels = l.y_channels, s.relu = l.relu;
    if (l.keeps_affine()) {
      s.scale = packed + p.weights + l.bias() + aligned(l.y_channels);
      s.offset = s.scale + aligned(l.y_channels);
    }
    return s;
  };
  const PackedLayer& l = plan.layers[i];
  const PlannedLayer& p = plan.planned[i];
  const bool last = i + 1 == plan.count(), pool = l.resample == Resample::kMaxPool2;
  const bool up = last && l.resample == Resample::kUpsample2;
  const float* const weights = packed + p.weights;
  const float* const bias = weights + l.bias();
  const float* const scale = bias + aligned(l.y_channels);
  float* const to = last && !up ? y : maps + p.offset;
  const float one = 1, zero = 0;
  const auto finish = [&](const Piece& piece, const PieceResult& r, ConvScratch& s) {
    const auto [first, lines] = r.kept(pool, p.height);
    for (int64_t c = 0; c < l.y_channels && lines > 0; ++c) {
      const Affine<float> affine{&zero, l.keeps_affine() ? scale + c : &one,
                                 l.keeps_affine() ? scale + aligned(l.y_channels) + c : &zero};
      for (int64_t image = piece.image; image < piece.image + piece.images; ++image) {
        float* plane = to + ((image * l.y_channels + c) * p.height + first) * p.width;
        if (pool)
          r.collect_pooled(image - piece.image, c, lines, s, plane);
        else
          r.collect(image - piece.image, c, plane);
        if (!last) continue;
        if (l.has_bn)
          kernels<float>().affine_relu({lines * p.width, 1}, plane, affine, l.relu, plane);
        if (up)
          kernels<float>().upsample2(
              {lines, p.width, 1, 2 * p.width}, plane,
              y + ((image * l.y_channels + c) * p.height + first) * 4 * p.width);
      }
    }
  };
  convolve_pieces(p.conv, {source(l.main), source(l.skip)},
                  p.conv.winograd ? weights + l.direct_size() : weights, bias, finish, next);
}

void run_layers(const ChainPlan& plan, const float* packed, const void* x, void* y) {
  thread_local std::vector<float> workspace;
  if (static_cast<int64_t>(workspace.size()) < plan.workspace) workspace.resize(plan.workspace);
  float* const maps = workspace.data();
  if (plan.size.pairs) join_images(plan.size, static_cast<const uint16_t*>(x), maps);
  const auto layer = [&](int64_t i, NextPiece next) {
    if (plan.size.pairs)
      run_pair_layer(plan, i, packed, static_cast<uint16_t*>(y), maps, next);
    else
      run_float_layer(plan, i, packed, static_cast<const float*>(x), static_cast<float*>(y), maps,
                      next);
  };
  run_relay(plan.pieces, plan.size.threads, layer);
}

Tensor packed_chain(const Tensor& x_, const Tensor& packed, const Tensor& layers) {
  COLORSEG_CHECK(x_.dim() == 4, "images must be (N, C, H, W), got ", shape_of(x_));
  // bfloat16 is packed as integers, which Module.to leaves alone
  const bool pairs = packed.scalar_type() == ScalarType::Int;
  const ScalarType dtype = pairs ? ScalarType::BFloat16 : ScalarType::Float;
  COLORSEG_CHECK(x_.scalar_type() == dtype, "this network was optimised for ",
                 pairs ? "bfloat16" : "float32", ", got ", toString(x_.scalar_type()));
  check_pair_kernels(pairs);
  const Tensor x = dense(x_, false);
  const Ints numbers(layers.const_data_ptr<int64_t>(),
                     layers.const_data_ptr<int64_t>() + layers.numel());
  const int64_t n = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  const int64_t threads = torch::stable::get_num_threads();
  const bool shared = n < 2 * threads;  // layer by layer among the threads
  const int64_t groups =
      shared ? 1 : threads * ((n + threads * kGroupImages - 1) / (threads * kGroupImages));
  const ChainPlan& plan = plan_of(numbers, {std::max<int64_t>(n / groups, 1), channels, height,
                                            width, shared ? threads : 1, pairs});
  Tensor y = new_tensor(x, {n, plan.y_channels, plan.y_height, plan.y_width}, dtype);
  if (n == 0 || x.numel() == 0) return y;
  const auto from = static_cast<const char*>(x.const_data_ptr());
  const auto to = static_cast<char*>(y.mutable_data_ptr());
  const float* weights =
      pairs ? static_cast<const float*>(packed.const_data_ptr()) : packed.const_data_ptr<float>();
  const int64_t bytes = pairs ? sizeof(uint16_t) : sizeof(float);
  const int64_t x_image = bytes * channels * height * width;
  const int64_t y_image = bytes * plan.y_channels * plan.y_height * plan.y_width;
  if (shared) {
    run_layers(plan, weights, from, to);
    return y;
  }
  torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * n / groups, count = (i + 1) * n / groups - first;
      run_layers(plan_of(numbers, {count, channels, height, width, 1, pairs}), weights,
                 from + first * x_image, to + first * y_image);
    }
  });
  return y;
}

}  // namespace
}  // namespace colorseg::cpu

STABLE_TORCH_LIBRARY_IMPL(colorseg, CPU, m) {
  m.impl("packed_chain", TORCH_BOX(&colorseg::cpu::packed_chain));
}

#include "own_convolution.h"

namespace colorseg::cuda {
namespace {

constexpr int64_t kMostSize = int64_t(1) << 24;    // of an axis, with some room around it
constexpr int64_t kMostPixels = int64_t(1) << 30;  // of an image: they are numbered in 32 bits
// Of an input and of a result: beyond, cuDNN's blocks of many channels read less.
constexpr int64_t kMostChannels = 128;

template <typename T>
ConvSource<T> source_of(const ConvInput& input) {
  return {static_cast<const T*>(input.map.const_data_ptr()),
          pointer<ChannelAffine<float>>(input.affines), input.relu};
}

// Of maps of (channels, height, width) to others.
template <typename T>
std::optional<Convolution<T>> planned(const std::optional<ConvTaps>& taps, bool strict, int64_t n,
                                      const Channels& in, int64_t in_height, int64_t in_width,
                                      const Channels& out, int64_t out_height, int64_t out_width) {
  if (!taps || std::max({in_height, in_width, out_height, out_width}) > kMostSize ||
      std::max(in_height * in_width, out_height * out_width) > kMostPixels)
    return {};
  Convolution<T> p = {};
  p.taps = *taps, p.strict = strict, p.n = n, p.in = in, p.out = out;
  p.in_height = static_cast<int>(in_height), p.in_width = static_cast<int>(in_width);
  p.out_height = static_cast<int>(out_height), p.out_width = static_cast<int>(out_width);
  if (!plan(p)) return {};
  return p;
}

template <typename T>
WeightGradient<T> weight_plan(const OwnConvolution& own, Convolution<T> p, const Tensor& grad) {
  return {p, static_cast<const T*>(grad.const_data_ptr()),
          static_cast<int>(own.weight.size(2) * own.weight.size(3))};
}

// Calls body(W()) with the element type of the weight of maps of T: the same, or float.
template <typename T, typename Body>
void dispatch_weight(const Tensor& weight, const Body& body) {
  if (sizeof(T) == 2 && weight.scalar_type() == ScalarType::Float) return body(float());
  body(T());
}

int channels(const Tensor& map) { return static_cast<int>(map.size(1)); }

// The gradients of main and, if `skip`, of the skip.
template <typename T>
std::optional<Convolution<T>> planned_gradient(const OwnConvolution& own, bool skip) {
  const ConvShape& s = own.shape;
  const Tensor& map = own.main.map;
  return planned<T>(
      gradient_taps(own.options, own.weight.size(2), own.weight.size(3), own.upsampled), own.strict,
      s.n, channels_of<T>(static_cast<int>(s.out_channels), 0), s.out_height, s.out_width,
      channels_of<T>(channels(map), skip ? channels(own.skip->map) : 0), map.size(2), map.size(3));
}

}  // namespace

WeightStrides weight_strides(const Tensor& weight, const ConvOptions& options) {
  const int64_t taps = weight.size(2) * weight.size(3), inner = weight.size(1) * taps;
  return options.transposed ? WeightStrides{inner, taps} : WeightStrides{taps, inner};
}

WeightStrides gradient_strides(const OwnConvolution& own) {
  const WeightStrides forward = weight_strides(own);
  return {forward.n, forward.k};
}

template <typename T>
std::optional<Convolution<T>> forward_plan(const OwnConvolution& own) {
  const Tensor& map = own.main.map;
  const Channels in = channels_of<T>(channels(map), own.skip ? channels(own.skip->map) : 0);
  const ConvShape& s = own.shape;
  auto p =
      planned<T>(forward_taps(own.options, own.weight.size(2), own.weight.size(3), own.upsampled),
                 own.strict, s.n, in, map.size(2), map.size(3),
                 channels_of<T>(static_cast<int>(s.out_channels), 0), s.out_height, s.out_width);
  if (!p) return p;
  p->sources[0] = source_of<T>(own.main);
  if (own.skip) p->sources[1] = source_of<T>(*own.skip);
  return p;
}

template <typename T>
Convolution<T> gradient_plan(const OwnConvolution& own, const Tensor& grad, bool skip) {
  Convolution<T> p = planned_gradient<T>(own, skip).value();
  p.sources[0] = source_of<T>({grad, {}, false});
  return p;
}

template <typename T>
std::vector<Tensor> packed_weights(const std::vector<ToPack>& weights, bool strict, Stream stream) {
  std::vector<Tensor> packed;
  const auto pack = [&](auto zero) {
    using W = decltype(zero);
    Packings<W> packings = {};
    const auto flush = [&] {
      if (packings.count > 0) pack_weights<T>(packings, strict, stream);
      packings.count = 0;
    };
    for (size_t i = 0; i < weights.size(); ++i) {
      const ToPack& w = weights[i];
      if ((w.weight.scalar_type() == ScalarType::Float) != (sizeof(W) == 4)) continue;
      packings.each[packings.count++] = {w.taps,
                                         w.in,
                                         w.out,
                                         static_cast<const W*>(w.weight.const_data_ptr()),
                                         w.strides.k,
                                         w.strides.n,
                                         packed[i].mutable_data_ptr()};
      if (packings.count == kMostPackings) flush();
    }
    flush();
  };
  for (const ToPack& w : weights)
    packed.push_back(
        new_tensor(w.weight, {packed_size<T>(w.taps, w.in, w.out, strict)}, ScalarType::Float));
  pack(float());
  if constexpr (sizeof(T) == 2) pack(T());
  return packed;
}

template <typename T>
void run_convolution(Convolution<T>& p, const Tensor& packed, Stream stream) {
  p.weight = packed.const_data_ptr();
  convolve(p, stream);
}

template <typename T>
Tensor run_weight_gradient(const OwnConvolution& own, const Tensor& grad, Stream stream) {
  WeightGradient<T> w = weight_plan(own, forward_plan<T>(own).value(), grad);
  COLORSEG_CHECK(plan(w), "no kernel for the gradient of a weight ", shape_of(own.weight));
  const Tensor result = new_tensor(own.weight, sizes_of(own.weight), own.weight.scalar_type());
  const Tensor partial = new_tensor(own.weight, {partial_size(w)}, ScalarType::Float);
  const WeightStrides strides = weight_strides(own);
  dispatch_weight<T>(own.weight, [&](auto zero) {
    weight_gradient(w, strides.k, strides.n, pointer<float>(partial),
                    pointer<decltype(zero)>(result), stream);
  });
  return result;
}

bool has_own_channels(const ConvShape& s) {
  return std::max(s.in_channels + s.skip_channels, s.out_channels) <= kMostChannels;
}

bool has_own_kernels(const OwnConvolution& own) {
  if (!has_own_channels(own.shape)) return false;
  return dispatch_own(own.main.map, [&](auto zero) {
    using T = decltype(zero);
    const auto forward = forward_plan<T>(own);
    if (!forward) return false;
    WeightGradient<T> w{*forward, nullptr, 0};
    return plan(w) && planned_gradient<T>(own, false) &&
           (!own.skip || planned_gradient<T>(own, true));
  });
}

#define COLORSEG_INSTANTIATE(T)                                                             \
  template std::optional<Convolution<T>> forward_plan<T>(const OwnConvolution&);            \
  template Convolution<T> gradient_plan<T>(const OwnConvolution&, const Tensor&, bool);     \
  template std::vector<Tensor> packed_weights<T>(const std::vector<ToPack>&, bool, Stream); \
  template void run_convolution(Convolution<T>&, const Tensor&, Stream);                    \
  template Tensor run_weight_gradient<T>(const OwnConvolution&, const Tensor&, Stream);
COLORSEG_INSTANTIATE(float)
COLORSEG_INSTANTIATE(__half)
COLORSEG_INSTANTIATE(__nv_bfloat16)

}  // namespace colorseg::cuda

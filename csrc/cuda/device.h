// Between tensors and kernels: where work is queued, element types, and checks that need a copy to
// the host.
#pragma once
#include <torch/csrc/stable/accelerator.h>

#include <cstdlib>

#include "../common.h"
#include "kernels/kernels.h"

// The emulation of tests/simt runs the same operators on tensors in host memory.
#if defined(COLORSEG_SIMT)
#define COLORSEG_CUDA_KEY CPU
#else
#define COLORSEG_CUDA_KEY CUDA
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#endif

namespace colorseg::cuda {

// Work on the device of a tensor, on torch's current stream, as long as this lives.
class OnDevice {
 public:
#if defined(COLORSEG_SIMT)
  explicit OnDevice(const Tensor&) {}
#else
  explicit OnDevice(const Tensor& x) : guard_(x.get_device_index()) {
    void* stream = nullptr;
    check_torch(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream),
                "the current stream");
    stream_ = static_cast<Stream>(stream);
  }
#endif
  Stream stream() const { return stream_; }

 private:
  Stream stream_ = nullptr;
#if !defined(COLORSEG_SIMT)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

// Calls body(T()) with the kernels' element type of a tensor.
template <typename Body>
void dispatch_element(const Tensor& x, const char* op, const Body& body) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return body(float());
    case ScalarType::Double:
      return body(double());
    case ScalarType::Half:
      return body(__half());
    case ScalarType::BFloat16:
      return body(__nv_bfloat16());
    default:
      COLORSEG_CHECK(false, op, " computes in float32, float64, float16 or bfloat16, got ",
                     toString(x.scalar_type()));
  }
}

inline bool is_half(ScalarType t) { return t == ScalarType::Half || t == ScalarType::BFloat16; }

// What kernels compute in, and losses are returned in: of an element type, and of a tensor.
template <typename T>
using ArithmeticType = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline ScalarType arithmetic_type(const Tensor& x) {
  return is_half(x.scalar_type()) ? ScalarType::Float : x.scalar_type();
}

template <typename T>
T* pointer(const Tensor& x) {
  return x.numel() == 0 ? nullptr : static_cast<T*>(x.mutable_data_ptr());
}
template <typename T>
const T* pointer(const OptionalTensor& x) {
  return x ? static_cast<const T*>(x->const_data_ptr()) : nullptr;
}

inline Tensor in_dtype(const Tensor& x, ScalarType dtype) {
  return dense(x.scalar_type() == dtype ? x : torch::stable::to(x, dtype), false);
}

// The grid's first dimension numbers chunks; a thread counts pixels a step beyond the last.
constexpr int64_t kMostImagePixels = (int64_t(1) << 31) - 1024;
inline void check_grid(const PixelMap& map) {
  COLORSEG_CHECK(
      map.pixels <= kMostImagePixels && pixel_chunks(map) < (int64_t(1) << 31),
      "an operator on CUDA takes less than 2^31 images of at most 2^31 - 1024 pixels, got ", map.n,
      " of ", map.pixels);
}

// COLORSEG_DEBUG=1: what would be ignored is an error, at the price of waiting for the device.
inline bool debugging() {
  const char* value = std::getenv("COLORSEG_DEBUG");
  return value && value[0] == '1' && value[1] == 0;
}

// Where labels come from, in memory that lives as long as this.
template <typename A>
class DeviceLabels {
 public:
  DeviceLabels(const Tensor& target, const OptionalTensor& palette, ScalarType arithmetic,
               std::optional<int64_t> ignore_index)
      : target_(torch::stable::contiguous(target)), ignore_index_(ignore_index) {
    const ScalarType t = target.scalar_type();
    if (target.dim() == 4) {
      palette_ = in_dtype(*palette, arithmetic);
      kind_ = t == ScalarType::Byte ? LabelKind::kRgbBytes : LabelKind::kRgb;
      if (kind_ == LabelKind::kRgb) target_ = in_dtype(target_, arithmetic);
    } else {
      kind_ = t == ScalarType::Long ? LabelKind::kInt64 : LabelKind::kUint8;  // or bool
    }
  }

  LabelSource<A> source() const {
    return {target_.const_data_ptr(), kind_, ignore_index_.has_value(), ignore_index_.value_or(0),
            palette_ ? static_cast<const A*>(palette_->const_data_ptr()) : nullptr};
  }

 private:
  Tensor target_;
  OptionalTensor palette_;
  std::optional<int64_t> ignore_index_;
  LabelKind kind_;
};

// Labels out of range count as ignored; when debugging they are an error, as on the CPU.
void check_label_values(const Tensor& target, int64_t classes, std::optional<int64_t> ignore_index);

}  // namespace colorseg::cuda

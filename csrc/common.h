// What every operator needs of the stable ABI: names, dtype dispatch, layout rules, check helpers.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/version.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace colorseg {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Ints = std::vector<int64_t>;

// Text and numbers one behind the other, without a stream: where a compiler links a standard
// library of its own into the extension, streams would crash among torch's.
template <typename... Parts>
std::string joined(const Parts&... parts) {
  std::string text;
  const auto append = [&](const auto& part) {
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(part)>>)
      text += std::to_string(part);
    else
      text += part;
  };
  (append(parts), ...);
  return text;
}

// Throws what Python gets as a RuntimeError, unless the condition holds.
#define COLORSEG_CHECK(condition, ...)                                           \
  do {                                                                           \
    if (!(condition)) throw std::runtime_error(::colorseg::joined(__VA_ARGS__)); \
  } while (false)

// After a call through the C shim; torch's own macro for this changes its name between 2.11
// and 2.13.
inline void check_torch(AOTITorchError code, const char* op) {
  COLORSEG_CHECK(code == AOTI_TORCH_SUCCESS, op, " failed inside torch ", TORCH_VERSION,
                 "; a lack of memory is the usual cause");
}

// Calls body(T()) with T = float or double; half types are widened before they get here.
template <typename Body>
void dispatch_dtype(const Tensor& x, const char* op, const Body& body) {
  if (x.scalar_type() == ScalarType::Double) return body(double());
  COLORSEG_CHECK(x.scalar_type() == ScalarType::Float, op, " computes in float32 or float64, got ",
                 toString(x.scalar_type()));
  body(float());
}

// Dense in (N, H, W, C) order and not in (N, C, H, W) order; the strides of size-1 dimensions do
// not count.
inline bool is_channels_last(const Tensor& x) {
  if (x.dim() != 4 || x.is_contiguous()) return false;
  int64_t expected = 1;
  for (int d : {1, 3, 2, 0}) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

inline MemoryFormat format_of(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// Dense in the wanted order: x itself where it is already.
inline Tensor dense(const Tensor& x, bool channels_last) {
  if (channels_last ? is_channels_last(x) : x.is_contiguous()) return x;
  return torch::stable::contiguous(x, format_of(channels_last));
}

// Uninitialized, on the device of `like`; on the CPU in memory that is kept (kept_memory.h).
Tensor new_tensor(const Tensor& like, const Ints& sizes, ScalarType dtype,
                  bool channels_last = false);

inline Ints sizes_of(const Tensor& x) { return {x.sizes().begin(), x.sizes().end()}; }

// Stands for "not computed": operators may not return undefined tensors.
inline Tensor nothing(const Tensor& like) { return new_tensor(like, {0}, like.scalar_type()); }

inline std::string text_of(IntHeaderOnlyArrayRef sizes) {
  std::string text = "(";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + ")";
}

inline std::string shape_of(const Tensor& x) { return text_of(x.sizes()); }

inline void check_same_device(const char* name, const Tensor& t, const Tensor& x,
                              const char* of = "x") {
  COLORSEG_CHECK(t.device() == x.device(), name, " must be on the device of ", of);
}

inline void check_same_kind(const char* name, const Tensor& t, const Tensor& x) {
  COLORSEG_CHECK(t.scalar_type() == x.scalar_type(), name, " must have the dtype of x, ",
                 toString(x.scalar_type()), ", got ", toString(t.scalar_type()));
  check_same_device(name, t, x);
}

// A per-channel vector, in x's dtype or float32.
inline void check_per_channel(const char* name, const OptionalTensor& t, int64_t channels,
                              const Tensor& x, const char* of = "x") {
  if (!t) return;
  COLORSEG_CHECK(t->dim() == 1 && t->size(0) == channels, name, " must have shape (", channels,
                 "), got ", shape_of(*t));
  COLORSEG_CHECK(t->scalar_type() == x.scalar_type() || t->scalar_type() == ScalarType::Float, name,
                 " must have the dtype of ", of, ", ", toString(x.scalar_type()),
                 ", or float32, got ", toString(t->scalar_type()));
  check_same_device(name, *t, x, of);
}

}  // namespace colorseg

#include "kept_memory.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <mutex>
#include <new>
#include <vector>
#if defined(__unix__)
#include <pthread.h>
#endif

#include "common.h"

namespace colorseg {
namespace {

constexpr int64_t kLeast = 1 << 17;  // bytes; malloc keeps smaller blocks itself
constexpr size_t kMostBlocks = 256;
constexpr std::align_val_t kAlignment{64};  // of tensors' data, as torch's

// In front of a tensor's data.
struct alignas(64) Block {
  int64_t bytes;  // of the data
};

#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t kLimit = 0;  // a use after free must not find a block that is in use again
#else
constexpr int64_t kLimit = int64_t{256} << 20;
#endif

class Memory {
 public:
  // Uninitialized; nullptr where it is torch's business.
  void* take(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (limit_ == 0 || bytes < kLeast) return nullptr;
    bytes = rounded(bytes);
    const auto found = std::find_if(kept_.rbegin(), kept_.rend(),
                                    [&](const Block* block) { return block->bytes == bytes; });
    if (found != kept_.rend()) {  // the latest: it may still be in a cache
      Block* block = *found;
      kept_.erase(std::next(found).base());
      kept_bytes_ -= bytes;
      return block + 1;
    }
    void* memory = ::operator new(sizeof(Block) + bytes, kAlignment, std::nothrow);
    if (!memory) {
      drop_to(0);
      memory = ::operator new(sizeof(Block) + bytes, kAlignment, std::nothrow);
    }
    return memory ? new (memory) Block{bytes} + 1 : nullptr;
  }

  void give_back(void* data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_.push_back(static_cast<Block*>(data) - 1);
    kept_bytes_ += kept_.back()->bytes;
    drop_to(limit_);
  }

  int64_t limit(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::swap(limit_, bytes);
    drop_to(limit_);
    return bytes;
  }

  int64_t kept() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return kept_bytes_;
  }

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  // To one of eight sizes between powers of two, so that batches of similar sizes share blocks.
  static int64_t rounded(int64_t bytes) {
    int64_t step = kLeast / 8;
    while (bytes > 16 * step) step *= 2;
    return (bytes + step - 1) / step * step;
  }

  // The oldest blocks, until no more than these bytes are left.
  void drop_to(int64_t bytes) {
    size_t oldest = 0;
    while (kept_bytes_ > bytes || kept_.size() - oldest > kMostBlocks) {
      kept_bytes_ -= kept_[oldest]->bytes;
      ::operator delete(kept_[oldest++], kAlignment);
    }
    kept_.erase(kept_.begin(), kept_.begin() + oldest);
  }

  std::mutex mutex_;
  std::vector<Block*> kept_;  // in the order in which they were given back
  int64_t kept_bytes_ = 0, limit_ = kLimit;
};

// Never destroyed: tensors may outlive the end of main.
Memory& memory() {
  static Memory* const made = new Memory;
#if defined(__unix__)
  // a child must not find the lock held by a thread that it does not have
  static const int prepared =
      pthread_atfork([] { made->lock(); }, [] { made->unlock(); }, [] { made->unlock(); });
  static_cast<void>(prepared);
#endif
  return *made;
}

void give_back(void* data) { memory().give_back(data); }

Ints dense_strides(const Ints& sizes, bool channels_last) {
  Ints strides(sizes.size());
  int64_t stride = 1;
  const auto next = [&](size_t dimension) {
    strides[dimension] = stride;
    stride *= std::max<int64_t>(sizes[dimension], 1);
  };
  if (channels_last) {
    for (const size_t dimension : {1, 3, 2, 0}) next(dimension);
  } else {
    for (size_t dimension = sizes.size(); dimension-- > 0;) next(dimension);
  }
  return strides;
}

int64_t bytes_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return 1;
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Float:
    case ScalarType::Int:
      return 4;
    default:
      return 8;
  }
}

// How the C shim takes a dtype or a type of device.
template <typename Kind>
int32_t code_of(Kind kind) {
  return torch::stable::detail::to<int32_t>(torch::stable::detail::from(kind));
}

}  // namespace

int64_t limit_kept_memory(int64_t bytes) { return memory().limit(std::max<int64_t>(bytes, 0)); }

int64_t kept_memory() { return memory().kept(); }

Tensor new_tensor(const Tensor& like, const Ints& sizes, ScalarType dtype, bool channels_last) {
  const Ints strides = dense_strides(sizes, channels_last);
  const auto device = like.device();
  if (like.is_cpu()) {
    int64_t bytes = bytes_of(dtype);
    for (const int64_t size : sizes) bytes *= size;
    if (void* data = memory().take(bytes))
      return torch::stable::from_blob(data, sizes, strides, device, dtype, &give_back);
  }
  // not torch::stable::empty, which looks the operator up by its name and passes it a stack
  AtenTensorHandle made;
  check_torch(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               code_of(dtype), code_of(device.type()), device.index(), &made),
      "the allocation of a tensor");
  return Tensor(made);
}

}  // namespace colorseg

// Walks over the pixels of logits in chunks, in parallel, with each chunk's labels checked and at
// hand.
#pragma once
#include <algorithm>
#include <memory>
#include <mutex>

#include "../color_cross_entropy.h"
#include "kernels/kernels.h"

namespace colorseg::cpu {

constexpr int64_t kChunkPixels =
    1024;  // the unit of work; sums over chunks are added in their order

// Views of one chunk: pixels [first, first + count) of image n.
struct Chunk {
  int64_t index, n, first, count;
};

inline int64_t chunks_per_image(const PixelShape& s) {
  return (s.pixels() + kChunkPixels - 1) / kChunkPixels;
}
inline int64_t chunk_count(const PixelShape& s) { return s.n * chunks_per_image(s); }

template <typename Body>
void for_each_chunk(const PixelShape& s, const Body& body) {
  if (s.n * s.pixels() == 0) return;
  torch::stable::parallel_for(0, chunk_count(s), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % chunks_per_image(s) * kChunkPixels;
      body(Chunk{i, i / chunks_per_image(s), first, std::min(kChunkPixels, s.pixels() - first)});
    }
  });
}

// The logits of a chunk in a dense map of either layout.
template <typename T>
Logits<T> logits_at(const T* data, const PixelShape& s, bool channels_last, const Chunk& chunk) {
  const int64_t pixel = channels_last ? s.channels : 1;
  return {data + chunk.n * s.channels * s.pixels() + chunk.first * pixel, s.channels,
          channels_last ? 1 : s.pixels(), pixel};
}

// A map is written past the caches where it would not stay in those of the cores anyway.
inline bool beyond_caches(int64_t bytes) { return bytes > 4 * 1024 * 1024; }

// Uninitialised memory of a chunk's kernel; no vector of it crosses a cache line.
template <typename T>
class PixelScratch {
 public:
  explicit PixelScratch(int64_t count) : memory_(new T[count + kLine]) {}
  T* get() const {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return memory_.get() + (-address & (kLine * sizeof(T) - 1)) / sizeof(T);
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(T);
  std::unique_ptr<T[]> memory_;
};

// Of the same kernel for two types of labels, the one for these.
template <typename Int64, typename Uint8>
constexpr Int64 of_labels(const int64_t*, Int64 kernel, Uint8) {
  return kernel;
}
template <typename Int64, typename Uint8>
constexpr Uint8 of_labels(const uint8_t*, Int64, Uint8 kernel) {
  return kernel;
}

// Where labels come from: ready ones, or RGB quantised with a palette.  fill() writes -1 where
// ignored.
template <typename T>
class LabelSource {
 public:
  LabelSource(const Tensor& target, const OptionalTensor& palette, const PixelShape& s,
              std::optional<int64_t> ignore_index)
      : target_(dense(target, false)),
        shape_(s),
        ignore_index_(ignore_index),
        rgb_(target.dim() == 4) {
    if (!rgb_) {
      const void* labels = target_.const_data_ptr();  // uint8 and bool are both one byte
      if (target_.scalar_type() == ScalarType::Long) {
        int64_ = static_cast<const int64_t*>(labels);
      } else {
        uint8_ = static_cast<const uint8_t*>(labels);
      }
      return;
    }
    palette_ = dense(torch::stable::to(*palette, dtype()), false);
    if (target_.scalar_type() != ScalarType::Byte) target_ = torch::stable::to(target_, dtype());
  }

  void fill(const Chunk& chunk, int32_t* labels) {
    if (rgb_) return quantize(chunk, labels);
    read(chunk, [&](const auto* target, int64_t ignored) {
      const auto convert = of_labels(target, isa().labels_from_int64, isa().labels_from_uint8);
      return convert(chunk.count, target, shape_.channels, ignored, labels);
    });
  }

  // Hands the ready labels of a chunk, int64_t or uint8_t, and the ignored one to a kernel that
  // returns how many others are out of range.
  template <typename Kernel>
  void read(const Chunk& chunk, const Kernel& kernel) {
    int64_ ? read_from(int64_, chunk, kernel) : read_from(uint8_, chunk, kernel);
  }

  // What soft targets are made of; `rgb` [3][kChunkPixels] is where its values are kept.
  SoftTargets<T> soft_targets(const Chunk& chunk, const SoftOptions& soft, T* rgb) const {
    if (soft.neighbors == 0) return {};
    for (int64_t i = 0; i < 3; ++i) {
      const int64_t from = (3 * chunk.n + i) * shape_.pixels() + chunk.first;
      for (int64_t p = 0; p < chunk.count; ++p) {
        rgb[i * kChunkPixels + p] = target_.scalar_type() == ScalarType::Byte
                                        ? T(target_.const_data_ptr<uint8_t>()[from + p]) / T(256)
                                        : target_.const_data_ptr<T>()[from + p];
      }
    }
    return {rgb,
            rgb + kChunkPixels,
            rgb + 2 * kChunkPixels,
            palette_->template const_data_ptr<T>(),
            soft.neighbors,
            T(soft.falloff())};
  }

  void throw_if_out_of_range() const {
    check_label_range(bad_, first_bad_, shape_.channels, ignore_index_.has_value(),
                      ignore_index_.value_or(0));
  }

 private:
  static constexpr ScalarType dtype() {
    return std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
  }

  template <typename Label, typename Kernel>
  void read_from(const Label* target, const Chunk& chunk, const Kernel& kernel) {
    target += chunk.n * shape_.pixels() + chunk.first;
    const int64_t bad = kernel(target, ignored_label());
    if (bad == 0) return;
    const Label* first = std::find_if(target, target + chunk.count, [&](Label t) {
      const auto label = static_cast<int64_t>(t);
      return (label < 0 || label >= shape_.channels) && label != ignored_label();
    });
    report(chunk, bad, static_cast<int64_t>(*first));
  }

  int64_t ignored_label() const { return ignore_index_.value_or(INT64_MIN); }

  void quantize(const Chunk& chunk, int32_t* labels) {
    const auto run = [&](auto kernel, const auto* rgb) {
      rgb += 3 * chunk.n * shape_.pixels() + chunk.first;
      kernel(chunk.count, rgb, rgb + shape_.pixels(), rgb + 2 * shape_.pixels(),
             palette_->template const_data_ptr<T>(), palette_->size(0), labels);
    };
    if (target_.scalar_type() == ScalarType::Byte) {
      run(kernels<T>().nearest_color_bytes, target_.const_data_ptr<uint8_t>());
    } else {
      run(kernels<T>().nearest_color, target_.const_data_ptr<T>());
    }
    for (int64_t i = 0; i < chunk.count && ignore_index_; ++i)
      labels[i] = labels[i] == *ignore_index_ ? -1 : labels[i];
  }

  // Keeps the first label in memory order, whichever thread comes first.
  void report(const Chunk& chunk, int64_t bad, int64_t first) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (bad_ == 0 || chunk.index < first_bad_chunk_)
      first_bad_ = first, first_bad_chunk_ = chunk.index;
    bad_ += bad;
  }

  Tensor target_;
  const int64_t* int64_ = nullptr;  // ready labels, in one of both types
  const uint8_t* uint8_ = nullptr;
  OptionalTensor palette_;
  PixelShape shape_;
  std::optional<int64_t> ignore_index_;
  bool rgb_;
  std::mutex mutex_;
  int64_t bad_ = 0, first_bad_ = 0, first_bad_chunk_ = 0;
};

}  // namespace colorseg::cpu

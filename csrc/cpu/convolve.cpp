#include "convolve.h"

#include <cstring>

#include "correlation.h"

namespace colorseg::cpu {
namespace {

// Lines of a map with `step` phases that the piece touches, with what taps reach around a band.
struct Span {
  int64_t first, last;
};
Span span_of(const ConvPlan& p, const Piece& piece, int64_t step, int64_t size) {
  if (p.bands == 1) return {0, size};
  const int64_t reach = p.geometry.rows.reach;
  return {(piece.row - reach) * step, (piece.row + piece.rows + reach + 1) * step};
}

float* image_of(const ConvPlan& p, const FlatMap& map, int64_t channel, int64_t i) {
  return map.data + channel * map.channel_stride + i * p.geometry.columns.pitch;
}

// The last piece may have fewer images: those of the piece before must not stay in their place.
void clear_rest(const ConvPlan& p, const Piece& piece, const FlatMap& map, int64_t phases) {
  if (piece.images == p.images_per_piece) return;
  std::memset(map.data - p.margin, 0, map.channels * phases * p.length * sizeof(float));
}

void place_x(const ConvPlan& p, const Piece& piece, const Sources& sources, const FlatMap& x) {
  const Geometry& g = p.geometry;
  clear_rest(p, piece, x, g.x_phases());
  const int64_t height = g.rows.x_size, width = g.columns.x_size;
  const Span span = span_of(p, piece, g.x_step, height);
  int64_t channel = 0;
  for (const Source& source : sources) {
    for (int64_t c = 0; c < source.channels; ++c, ++channel) {
      const Activation activation = source.activation(c);
      for (int64_t i = 0; i < piece.images; ++i) {
        const float* from =
            source.data + ((piece.image + i) * source.channels + c) * height * width;
        const Lines to{image_of(p, x, channel, i) - piece.row * g.row, g.row, x.phase_stride,
                       g.x_step};
        isa().conv.place(from, height, width, span.first, span.last, activation, to);
      }
    }
  }
}

void place_gradient(const ConvPlan& p, const Piece& piece, const GradientLines& gradient,
                    double* grad_bias, ConvScratch& s) {
  const Geometry& g = p.geometry;
  clear_rest(p, piece, s.y, g.y_phases());
  const int64_t height = p.shape.y_size[0], width = p.shape.y_size[1];
  const Span span = span_of(p, piece, g.y_step, g.rows.y_size);
  const Span own{piece.row * g.y_step, std::min((piece.row + piece.rows) * g.y_step,
                                                height)};  // lines no other piece has
  for (int64_t c = 0; c < p.y_channels; ++c) {
    for (int64_t i = 0; i < piece.images; ++i) {
      const int64_t first = std::max<int64_t>(span.first - (g.box ? 1 : 0), 0);
      const float* from = gradient(piece.image + i, c, first, std::min(span.last, height), s);
      if (grad_bias && own.first < own.last) {
        const int64_t count = (own.last - own.first) * width;
        grad_bias[c] += isa().conv.sum(count, from + own.first * width);
      }
      if (g.box) {
        float* boxes = s.plane[2] - span.first * (width + 1);
        isa().conv.box_sums(from, height, width, span.first, span.last, boxes);
        from = boxes;
      }
      const Lines to{image_of(p, s.y, c, i) - piece.row * g.row, g.row, s.y.phase_stride, g.y_step};
      isa().conv.place(from, g.rows.y_size, g.columns.y_size, span.first, span.last,
                       {0, 1, 0, false, false}, to);
    }
  }
}

FlatMap result_map(const ConvPlan& p, const ConvScratch& s, int64_t channels, int64_t phases) {
  return {s.result.data, channels, phases * p.length, p.length};
}

// Weights of the data gradient.
std::vector<float> pack_adjoint(const ConvPlan& p, const float* weight, int64_t channels) {
  if (p.winograd) {
    std::vector<float> packed(16 * channels * p.y_channels);
    isa().conv.pack_winograd(weight, channels, p.in_stride, p.y_channels, p.out_stride, true,
                             packed.data());
    return packed;
  }
  std::vector<float> packed(p.geometry.taps.size() * channels * p.y_channels);
  isa().conv.pack_weights(weight, channels, p.in_stride, p.y_channels, p.out_stride,
                          adjoint_taps(p.geometry, p.length), packed.data());
  return packed;
}

}  // namespace

PieceResult::PieceResult(const ConvPlan& plan, const Piece& piece, const FlatMap& map, bool of_x)
    : plan_(plan), piece_(piece), map_(map) {
  const Geometry& g = plan.geometry;
  box_ = g.box && !of_x, step_ = of_x ? g.x_step : g.y_step;
  const int64_t height = of_x ? plan.shape.x_size[0] : plan.shape.y_size[0];
  width_ = of_x ? plan.shape.x_size[1] : plan.shape.y_size[1];
  line_ = std::min(piece.row * step_, height);
  lines_ = std::min((piece.row + piece.rows) * step_, height) - line_;
}

void PieceResult::collect(int64_t i, int64_t channel, float* to) const {
  isa().conv.collect(
      {image_of(plan_, map_, channel, i), plan_.geometry.row, map_.phase_stride, step_}, lines_,
      width_, box_, to);
}

Rows PieceResult::rows(int64_t i, int64_t channel) const {
  return {image_of(plan_, map_, channel, i), lines_, width_, plan_.geometry.row};
}

void PieceResult::collect_pooled(int64_t i, int64_t channel, int64_t lines, ConvScratch& s,
                                 float* to) const {
  if (step_ == 1) {
    const Lines from{image_of(plan_, map_, channel, i), plan_.geometry.row, map_.phase_stride, 1};
    return isa().conv.collect_pooled(from, lines, width_ / 2, to);
  }
  collect(i, channel, s.plane[0]);
  kernels<float>().maxpool2({lines, width_ / 2, 1, width_}, s.plane[0], to, s.codes.data());
}

std::vector<float> pack_forward(const ConvPlan& p, const float* weight) {
  if (p.winograd) {
    std::vector<float> packed(16 * p.x_channels * p.y_channels);
    isa().conv.pack_winograd(weight, p.y_channels, p.out_stride, p.x_channels, p.in_stride, false,
                             packed.data());
    return packed;
  }
  std::vector<float> packed(p.geometry.taps.size() * p.x_channels * p.y_channels);
  isa().conv.pack_weights(weight, p.y_channels, p.out_stride, p.x_channels, p.in_stride, p.taps,
                          packed.data());
  return packed;
}

void convolve_pieces(const ConvPlan& p, const Sources& sources, const float* packed,
                     const float* bias, const Finish& finish, NextPiece next) {
  const Geometry& g = p.geometry;
  const auto multiply = p.pairs ? pair_kernels()->multiply : isa().conv.multiply;
  ConvScratch& s = scratch_of(p, false);
  const FlatMap y = result_map(p, s, p.y_channels, g.y_phases());
  for (int64_t i = next(); i >= 0; i = next()) {
    const Piece piece = p.piece(i);
    place_x(p, piece, sources, s.x);
    const int64_t rows = piece.rows + (g.box && p.bands > 1 ? 1 : 0);
    if (p.winograd)
      isa().conv.winograd(s.x, p.patch(false), p.squares(rows), packed, bias, y, s.winograd);
    else
      multiply(s.x, p.taps, packed, bias, g.box, g.positions(rows), y);
    finish(piece, PieceResult(p, piece, y, false), s);
  }
}

void convolve(const ConvPlan& p, const Sources& sources, const float* packed, const float* bias,
              const Finish& finish) {
  torch::stable::parallel_for(0, p.pieces, 1, [&](int64_t begin, int64_t end) {
    convolve_pieces(p, sources, packed, bias, finish, [&] { return begin < end ? begin++ : -1; });
  });
}

void convolve_backward(const ConvPlan& p, const Sources& sources, const float* weight,
                       const GradientLines& gradient, const ConvBackward& wanted,
                       const Finish& finish) {
  const Geometry& g = p.geometry;
  const std::vector<float> packed =
      wanted.x_channels ? pack_adjoint(p, weight, wanted.x_channels) : std::vector<float>();
  const TapTable taps = adjoint_taps(g, p.length);
  const Correlation correlation(p);
  const int64_t chunks = chunk_count(p);
  thread_local std::vector<float> storage;  // no use clearing it at each call
  const int64_t weights = wanted.grad_weight ? p.weight_count() : 0;
  storage.resize(std::max<size_t>(storage.size(), chunks * weights));
  float* const weight_sums = storage.data();
  std::vector<double> bias_sums(wanted.grad_bias ? chunks * p.y_channels : 0);
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    ConvScratch& s = scratch_of(p, true);
    const FlatMap x = result_map(p, s, wanted.x_channels, g.x_phases());
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      if (wanted.grad_weight) correlation.start(s);
      for (int64_t i = chunk * p.pieces / chunks; i < (chunk + 1) * p.pieces / chunks; ++i) {
        const Piece piece = p.piece(i);
        place_gradient(p, piece, gradient,
                       wanted.grad_bias ? &bias_sums[chunk * p.y_channels] : nullptr, s);
        if (wanted.grad_weight) {
          place_x(p, piece, sources, s.x);
          correlation.add(piece.rows, s);
        }
        if (wanted.x_channels == 0) continue;
        if (p.winograd)
          isa().conv.winograd(s.y, p.patch(true), p.squares(piece.rows), packed.data(), nullptr, x,
                              s.winograd);
        else
          isa().conv.multiply(s.y, taps, packed.data(), nullptr, false, g.positions(piece.rows), x);
        finish(piece, PieceResult(p, piece, x, true), s);
      }
      if (wanted.grad_weight) correlation.finish(s, weight_sums + chunk * weights);
    }
  });
  constexpr int64_t kGrain = 4096;  // of fewer weights, waking a thread takes longer than the sums
  torch::stable::parallel_for(0, weights, kGrain, [&](int64_t begin, int64_t end) {
    isa().conv.sum_chunks(weight_sums, chunks, weights, begin, end, wanted.grad_weight);
  });
  for (int64_t c = 0; wanted.grad_bias && c < p.y_channels; ++c) {
    wanted.grad_bias[c] = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      wanted.grad_bias[c] += bias_sums[chunk * p.y_channels + c];
  }
}

}  // namespace colorseg::cpu

// backward of taylor_scan: one group of heads, a range of features, all tokens.
#pragma once
#include <memory>

#include "taylor_scan_inputs.h"

namespace nearlinear {

struct Wants {
  bool query, keys;  // keys: anything of theirs
};

// runs of features of one task, backwards in time; x: tiles of all chunks, adds to d
template <typename T, int HEADS>
class Backward {
 public:
  static constexpr int64_t W = kLanes<T>, kSets = 2 + HEADS, kTile = kScanRun * kRow<T>;

  Backward(const ScanArguments& in, const Chunks<T>& x, const Chunks<T>& d, int64_t head, Wants wants)
      : in_(in),
        x_(x),
        d_(d),
        head_(head),
        wants_(wants),
        phi_(lines<T>(kSets * kTile)),
        d_phi_(lines<T>(kSets * kTile)),
        dots_(lines<T>(kSets * kDots<T>)),
        states_(lines<T>(x.count * x.panels * kScanRun * 2 * W)),
        last_states_(lines<T>(x.count * kScanRun * 2)),
        totals_(lines<double>(x.panels * kScanRun * 2 * W)),
        last_totals_(lines<double>(kScanRun * 2)) {}

  void run(int64_t first, int64_t m, int64_t a, int64_t b) {
    clear();
    for (int64_t chunk = 0; chunk < x_.count; ++chunk) {
      make_features<T>(in_, x_, chunk, 2, first, m, a, b, phi_);
      advance(chunk, b - a);
    }
    clear();
    for (int64_t chunk = x_.count - 1; chunk >= 0; --chunk) {
      make_features<T>(in_, x_, chunk, kSets, first, m, a, b, phi_);
      if (wants_.keys) {
        retreat<true>(chunk, b - a);
      } else {
        retreat<false>(chunk, b - a);
      }
      fold(chunk, first, m, a, b);
    }
  }

 private:
  T* states(int64_t chunk, int64_t p) const { return states_ + (chunk * x_.panels + p) * kScanRun * 2 * W; }
  void clear() {
    std::fill_n(static_cast<double*>(totals_), x_.panels * kScanRun * 2 * W, 0.0);
    std::fill_n(static_cast<double*>(last_totals_), kScanRun * 2, 0.0);
  }

  void advance(int64_t chunk, int64_t rows) {
    for (int64_t t = 0; t < 2; ++t) {
      for (int64_t p = 0; p < x_.panels; ++p)
        advance_panel<T>(rows, phi_ + t * kTile, x_.columns(chunk, t) + p * kChunk * W, totals_ + p * kScanRun * 2 * W + t * W,
                         states(chunk, p) + t * W);
      advance_last<T>(rows, phi_ + t * kTile, last_totals_ + t, last_states_ + chunk * kScanRun * 2 + t);
    }
  }

  // gradients of the features of a chunk, and of its values
  template <bool KEYS>
  void retreat(int64_t chunk, int64_t rows) {
    const int64_t size = x_.panels * kChunk * W, lanes = lanes_of(in_, chunk, kSteps<T>);
    for (int64_t p = 0; p < x_.panels; ++p) {
      const int64_t at = p * kChunk * W;
      scan_panel_back<HEADS, KEYS, T>(p == 0, rows, lanes, phi_, x_.columns(chunk, 0) + at, x_.columns(chunk, 1) + at,
                                      x_.columns(chunk, 2) + at, size, states(chunk, p), totals_ + p * kScanRun * 2 * W, dots_,
                                      d_.columns(chunk, 0) + at, d_.columns(chunk, 1) + at);
    }
    for (int64_t set = KEYS ? 0 : 2; set < kSets; ++set) add_dots<T>(rows, dots_ + set * kDots<T>, d_phi_ + set * kTile);
    scan_last_back<HEADS, KEYS, T>(rows, phi_, x_.last(chunk, 2), x_.last(chunk, 3) - x_.last(chunk, 2),
                                   last_states_ + chunk * kScanRun * 2, last_totals_, d_phi_);
  }

  void fold(int64_t chunk, int64_t first, int64_t m, int64_t a, int64_t b) {
    const T* weight = static_cast<const T*>(in_.weight.data_ptr()) + first;
    for (int64_t set = wants_.keys ? 0 : 2; set < (wants_.query ? kSets : 2); ++set) {
      T* d_out = d_phi_ + set * kTile;
      if (set >= 2)
        for (int64_t r = 0; r < b - a; ++r)
          for (int64_t t = 0; t < kChunk; ++t) d_out[r * kRow<T> + t] *= weight[r];
      const int64_t to = set < 2 ? set : set + head_;
      T *low = x_.channels(chunk, set), *w = x_.weights(chunk, set), *d_low = d_.channels(chunk, to), *d_w = d_.weights(chunk, to);
      if (m == in_.table.low()) {
        fold_rows(w, low + a * kRow<T>, d_out, b - a, kChunk, d_low + a * kRow<T>, d_w);
      } else {  // channels are features too: one gradient of both
        fold_features(in_.table, low + kRow<T>, low, kChunk, m, a, b, w, d_out, d_low, d_low + kRow<T>, d_w);
      }
    }
  }

  const ScanArguments& in_;
  const Chunks<T>&x_, &d_;
  const int64_t head_;
  const Wants wants_;
  const Lines<T> phi_, d_phi_, dots_, states_, last_states_;
  const Lines<double> totals_, last_totals_;
};

// the upstream gradient of a chunk
template <typename T>
void pack_upstream(const ScanArguments& in, const Task& task, const Tensor& d_sums, int64_t chunk, const Chunks<T>& x, T* line) {
  for (int64_t h = 0; h < task.count; ++h) {
    const auto rows = rows_of<const T>(d_sums, task.b, task.g * in.group() + task.head + h);
    for (int64_t i = 0; i < std::min(kChunk, in.tokens - chunk * kChunk); ++i) {
      simd::load(rows.data + (chunk * kChunk + i) * rows.stride, rows.step, in.columns + 1, line);
      pack_columns(line, in.columns, x.columns(chunk, 2 + h), place<T>(i));
      x.last(chunk, 2 + h)[place<T>(i)] = line[in.columns];
    }
  }
}

// gradients of one group from features [first, last)
template <typename scalar_t>
std::unique_ptr<Chunks<opmath_t<scalar_t>>> gradients(const ScanArguments& in, const Tensor& d_sums, int64_t b, int64_t g, int64_t first,
                                                      int64_t last, Wants wants) {
  using T = opmath_t<scalar_t>;
  const int64_t panels = pieces(in.columns, kLanes<T>), chunks = in.chunks();
  auto d = std::make_unique<Chunks<T>>(chunks, 2 + in.group(), in.dim, panels, 2);
  const Lines<T> line = lines<T>(std::max(in.dim, in.columns) + 1);
  for_heads(in.group(), [&](auto heads, int64_t head) {
    constexpr int HEADS = decltype(heads)::value;
    const Task task{b, g, head, HEADS, 0, panels};
    const Chunks<T> x(chunks, 2 + HEADS, in.dim, panels, 2 + HEADS);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      pack<scalar_t, T>(in, task, chunk, x, chunk, line);
      pack_upstream<T>(in, task, d_sums, chunk, x, line);
    }
    Backward<T, HEADS> backward(in, x, *d, head, wants);
    for_runs(in.table, first, last, [&](int64_t m, int64_t a, int64_t b_, int64_t number) { backward.run(number, m, a, b_); });
  });
  return d;
}

struct Gradients {  // contiguous; of no elements where nobody asks
  Tensor query;
  std::array<Tensor, 2> key, value, bias;
};

// writes row `token` of a gradient, from what add() adds to a line of zeros
template <typename scalar_t, typename T, typename F>
void put(const Tensor& to, int64_t b, int64_t head, int64_t token, int64_t width, T* line, F&& add) {
  if (to.numel() == 0) return;
  std::fill_n(line, width, T(0));
  add();
  const auto rows = rows_of<scalar_t>(to, b, head);
  simd::store(static_cast<const T*>(line), width, rows.step, rows.data + token * rows.stride);
}

// gradients of the tokens of a chunk, to the tensors that are wanted; a key that takes no part has gradient 0
template <typename scalar_t, typename T>
void store(const ScanArguments& in, int64_t b, int64_t g, int64_t chunk, const Chunks<T>& d, T* line, const Gradients& out) {
  for (int64_t i = 0; i < std::min(kChunk, in.tokens - chunk * kChunk); ++i) {
    const int64_t token = chunk * kChunk + i, at = place<T>(i);
    const auto add_channels = [&](int64_t set) {
      for (int64_t c = 0; c < in.dim; ++c) line[c] += d.channels(chunk, set)[(c + 1) * kRow<T> + at];
    };
    for (int64_t h = 0; h < in.group(); ++h)
      put<scalar_t>(out.query, b, g * in.group() + h, token, in.dim, line, [&] { add_channels(2 + h); });
    for (int64_t t = 0; t < 2; ++t) {
      const size_t side = static_cast<size_t>(t);
      const T weight = key_weight<T>(in.bias[side], b, g, token);
      const bool present = weight != 0;
      put<scalar_t>(out.key[side], b, g, token, in.dim, line, [&] {
        if (present) add_channels(t);
      });
      put<scalar_t>(out.value[side], b, g, token, in.columns, line, [&] {
        if (present) add_columns(d.columns(chunk, t), at, in.columns, line);
      });
      if (out.bias[side].numel() > 0)
        static_cast<T*>(out.bias[side].data_ptr())[(b * in.groups + g) * in.tokens + token] =
            present ? weight * d.weights(chunk, t)[at] : T(0);
    }
  }
}

}  // namespace nearlinear

// attention over pairs of keys: a tile of queries against blocks of both key axes, in batches of rows (one query with one key of axis 0).
//
// The queries of the heads that share keys are one list, query by query, so that a tile of it reads its keys once; tile after tile of the
// list is a task. Axis 0 is the one with fewer keys in reach: what is done once for each of its keys is paid for by all keys of axis 1.
#pragma once
#include <array>
#include <utility>

#include "trilinear_keys.h"
#include "trilinear_weights.h"

namespace nearlinear {

constexpr int64_t kTileRows = 48;    // of queries in a tile, and of rows in a batch
constexpr int64_t kOuterKeys = 256;  // of a block of axis 0

template <typename T>
struct TrilinearProblem {
  TensorRows<T> query;
  std::array<Axis<T>, 2> axes;
  T scale;
  bool swapped;  // axis 0 is key2 and value2
  int64_t batch;

  int64_t groups() const { return axes[0].key.heads; }
  int64_t sharing() const { return query.heads / groups(); }
  int64_t queries() const { return query.count * sharing(); }  // of a group
  int64_t value_channels() const { return axes[0].value.channels; }
  // a multiple of four, so that a few threads get equal shares, and rows of a batch are filled by several keys of axis 0
  int64_t tiles() const {
    const int64_t least = (queries() + kTileRows - 1) / kTileRows;
    return least < 4 ? least : (least + 3) / 4 * 4;
  }
  int64_t tile_begin(int64_t tile) const { return queries() * tile / tiles(); }
  int64_t head(int64_t g, int64_t slot) const { return g * sharing() + slot % sharing(); }
  int64_t place(int64_t slot) const { return slot / sharing(); }
};

// a key of axis 0 with queries of the tile one after another
struct Segment {
  int64_t key, slot, rows;
};
struct Batch {
  int64_t rows = 0, segments = 0;
  std::array<Segment, kTileRows> list;
};

template <typename T>
NL_CLONES void multiply_rows(int64_t rows, int64_t n, const T* __restrict a, int64_t stride, const T* __restrict factor,
                             T* __restrict out) {
  for (int64_t r = 0; r < rows; ++r)
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) out[r * stride + c] = a[r * stride + c] * factor[c];
}

// What forward and backward of a tile share. Workspace of a thread: a new task overwrites it.
template <typename T>
class QueryTile {
 public:
  static constexpr int64_t W = kLanes<T>;

  // `inner_bytes`: of a block of axis 1, which is read again for each key of axis 0
  QueryTile(const TrilinearProblem<T>& problem, int64_t inner_bytes)
      : problem(problem),
        outer(problem.axes[0], std::min(kOuterKeys, problem.axes[0].key.count), false),
        inner(problem.axes[1], inner_keys(problem, inner_bytes), true),
        stride(outer.key_stride),
        queries(lines<T>(kTileRows * stride)),
        rows(lines<T>(kTileRows * stride)) {}

  template <typename weight_t>
  void load(int64_t task, const weight_t&) {
    const int64_t tile = task % problem.tiles(), bg = task / problem.tiles();
    b = bg / problem.groups(), g = bg % problem.groups();
    begin = problem.tile_begin(tile), count = problem.tile_begin(tile + 1) - begin;
    norms = {};
    for (int64_t s = 0; s < count; ++s) {
      T* row = queries.get() + s * stride;
      problem.query.load(b, problem.head(g, begin + s), problem.place(begin + s), row);
      for (int64_t c = 0; c < problem.query.channels; ++c) row[c] *= problem.scale;
      if (weight_t::kShifts) add_norms(row, problem.query.channels, &norms);
    }
    if (!weight_t::kShifts)
      for (int axis : {0, 1}) bias_top[axis] = largest_bias(axis);
  }

  // of all weights, where rows have no shift: e^bias has its largest value taken out, so that a pair overflows only if their product does
  double factor() const { return std::exp(static_cast<double>(bias_top[0]) + bias_top[1]); }

  // keys of an axis that some query of the tile may see
  Range reach(int axis) const { return {seen(axis, 0).first, seen(axis, count - 1).last}; }

  // f() for each block of pairs of keys, packed, with the places that each query sees
  template <typename weight_t, typename F>
  void for_each_block(const weight_t& weight, F&& f) {
    const Range all0 = reach(0), all1 = reach(1);
    for (int64_t j = all0.first; j < all0.last; j += outer.capacity) {
      pack(0, &outer, {j, std::min(j + outer.capacity, all0.last)}, weight);
      for (int64_t k = all1.first; k < all1.last; k += inner.capacity) {
        if (all1.size() > inner.capacity || j == all0.first) pack(1, &inner, {k, std::min(k + inner.capacity, all1.last)}, weight);
        if (outer.count > 0 && inner.count > 0) f();
      }
    }
  }

  // f(batch) for the rows of the block: its keys of axis 0 in order
  template <typename F>
  void for_each_batch(F&& f) {
    Batch batch;
    int64_t low = 0, high = 0;
    for (int64_t j = 0; j < outer.count; ++j) {
      while (low < count && places[0][low].last <= j) ++low;
      while (high < count && places[0][high].first <= j) ++high;
      for (int64_t s = low, n; s < high; s += n) {
        n = std::min(high - s, kTileRows - batch.rows);
        batch.list[batch.segments++] = {j, s, n};
        batch.rows += n;
        if (batch.rows == kTileRows) f(std::exchange(batch, {}));
      }
    }
    if (batch.rows > 0) f(batch);
  }

  // rows of the batch: scale query * key of axis 0, and the range of axis 1 that they see
  Range multiply(const Batch& batch) {
    Range all{inner.padded, 0};
    int64_t row = 0;
    for (int64_t i = 0; i < batch.segments; row += batch.list[i++].rows) {
      const Segment& s = batch.list[i];
      multiply_rows(s.rows, problem.query.channels, queries.get() + s.slot * stride, stride, outer.key(s.key), rows.get() + row * stride);
      all.first = std::min(all.first, places[1][s.slot].first);
      all.last = std::max(all.last, places[1][s.slot + s.rows - 1].last);
      for (int64_t r = 0; r < s.rows; ++r) {
        slot[row + r] = s.slot + r;
        bias[row + r] = outer.bias[s.key];
      }
    }
    return {all.first / W * W, all.last};
  }

  const TrilinearProblem<T>& problem;
  KeyBlock<T> outer, inner;
  int64_t b = 0, g = 0, begin = 0, count = 0, stride;
  Norms<T> norms;
  std::array<T, 2> bias_top{};                         // taken out of the biases of an axis
  Lines<T> queries, rows;                              // scaled queries; rows of a batch
  std::array<std::array<Range, kTileRows>, 2> places;  // in the blocks, by query
  std::array<int64_t, kTileRows> slot;                 // query and bias of axis 0 of a row
  std::array<T, kTileRows> bias;

 private:
  static int64_t inner_keys(const TrilinearProblem<T>& problem, int64_t bytes) {
    const int64_t channels = problem.query.channels + problem.value_channels();
    const int64_t fitting = bytes / static_cast<int64_t>(sizeof(T)) / std::max<int64_t>(channels, 1) / 128 * 128;
    return std::min(std::clamp<int64_t>(fitting, 128, 1024), std::max<int64_t>(whole_lines<T>(problem.axes[1].key.count), W));
  }
  Range seen(int axis, int64_t slot) const {
    return problem.axes[axis].window.keys(problem.place(begin + slot), problem.axes[axis].key.count);
  }
  T largest_bias(int axis) const {
    T top = -simd::infinity<T>;
    const Range all = reach(axis);
    const auto& bias = problem.axes[axis].bias;
    for (int64_t j = all.first; bias && j < all.last; ++j) top = std::max(top, bias->element(b, g, j));
    return top == -simd::infinity<T> ? T(0) : top;
  }
  template <typename weight_t>
  void pack(int axis, KeyBlock<T>* block, Range range, const weight_t& weight) {
    block->pack(b, g, range, weight, bias_top[axis]);
    for (int64_t s = 0; s < count; ++s) places[axis][s] = block->places(seen(axis, s));
  }
};

}  // namespace nearlinear

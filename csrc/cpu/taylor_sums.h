// sums over tokens of features times values: the moments, and the gradient of what they are multiplied with.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "taylor_tiles.h"

namespace nearlinear {

using torch::stable::parallel_for;

constexpr int64_t kSegment = 32;                           // tiles whose sums are added before the total is
constexpr int64_t kCached = 384 << 10;                     // bytes of the sums of a range of features
constexpr int64_t kTasks = 32, kParts = int64_t{1} << 22;  // wished for, however few the heads are; elements of all parts

// How sums over tokens are cut: by shapes alone, so that the bits are those of any number of threads.
struct Cut {
  int64_t columns, stride, ranges, range, parts;  // of a row of sums in cache; features of a range; parts of the tokens

  Cut(int64_t problems, int64_t features, int64_t columns_, int64_t all_tiles, int64_t lanes, int64_t element)
      : columns(columns_), stride(padded_tokens(columns_, lanes) + lanes) {
    const int64_t most = std::max(kRun, kCached / element / stride);
    ranges = pieces(features, most), range = pieces(features, ranges);
    const int64_t heads = std::max<int64_t>(problems, 1), wished = std::min(kTasks / ranges, kParts / (features * (columns + 1))) / heads;
    parts = std::max<int64_t>(std::min(wished, all_tiles / 8), 1);
  }
};

// a [kTokens, columns] tile of values, and the column that is summed in lanes
template <typename T>
struct ValueTile {
  const int64_t columns, stride;
  const Lines<T> rows;
  alignas(64) T last[kTokens];

  explicit ValueTile(int64_t columns_) : columns(columns_), stride(padded_stride<T>(columns_)), rows(kTokens * stride) {}
};

// sums [rows, stride] += phi [rows, kRow] * w, lane by lane
template <typename T>
NL_CLONES void add_lanes(const T* __restrict phi, int64_t rows, int64_t tokens, const T* __restrict w, int64_t stride, T* __restrict sums) {
  constexpr int64_t W = kLanes<T>;
  for (int64_t r = 0; r < rows; ++r) {
    T sum[W] = {};
    for (int64_t t = 0; t < tokens; t += W)
#pragma omp simd
      for (int64_t l = 0; l < W; ++l) sum[l] += phi[r * kRow<T> + t + l] * w[t + l];
#pragma omp simd
    for (int64_t l = 0; l < W; ++l) sums[r * stride + l] += sum[l];
  }
}

// total [rows, columns + 1] += sums in cache, which become 0
template <typename T>
NL_CLONES void flush(const Cut& cut, int64_t rows, T* __restrict sums, T* __restrict total) {
  for (int64_t r = 0; r < rows; ++r) {
    T* __restrict from = sums + r * cut.stride;
    T* __restrict to = total + r * (cut.columns + 1);
#pragma omp simd
    for (int64_t e = 0; e < cut.columns; ++e) to[e] += from[e];
    const T* lanes = from + cut.stride - kLanes<T>;
    T sum = 0;
    for (int64_t l = 0; l < kLanes<T>; ++l) sum += lanes[l];
    to[cut.columns] += sum;
    std::fill_n(from, cut.stride, T(0));
  }
}

// Sums over tokens of phi (values, last). load(problem, tile, FeatureTile, ValueTile) fills channels, values and last, and returns how
// many tokens there are; the tiles of a problem are its own.
template <typename T, typename F>
void sum_moments(const FeatureTable& table, int64_t problems, int64_t columns, int64_t all_tiles, F&& load, T* out) {
  const int64_t size = table.count() * (columns + 1);
  const Cut cut(problems, table.count(), columns, all_tiles, kLanes<T>, sizeof(T));
  const std::unique_ptr<T[]> partial(cut.parts > 1 ? new T[static_cast<size_t>(problems * cut.parts * size)] : nullptr);
  T* totals = cut.parts > 1 ? partial.get() : out;
  parallel_for(0, problems * cut.parts * cut.ranges, 1, [&](int64_t begin, int64_t end) {
    FeatureTile<T> tile(table);
    ValueTile<T> values(columns);
    const Lines<T> sums(cut.range * cut.stride);
    std::fill_n(static_cast<T*>(sums), cut.range * cut.stride, T(0));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % cut.ranges * cut.range, last = std::min(first + cut.range, table.count());
      const int64_t part = task / cut.ranges % cut.parts, problem = task / cut.ranges / cut.parts;
      T* total = totals + (problem * cut.parts + part) * size + first * (columns + 1);
      std::fill_n(total, (last - first) * (columns + 1), T(0));
      const int64_t from = part * all_tiles / cut.parts, to = (part + 1) * all_tiles / cut.parts;
      for (int64_t i = from; i < to; ++i) {
        const int64_t tokens = load(problem, i, tile, values);
        tile.prepare(tokens);
        tile.each_run(first, last, [&](int64_t at, int64_t n, const T* phi) {
          T* sum = sums + (at - first) * cut.stride;
          const int64_t width = cut.stride - kLanes<T>;
          matmul_tile<Layout::kRows, true, T>(n, width, tokens, phi, kRow<T>, values.rows, values.stride, sum, cut.stride);
          add_lanes<T>(phi, n, tile.tokens, values.last, cut.stride, sum + width);
        });
        if (i + 1 == to || (i + 1 - from) % kSegment == 0) flush<T>(cut, last - first, sums, total);
      }
    }
  });
  if (cut.parts > 1)
    parallel_for(0, problems * size, 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* term = totals + i / size * cut.parts * size + i % size;
        T sum = 0;
        for (int64_t p = 0; p < cut.parts; ++p) sum += term[p * size];
        out[i] = sum;
      }
    });
}

}  // namespace nearlinear

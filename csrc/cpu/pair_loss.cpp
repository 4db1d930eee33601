// pair_tile_stats, CPU.   lse = log sum_j w_ij e^{scale s_ij},  sum = sum_j w_ij scale s_ij,  mass = sum_j w_ij,  s = map(tile)
//                         once over positive pairs (w = y_ij, 1 for equal labels), once over negative ones (w = 1 - y_ij)
//                         d_tile = map' sum over sides of w (total e + rest (1 - e)),  e = e^{scale s - shift}
// Shapes: tile [R, C] contiguous, row_label [R], column_label [C] int64; limit [2, R]; statistics [2, R] float64; terms [3 or 4, 2, R or
// C]. Algorithm: blocks of 512 scores in the L1 cache; a row's maximum is found in one pass over a block, its sums in the next. Cost: reads
// R C forward, reads and writes R C backward; R C exponentials forward, 2 R C backward with the terms of both ends. Numerics: block sums in
// the dtype of the tile, merged in float64; a pair beyond the row's limit, and a row with itself (by position,
//   not by value), count nowhere; NaN counts and gives NaN; an empty side gives lse = -inf; run_to_run, for any number of threads.
#include "pair_loss.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <optional>
#include <string>
#include <tuple>

namespace nearlinear {
namespace {

using torch::stable::parallel_for;
using OptionalTensor = std::optional<Tensor>;

// a tile and the labels of its two sides
struct PairTile {
  Tensor row_label, column_label, other_label, mixing;  // contiguous copies that keep the pointers alive
  const int64_t* row;
  int64_t rows, columns, first_self;
  bool excludes_self, soft;

  PairTile(const Tensor& tile, const Tensor& row_label_, const Tensor& column_label_, const OptionalTensor& other,
           const OptionalTensor& mix, const std::optional<int64_t>& self_column, const char* op)
      : row_label(torch::stable::contiguous(row_label_)),
        column_label(torch::stable::contiguous(column_label_)),
        other_label(torch::stable::contiguous(other.value_or(column_label_))),
        mixing(torch::stable::contiguous(mix.value_or(tile))),
        first_self(self_column.value_or(0)),
        excludes_self(self_column.has_value()),
        soft(other.has_value()) {
    check(tile.dim() == 2 && tile.is_contiguous(), op, "tile must be contiguous with shape (R, C)");
    check(tile.scalar_type() == ScalarType::Float || tile.scalar_type() == ScalarType::Double, op, "tile must be float32 or float64");
    rows = tile.size(0), columns = tile.size(1);
    for (const Tensor* label : {&row_label, &column_label, &other_label})
      check(label->scalar_type() == ScalarType::Long, op, "labels must be int64");
    check(row_label.numel() == rows && column_label.numel() == columns && other_label.numel() == columns, op,
          "labels must have one element per row and per column of tile");
    check(mix.has_value() == soft, op, "other_label and mixing must be given together");
    check(!soft || (mix->numel() == columns && mix->scalar_type() == tile.scalar_type()), op,
          "mixing must have one element per column in the dtype of tile");
    row = row_label.const_data_ptr<int64_t>();
  }

  // column that is the row itself; -1: none
  int64_t self(int64_t r) const { return excludes_self ? r + first_self : -1; }
  template <typename op_t>
  ColumnLabels<op_t> labels() const {
    return {column_label.const_data_ptr<int64_t>(), soft ? other_label.const_data_ptr<int64_t>() : nullptr,
            soft ? mixing.const_data_ptr<op_t>() : nullptr};
  }
};

template <typename F>
void dispatch_tile(const Tensor& tile, F&& f) {
  if (tile.scalar_type() == ScalarType::Double) return f(double{});
  f(float{});
}

template <typename op_t>
Sides<op_t> both_scales(const std::vector<double>& scale, const char* op) {
  check(scale.size() == 2, op, "scale must have two elements, of the positive and of the negative pairs");
  return {static_cast<op_t>(scale[0]), static_cast<op_t>(scale[1])};
}

// limits, or terms, of `count` rows or columns
template <typename op_t>
PairTerms<op_t> terms(const OptionalTensor& values, int64_t count, const char* op) {
  if (!values.has_value()) return {nullptr, count, 0};
  const int64_t number = values->numel() / std::max<int64_t>(2 * count, 1);
  check(values->numel() == 2 * count * number && values->is_contiguous() &&
            values->scalar_type() == (std::is_same_v<op_t, double> ? ScalarType::Double : ScalarType::Float),
        op, "limit and terms must be contiguous in the dtype of tile, with two elements per row or column and term");
  return {values->const_data_ptr<op_t>(), count, number};
}

template <typename op_t, typename map_t>
void stats_row(const PairTile& P, const op_t* tile, map_t map, Sides<op_t> scale, PairTerms<op_t> limit, int64_t r, double* lse,
               double* sum, double* mass) {
  alignas(64) op_t s[kPairBlock], side[kPairBlock], weight[kPairBlock], z[kPairBlock];
  const ColumnLabels<op_t> labels = P.labels<op_t>();
  const bool limited = limit.data != nullptr;
  const Sides<op_t> bound = limited ? limit.of(0, r) : Sides<op_t>{};
  PairSum sums[2];
  for (int64_t begin = 0; begin < P.columns; begin += kPairBlock) {
    const int64_t n = std::min(kPairBlock, P.columns - begin);
    std::copy_n(tile + r * P.columns + begin, n, s);
    map_values(map, s, n);
    for (int64_t pass = 0; pass < labels.passes(); ++pass) {
      sides_and_weights(labels, P.row[r], begin, n, pass, P.self(r), side, weight);
      Tally<op_t> found;
      (limited ? tally<true, op_t> : tally<false, op_t>)(s, side, weight, n, scale, bound, z, &found);
      const Sides<op_t> shift = {static_cast<op_t>(sums[kPositive].raise(found.top.positive)),
                                 static_cast<op_t>(sums[kNegative].raise(found.top.negative))};
      const Sides<op_t> part = weighted_exponentials(z, side, weight, n, shift);
      sums[kPositive].exponentials += part.positive, sums[kNegative].exponentials += part.negative;
      sums[kPositive].sum += found.sum.positive, sums[kNegative].sum += found.sum.negative;
      sums[kPositive].mass += found.mass.positive, sums[kNegative].mass += found.mass.negative;
    }
  }
  for (int64_t k = 0; k < 2; ++k) {
    const int64_t at = k * P.rows + r;
    lse[at] = sums[k].lse(), sum[at] = sums[k].sum, mass[at] = sums[k].mass;
  }
}

std::tuple<Tensor, Tensor, Tensor> pair_tile_stats_cpu(const Tensor& tile, const Tensor& row_label, const Tensor& column_label,
                                                       const OptionalTensor& other_label, const OptionalTensor& mixing,
                                                       const OptionalTensor& limit, const std::optional<int64_t>& self_column,
                                                       const std::string& logit_map, const std::vector<double>& map_params,
                                                       const std::vector<double>& scale) {
  const char* op = "pair_tile_stats";
  const PairTile P(tile, row_label, column_label, other_label, mixing, self_column, op);
  const LogitMap map = make_logit_map(logit_map, map_params, op);
  auto output = [&] { return torch::stable::new_empty(tile, {2, P.rows}, ScalarType::Double); };
  Tensor lse = output(), sum = output(), mass = output();
  double *l = lse.mutable_data_ptr<double>(), *s = sum.mutable_data_ptr<double>(), *m = mass.mutable_data_ptr<double>();
  dispatch_tile(tile, [&](auto zero) {
    using op_t = decltype(zero);
    const Sides<op_t> scales = both_scales<op_t>(scale, op);
    const op_t* data = tile.const_data_ptr<op_t>();
    const PairTerms<op_t> bound = terms<op_t>(limit, P.rows, op);
    std::visit(
        [&](auto map_) {
          parallel_for(0, P.rows, row_grain(P.columns), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) stats_row(P, data, map_, scales, bound, r, l, s, m);
          });
        },
        map);
  });
  return {lse, sum, mass};
}

// a block of columns is the outer loop, so that its coefficients stay in the cache while the rows of a task pass by
template <typename op_t, typename map_t>
void gradient_rows(const PairTile& P, op_t* tile, map_t map, Sides<op_t> scale, PairTerms<op_t> rows, PairTerms<op_t> columns,
                   int64_t first, int64_t last) {
  alignas(64) op_t s[kPairBlock], side[kPairBlock], weight[kPairBlock], z[kPairBlock], d[kPairBlock];
  const ColumnLabels<op_t> labels = P.labels<op_t>();
  const op_t log_most = P.soft ? op_t(80) : op_t(0);
  const bool limited = rows.number == 4;
  const auto gradient = columns.data == nullptr ? (limited ? pair_gradient<false, true, op_t> : pair_gradient<false, false, op_t>)
                                                : (limited ? pair_gradient<true, true, op_t> : pair_gradient<true, false, op_t>);
  for (int64_t begin = 0; begin < P.columns; begin += kPairBlock) {
    const int64_t n = std::min(kPairBlock, P.columns - begin);
    for (int64_t r = first; r < last; ++r) {
      op_t* raw = tile + r * P.columns + begin;
      std::copy_n(raw, n, s);
      map_values(map, s, n);
      std::fill_n(d, n, op_t(0));
      for (int64_t pass = 0; pass < labels.passes(); ++pass) {
        sides_and_weights(labels, P.row[r], begin, n, pass, P.self(r), side, weight);
        scale_sides(s, side, n, scale, z);
        gradient(s, z, side, weight, n, rows, r, columns, begin, log_most, d);
      }
      if constexpr (!std::is_same_v<map_t, IdentityMap>) times_map_slope(map, raw, d, n);
      std::copy_n(d, n, raw);
    }
  }
}

void pair_tile_stats_backward_cpu_(const Tensor& tile, const Tensor& row_label, const Tensor& column_label,
                                   const OptionalTensor& other_label, const OptionalTensor& mixing, const Tensor& row_terms,
                                   const OptionalTensor& column_terms, const std::optional<int64_t>& self_column,
                                   const std::string& logit_map, const std::vector<double>& map_params, const std::vector<double>& scale) {
  const char* op = "pair_tile_stats_backward_";
  const PairTile P(tile, row_label, column_label, other_label, mixing, self_column, op);
  const LogitMap map = make_logit_map(logit_map, map_params, op);
  check(!P.soft || !column_terms.has_value(), op, "column_terms must be None with soft labels, which are not symmetric");
  dispatch_tile(tile, [&](auto zero) {
    using op_t = decltype(zero);
    const Sides<op_t> scales = both_scales<op_t>(scale, op);
    const PairTerms<op_t> rows = terms<op_t>(row_terms, P.rows, op), columns = terms<op_t>(column_terms, P.columns, op);
    check(P.rows == 0 || rows.number == 3 || rows.number == 4, op, "row_terms must have shape (3, 2, R) or (4, 2, R)");
    check(columns.data == nullptr || P.rows * P.columns == 0 || columns.number == rows.number, op,
          "column_terms must have the terms of row_terms");
    op_t* data = static_cast<op_t*>(tile.data_ptr());
    std::visit(
        [&](auto map_) {
          parallel_for(0, P.rows, row_grain(P.columns),
                       [&](int64_t begin, int64_t end) { gradient_rows(P, data, map_, scales, rows, columns, begin, end); });
        },
        map);
  });
}

// best so far of one row; the lowest column among equals
template <typename op_t>
struct Extreme {
  op_t value;
  int64_t column = -1;
};

template <typename op_t, typename map_t>
void extremes_row(const PairTile& P, const op_t* tile, map_t map, int64_t r, op_t* value, int64_t* index) {
  alignas(64) op_t s[kPairBlock], side[kPairBlock];
  const int64_t* labels = P.column_label.const_data_ptr<int64_t>();
  const int64_t y = P.row[r];
  Extreme<op_t> low{simd::infinity<op_t>}, high{-simd::infinity<op_t>};
  op_t invalid = 0;
  const auto segment = [&](int64_t begin, int64_t end) {
    for (; begin < end; begin += kPairBlock) {
      const int64_t n = std::min(kPairBlock, end - begin);
      std::copy_n(tile + r * P.columns + begin, n, s);
      map_values(map, s, n);
      hard_sides(labels + begin, y, n, side);
      op_t l, h, nan;
      block_extremes(s, side, n, &l, &h, &nan);
      invalid += nan;
      // an infinite score is an extreme too, where the row has no other
      const auto find = [&](Extreme<op_t>& best, op_t found, op_t wanted, bool better) {
        if (!better && best.column >= 0) return;
        for (int64_t j = 0; j < n; ++j)
          if (side[j] == wanted && s[j] == found) {
            best = {found, begin + j};
            return;
          }
      };
      find(low, l, op_t(1), l < low.value);
      find(high, h, op_t(0), h > high.value);
    }
  };
  const int64_t self = P.self(r);
  const bool inside = self >= 0 && self < P.columns;
  segment(0, inside ? self : P.columns);
  if (inside) segment(self + 1, P.columns);
  if (invalid != 0) low = high = {std::numeric_limits<op_t>::quiet_NaN()};
  value[r] = low.value, value[P.rows + r] = high.value;
  index[r] = low.column, index[P.rows + r] = high.column;
}

std::tuple<Tensor, Tensor> pair_tile_extremes_cpu(const Tensor& tile, const Tensor& row_label, const Tensor& column_label,
                                                  const std::optional<int64_t>& self_column, const std::string& logit_map,
                                                  const std::vector<double>& map_params) {
  const char* op = "pair_tile_extremes";
  const PairTile P(tile, row_label, column_label, std::nullopt, std::nullopt, self_column, op);
  const LogitMap map = make_logit_map(logit_map, map_params, op);
  Tensor value = torch::stable::new_empty(tile, {2, P.rows}, tile.scalar_type());
  Tensor index = torch::stable::new_empty(tile, {2, P.rows}, ScalarType::Long);
  int64_t* i = index.mutable_data_ptr<int64_t>();
  dispatch_tile(tile, [&](auto zero) {
    using op_t = decltype(zero);
    const op_t* data = tile.const_data_ptr<op_t>();
    op_t* v = value.mutable_data_ptr<op_t>();
    std::visit(
        [&](auto map_) {
          parallel_for(0, P.rows, row_grain(P.columns), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) extremes_row(P, data, map_, r, v, i);
          });
        },
        map);
  });
  return {value, index};
}

}  // namespace
}  // namespace nearlinear

STABLE_TORCH_LIBRARY_IMPL(nearlinear, CPU, m) {
  m.impl("pair_tile_stats", TORCH_BOX(&nearlinear::pair_tile_stats_cpu));
  m.impl("pair_tile_stats_backward_", TORCH_BOX(&nearlinear::pair_tile_stats_backward_cpu_));
  m.impl("pair_tile_extremes", TORCH_BOX(&nearlinear::pair_tile_extremes_cpu));
}

// what pair_loss.cpp does to one block of a row of scores. Every element has a side (positive or negative pair) and a weight; one call
// serves hard labels, and soft labels are two calls: all elements positive with weight y, all negative with weight 1 - y.
#pragma once
#include "row_blocks.h"

namespace nearlinear {

// columns per block: the arrays of a block, coefficients of its columns included, stay in a usual L1 cache together
constexpr int64_t kPairBlock = 512;
constexpr int64_t kPositive = 0, kNegative = 1;

// of either side
template <typename op_t>
struct Sides {
  op_t positive, negative;
};

// labels of the columns: one each, or two and the share of the first
template <typename op_t>
struct ColumnLabels {
  const int64_t *first, *second;  // second is null where labels are hard
  const op_t* share;

  int64_t passes() const { return second == nullptr ? 1 : 2; }
};

template <typename op_t>
NL_CLONES void hard_sides(const int64_t* __restrict label, int64_t y, int64_t n, op_t* __restrict side) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) side[j] = label[j] == y ? op_t(1) : op_t(0);
}

// y_ij, or 1 - y_ij; equal labels make exactly 1
template <typename op_t>
NL_CLONES void soft_weights(const int64_t* __restrict first, const int64_t* __restrict second, const op_t* __restrict share, int64_t y,
                            bool positive, int64_t n, op_t* __restrict weight) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const bool a = (first[j] == y) == positive, b = (second[j] == y) == positive;
    weight[j] = a ? (b ? op_t(1) : share[j]) : (b ? op_t(1) - share[j] : op_t(0));
  }
}

// side and weight of a block's elements in one of the passes; the pair of a row with itself (at column self) has no weight
template <typename op_t>
void sides_and_weights(const ColumnLabels<op_t>& labels, int64_t y, int64_t begin, int64_t n, int64_t pass, int64_t self, op_t* side,
                       op_t* weight) {
  if (labels.passes() == 1) {
    hard_sides(labels.first + begin, y, n, side);
    std::fill_n(weight, n, op_t(1));
  } else {
    std::fill_n(side, n, op_t(pass == kPositive));
    soft_weights(labels.first + begin, labels.second + begin, labels.share + begin, y, pass == kPositive, n, weight);
  }
  if (self >= begin && self < begin + n) weight[self - begin] = 0;
}

template <typename op_t>
struct Tally {
  Sides<op_t> top, sum, mass;
};

// z = scale s where the pair counts, -inf elsewhere; maxima of z, sums of w z, sums of w. NaN counts. z is stored, so that no fused
// multiply-add makes z - max of the largest z anything but 0. Limits are not looked at unless limited.
template <bool limited, typename op_t>
NL_CLONES void tally(const op_t* __restrict s, const op_t* __restrict side, const op_t* __restrict weight, int64_t n, Sides<op_t> scale,
                     Sides<op_t> limit, op_t* __restrict z, Tally<op_t>* out) {
  op_t top_p = -simd::infinity<op_t>, top_n = top_p, sum_p = 0, sum_n = 0, mass_p = 0, mass_n = 0;
#pragma omp simd reduction(max : top_p, top_n) reduction(+ : sum_p, sum_n, mass_p, mass_n)
  for (int64_t j = 0; j < n; ++j) {
    const bool p = side[j] != 0;
    op_t w = weight[j];
    if constexpr (limited) w = (p ? s[j] : -s[j]) >= (p ? limit.positive : limit.negative) ? op_t(0) : w;
    const op_t v = w != 0 ? (p ? scale.positive : scale.negative) * s[j] : -simd::infinity<op_t>;
    const op_t part = w != 0 ? w * v : op_t(0), w_p = side[j] * w;
    z[j] = v;
    top_p = p && v > top_p ? v : top_p;
    top_n = !p && v > top_n ? v : top_n;
    sum_p += p ? part : op_t(0);
    sum_n += p ? op_t(0) : part;
    mass_p += w_p;
    mass_n += w - w_p;
  }
  *out = {{top_p, top_n}, {sum_p, sum_n}, {mass_p, mass_n}};
}

// sums of w e^{z - shift}
template <typename op_t>
NL_CLONES Sides<op_t> weighted_exponentials(const op_t* __restrict z, const op_t* __restrict side, const op_t* __restrict weight, int64_t n,
                                            Sides<op_t> shift) {
  op_t sum_p = 0, sum_n = 0;
#pragma omp simd reduction(+ : sum_p, sum_n)
  for (int64_t j = 0; j < n; ++j) {
    const bool p = side[j] != 0;
    const op_t e = weight[j] * simd::exp(z[j] - (p ? shift.positive : shift.negative));
    sum_p += p ? e : op_t(0);
    sum_n += p ? op_t(0) : e;
  }
  return {sum_p, sum_n};
}

// one side of one row over the blocks so far, in double
struct PairSum {
  double shift = -simd::infinity<double>, exponentials = 0, sum = 0, mass = 0;

  // the shift of a block whose maximum is top; a block of -inf or NaN has none
  double raise(double top) {
    if (top > shift) {
      exponentials *= std::exp(shift - top);
      shift = top;
    }
    return finite_shift();
  }
  double lse() const { return finite_shift() + std::log(exponentials); }

 private:
  double finite_shift() const { return shift == -simd::infinity<double> ? 0 : shift; }
};

// terms of rows or columns, [3 or 4, 2, count]: shift, total, rest and, where pairs are limited, the limit of either side
template <typename op_t>
struct PairTerms {
  const op_t* data;
  int64_t count, number;

  const op_t* at(int64_t term, int64_t side) const { return data + (2 * term + side) * count; }
  Sides<op_t> of(int64_t term, int64_t row) const { return {at(term, kPositive)[row], at(term, kNegative)[row]}; }
};

template <typename op_t>
NL_CLONES void scale_sides(const op_t* __restrict s, const op_t* __restrict side, int64_t n, Sides<op_t> scale, op_t* __restrict z) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) z[j] = (side[j] != 0 ? scale.positive : scale.negative) * s[j];
}

// What one pair adds: total e + rest (1 - e), e = e^{z - shift}, which the weighted sum's share of a single pair meets without
// cancellation. e is at most `most`: 1 for hard labels, where only rounding can exceed it; so an unused shift of -inf does no harm.
template <bool limited, typename op_t>
NL_INLINE op_t pair_term(op_t z, op_t order, op_t shift, op_t total, op_t rest, op_t limit, op_t log_most) {
  const op_t d = z - shift, e = simd::exp(d > log_most ? log_most : d);
  const op_t value = total * e + rest * (op_t(1) - e);
  return limited && order >= limit ? op_t(0) : value;
}

// d += w (the row's term, and with both the column's: the same score seen from the other end)
template <bool both, bool limited, typename op_t>
NL_CLONES void pair_gradient(const op_t* __restrict s, const op_t* __restrict z, const op_t* __restrict side, const op_t* __restrict weight,
                             int64_t n, PairTerms<op_t> rows, int64_t row, PairTerms<op_t> columns, int64_t begin, op_t log_most,
                             op_t* __restrict d) {
  const Sides<op_t> shift = rows.of(0, row), total = rows.of(1, row), rest = rows.of(2, row), limit = rows.of(limited ? 3 : 0, row);
  const op_t *shift_p = nullptr, *shift_n = nullptr, *total_p = nullptr, *total_n = nullptr, *rest_p = nullptr, *rest_n = nullptr,
             *limit_p = nullptr, *limit_n = nullptr;
  if constexpr (both) {
    shift_p = columns.at(0, kPositive) + begin, shift_n = columns.at(0, kNegative) + begin;
    total_p = columns.at(1, kPositive) + begin, total_n = columns.at(1, kNegative) + begin;
    rest_p = columns.at(2, kPositive) + begin, rest_n = columns.at(2, kNegative) + begin;
    limit_p = columns.at(limited ? 3 : 0, kPositive) + begin, limit_n = columns.at(limited ? 3 : 0, kNegative) + begin;
  }
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const bool p = side[j] != 0;
    const op_t order = p ? s[j] : -s[j];
    op_t g = pair_term<limited>(z[j], order, p ? shift.positive : shift.negative, p ? total.positive : total.negative,
                                p ? rest.positive : rest.negative, p ? limit.positive : limit.negative, log_most);
    if constexpr (both) {
      g += pair_term<limited>(z[j], order, p ? shift_p[j] : shift_n[j], p ? total_p[j] : total_n[j], p ? rest_p[j] : rest_n[j],
                              p ? limit_p[j] : limit_n[j], log_most);
    }
    d[j] += weight[j] != 0 ? weight[j] * g : op_t(0);
  }
}

// smallest score of the positives and largest of the negatives of a block, and how many scores are NaN
template <typename op_t>
NL_CLONES void block_extremes(const op_t* __restrict s, const op_t* __restrict side, int64_t n, op_t* low, op_t* high, op_t* invalid) {
  op_t l = simd::infinity<op_t>, h = -simd::infinity<op_t>, nan = 0;
#pragma omp simd reduction(min : l) reduction(max : h) reduction(+ : nan)
  for (int64_t j = 0; j < n; ++j) {
    const bool p = side[j] != 0;
    l = p && s[j] < l ? s[j] : l;
    h = !p && s[j] > h ? s[j] : h;
    nan += s[j] == s[j] ? op_t(0) : op_t(1);
  }
  *low = l, *high = h, *invalid = nan;
}

}  // namespace nearlinear

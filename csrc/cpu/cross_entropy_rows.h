// logit_stats on rows of many classes: one row at a time, in blocks of classes that stay in the L1 cache.
#pragma once
#include "row_blocks.h"

namespace nearlinear {

template <typename op_t>
struct RowOutputs {
  op_t *nll, *lse, *spread, *residual;
  double weight_sum;  // sum of the class weights, or V
  bool shard;         // input holds only some of the classes
};

template <typename op_t>
struct RowUpstream {
  const op_t *d_nll, *d_lse, *d_spread, *nll, *lse, *residual;
  double weight_sum;  // sum of the class weights, or V

  NL_INLINE bool is_zero(int64_t row) const { return d_nll[row] == 0 && d_lse[row] == 0 && (d_spread == nullptr || d_spread[row] == 0); }
  NL_INLINE op_t spread(int64_t row) const { return d_spread == nullptr ? op_t(0) : d_spread[row]; }
  NL_INLINE op_t without_nll(int64_t row) const { return d_lse[row] + spread(row) * static_cast<op_t>(weight_sum); }
  // factor of e^{z_j - lse}
  NL_INLINE op_t total(int64_t row) const { return (d_nll[row] + without_nll(row)) * simd::exp(-residual[row]); }
  // gradient of the target logit: p_y - 1 is never formed
  op_t target(int64_t row, op_t weight_y) const {
    const double loss = nll[row];
    return static_cast<op_t>(without_nll(row) * simd::exp(-loss) - d_nll[row] * simd::one_minus_exp(loss) - spread(row) * weight_y);
  }
};

template <typename op_t>
double sum_of(const op_t* weight, int64_t classes) {
  if (weight == nullptr) return static_cast<double>(classes);
  double total = 0;
  for (int64_t j = 0; j < classes; ++j) total += weight[j];
  return total;
}

// y: the target's place in the row; outside [0, V) where the target lies in another shard, which makes its probability here 0
template <typename op_t, typename map_t>
void forward_row(const Logits& L, const Blocks<op_t>& in, map_t map, const op_t* weight, int64_t row, int64_t y,
                 const RowOutputs<op_t>& out) {
  alignas(64) op_t scratch[kBlock];
  constexpr bool mapped = !std::is_same_v<map_t, IdentityMap>;
  const int64_t base = L.offset(row);
  const bool here = y >= 0 && y < L.classes;
  const op_t z_y = here ? map.value(in.element(base + y * L.stride_v)) : -simd::infinity<op_t>;
  const op_t origin = here || out.spread == nullptr ? z_y : map.value(in.element(base));  // of the deviations
  OnlineSum others;
  double deviation = 0;
  for (int64_t begin = 0; begin < L.classes; begin += kBlock) {
    const int64_t n = std::min(kBlock, L.classes - begin);
    const int64_t k = y - begin, offset = base + begin * L.stride_v;
    const bool has_target = k >= 0 && k < n;
    const op_t *z = scratch, *w = weight == nullptr ? nullptr : weight + begin;
    if (!has_target && w == nullptr && in.pairs(L.stride_v, n)) {
      in.load_pairs(offset, n, scratch);
    } else {
      z = in.read(offset, L.stride_v, n, scratch);
    }
    if constexpr (mapped) {
      if (z != scratch) std::copy_n(z, n, scratch);
      map_values(map, scratch, n);
      z = scratch;
    }
    // the target's own deviation is 0; it splits its block
    const auto add = [&](int64_t from, int64_t count) {
      if (out.spread == nullptr) return others.add(z + from, count);
      others.add(z + from, count, w == nullptr ? nullptr : w + from, origin, &deviation);
    };
    add(0, has_target ? k : n);
    if (has_target) add(k + 1, n - k - 1);
  }
  if (out.shard && z_y == -simd::infinity<op_t> && others.sum == 0) {  // nothing but -inf: another shard may hold the finite logits
    out.nll[row] = simd::infinity<op_t>, out.lse[row] = -simd::infinity<op_t>, out.residual[row] = 0;
    if (out.spread != nullptr) out.spread[row] = simd::infinity<op_t>;
    return;
  }
  row_statistics_in_double(z_y, others, out.nll + row, out.lse + row, out.residual + row);
  if (out.spread == nullptr) return;
  // sum_j w_j (lse - z_j) with the common offset removed before the sum; origin = -inf leaves an infinite term whatever the rest is
  const double gap = here ? out.nll[row] : (others.shift - origin) + std::log(others.sum);
  out.spread[row] = static_cast<op_t>(gap == simd::infinity<double> ? gap : out.weight_sum * gap + deviation);
}

// D may lie over L (in place): a block is read as a whole before it is written
template <typename op_t, typename map_t>
void backward_row(const Logits& L, const Blocks<op_t>& in, map_t map, const op_t* weight, int64_t row, int64_t y,
                  const RowUpstream<op_t>& up, const Logits& D, const Blocks<op_t>& d_in) {
  alignas(64) op_t a[kBlock], z_scratch[kBlock], d[kBlock];
  constexpr bool mapped = !std::is_same_v<map_t, IdentityMap>;
  const int64_t base = L.offset(row), d_base = D.offset(row);
  const op_t total = up.total(row), spread = up.spread(row), lse = up.lse[row];
  const bool here = y >= 0 && y < L.classes, over = in.starts_where(d_in);
  op_t d_y = here ? up.target(row, weight == nullptr ? op_t(1) : weight[y]) : op_t(0);
  if constexpr (mapped)
    if (here) d_y *= map.slope(in.element(base + y * L.stride_v));
  for (int64_t begin = 0; begin < L.classes; begin += kBlock) {
    const int64_t n = std::min(kBlock, L.classes - begin), offset = base + begin * L.stride_v, d_offset = d_base + begin * D.stride_v;
    const op_t* w = weight == nullptr ? nullptr : weight + begin;
    const bool pairs = (spread == 0 || w == nullptr) && in.pairs(L.stride_v, n) && d_in.pairs(D.stride_v, n);
    if (pairs) {
      in.load_pairs(offset, n, a);
    } else if (over) {
      in.load(offset, L.stride_v, n, a);
    }
    const op_t *raw = pairs || over ? a : in.read(offset, L.stride_v, n, a), *z = raw;
    if constexpr (mapped) {
      std::copy_n(raw, n, z_scratch);
      map_values(map, z_scratch, n);
      z = z_scratch;
    }
    op_t* direct = d_in.in_place(d_offset, D.stride_v);
    op_t* d_z = direct != nullptr ? direct : d;
    softmax_gradient(z, n, lse, total, spread, w, d_z);
    if constexpr (mapped) times_map_slope(map, raw, d_z, n);
    if (pairs) {
      d_in.store_pairs(d, n, d_offset);
    } else if (direct == nullptr) {
      d_in.store(d, n, d_offset, D.stride_v);
    }
  }
  if (here) d_in.store(&d_y, 1, d_base + y * D.stride_v, 1);
}

}  // namespace nearlinear

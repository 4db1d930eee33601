// logit_stats on rows of many classes: one row at a time, in blocks of classes that stay in the L1 cache.
#pragma once
#include "row_blocks.h"

namespace nearlinear {

template <typename op_t>
struct RowOutputs {
  op_t *nll, *lse, *spread, *residual;
};

template <typename op_t>
struct RowUpstream {
  const op_t *d_nll, *d_lse, *d_spread, *nll, *lse, *residual;
  double weight_sum;  // sum of the class weights, or V

  bool is_zero(int64_t row) const { return d_nll[row] == 0 && d_lse[row] == 0 && (d_spread == nullptr || d_spread[row] == 0); }
  op_t spread(int64_t row) const { return d_spread == nullptr ? op_t(0) : d_spread[row]; }
  op_t without_nll(int64_t row) const { return d_lse[row] + spread(row) * static_cast<op_t>(weight_sum); }
  op_t total(int64_t row) const { return d_nll[row] + without_nll(row); }
  // gradient of the target logit: p_y - 1 is never formed
  op_t target(int64_t row, op_t weight_y) const {
    return without_nll(row) * std::exp(-nll[row]) + d_nll[row] * std::expm1(-nll[row]) - spread(row) * weight_y;
  }
};

template <typename op_t>
double sum_of(const op_t* weight, int64_t classes) {
  if (weight == nullptr) return static_cast<double>(classes);
  double total = 0;
  for (int64_t j = 0; j < classes; ++j) total += weight[j];
  return total;
}

// d_j -= spread w_j
template <typename op_t>
NL_CLONES void subtract_weights(op_t* __restrict d, const op_t* __restrict w, int64_t n, op_t spread) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) d[j] -= spread * (w == nullptr ? op_t(1) : w[j]);
}

template <typename op_t, typename map_t>
void forward_row(const Logits& L, const Blocks<op_t>& in, map_t map, const op_t* weight, int64_t row, int64_t y,
                 const RowOutputs<op_t>& out) {
  alignas(64) op_t scratch[kBlock];
  constexpr bool mapped = !std::is_same_v<map_t, IdentityMap>;
  const int64_t base = L.offset(row);
  const op_t z_y = map.value(in.at_element(base + y * L.stride_v));
  OnlineSum others;
  double deviation = 0;
  for (int64_t begin = 0; begin < L.classes; begin += kBlock) {
    const int64_t n = std::min(kBlock, L.classes - begin), k = y - begin;
    const op_t* z = in.read(base + begin * L.stride_v, L.stride_v, n, scratch);
    if (mapped || (k >= 0 && k < n)) {
      if (z != scratch) std::copy_n(z, n, scratch);
      z = scratch;
    }
    if constexpr (mapped) map_values(map, scratch, n);
    if (out.spread != nullptr) deviation += sum_deviation(z, weight == nullptr ? nullptr : weight + begin, n, z_y);
    if (k >= 0 && k < n) scratch[k] = -simd::infinity<op_t>;
    others.add(z, n);
  }
  row_statistics(z_y, others.max, others.sum, out.nll + row, out.lse + row, out.residual + row);
  if (out.spread == nullptr) return;
  // sum_j w_j (lse - z_j) with the common offset removed before the sum; z_y = -inf leaves an infinite term whatever the rest is
  const double nll = out.nll[row];
  out.spread[row] = static_cast<op_t>(nll == simd::infinity<double> ? nll : sum_of(weight, L.classes) * nll + deviation);
}

template <typename op_t, typename map_t>
void backward_row(const Logits& L, const Blocks<op_t>& in, map_t map, const op_t* weight, int64_t row, int64_t y,
                  const RowUpstream<op_t>& up, const Logits& D, const Blocks<op_t>& d_in) {
  alignas(64) op_t a[kBlock], z_scratch[kBlock], d_scratch[kBlock];
  constexpr bool mapped = !std::is_same_v<map_t, IdentityMap>;
  const int64_t base = L.offset(row), d_base = D.offset(row);
  const op_t total = up.total(row), spread = up.spread(row);
  for (int64_t begin = 0; begin < L.classes; begin += kBlock) {
    const int64_t n = std::min(kBlock, L.classes - begin), k = y - begin, d_offset = d_base + begin * D.stride_v;
    const op_t* raw = in.read(base + begin * L.stride_v, L.stride_v, n, a);
    const op_t* z = raw;
    if constexpr (mapped) {
      std::copy_n(raw, n, z_scratch);
      map_values(map, z_scratch, n);
      z = z_scratch;
    }
    op_t* direct = d_in.writable(d_offset, D.stride_v);
    op_t* d = direct != nullptr ? direct : d_scratch;
    scaled_softmax(z, n, up.lse[row], up.residual[row], total, d);
    if (spread != 0) subtract_weights(d, weight == nullptr ? nullptr : weight + begin, n, spread);
    if (k >= 0 && k < n) d[k] = up.target(row, weight == nullptr ? op_t(1) : weight[y]);
    if constexpr (mapped) times_map_slope(map, raw, d, n);
    if (direct == nullptr) d_in.store(d, n, d_offset, D.stride_v);
  }
}

template <typename op_t>
void zero_row(const Logits& D, int64_t row, const Blocks<op_t>& d_in) {
  constexpr int64_t kBlockZeros = 256;
  const op_t zeros[kBlockZeros] = {};
  for (int64_t begin = 0; begin < D.classes; begin += kBlockZeros)
    d_in.store(zeros, std::min(kBlockZeros, D.classes - begin), D.offset(row) + begin * D.stride_v, D.stride_v);
}

}  // namespace nearlinear

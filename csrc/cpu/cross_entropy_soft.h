// soft_logit_stats on one row: targets are class probabilities.
//   c_j = w_j ((1 - label_smoothing) t_j + label_smoothing / V),  xent = sum_j c_j (lse - z_j),  mass = sum_j c_j
//   d_input = map' ((d_xent mass + d_lse) p_j - d_xent c_j),   d_target_j = -d_xent (1 - label_smoothing) w_j log p_j
#pragma once
#include "row_blocks.h"

namespace nearlinear {

template <typename op_t>
struct SoftTarget {
  Blocks<op_t> values;
  Logits layout;
  const op_t* weight;
  op_t keep, uniform;  // 1 - label_smoothing, label_smoothing / V

  // c_j of one block
  const op_t* read(int64_t row, int64_t begin, int64_t n, op_t* scratch) const {
    values.load(layout.offset(row) + begin * layout.stride_v, layout.stride_v, n, scratch);
    coefficients(scratch, weight == nullptr ? nullptr : weight + begin, n, keep, uniform);
    return scratch;
  }

  NL_CLONES static void coefficients(op_t* __restrict t, const op_t* __restrict w, int64_t n, op_t keep, op_t uniform) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) t[j] = (w == nullptr ? op_t(1) : w[j]) * (keep * t[j] + uniform);
  }
};

// sum_j c_j (z_j - shift), sum_j c_j
template <typename op_t>
NL_CLONES void soft_sums(const op_t* __restrict z, const op_t* __restrict c, int64_t n, op_t shift, op_t* dot, op_t* mass) {
  op_t d = 0, m = 0;
#pragma omp simd reduction(+ : d, m)
  for (int64_t j = 0; j < n; ++j) {
    d += c[j] * (z[j] - shift);
    m += c[j];
  }
  *dot = d, *mass = m;
}

// d_j = total e^{z_j - lse} - d_xent c_j; total carries e^{-residual}
template <typename op_t>
NL_CLONES void soft_gradient(const op_t* __restrict z, const op_t* __restrict c, int64_t n, op_t lse, op_t total, op_t d_xent,
                             op_t* __restrict d) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) d[j] = total * simd::exp(z[j] - lse) - d_xent * c[j];
}

template <typename op_t>
NL_CLONES void soft_target_gradient(const op_t* __restrict z, const op_t* __restrict w, int64_t n, op_t lse, op_t residual, op_t factor,
                                    op_t* __restrict d) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) d[j] = factor * (w == nullptr ? op_t(1) : w[j]) * (residual - (z[j] - lse));
}

template <typename op_t>
struct SoftOutputs {
  op_t *xent, *lse, *residual, *mass;
};

template <typename op_t, typename map_t>
void soft_forward_row(const Logits& L, const Blocks<op_t>& in, map_t map, const SoftTarget<op_t>& target, int64_t row,
                      const SoftOutputs<op_t>& out) {
  alignas(64) op_t z[kBlock], c_scratch[kBlock];
  const int64_t base = L.offset(row);
  OnlineSum all;
  double dot = 0, mass = 0, origin = simd::infinity<double>;  // origin: the first finite block maximum
  for (int64_t begin = 0; begin < L.classes; begin += kBlock) {
    const int64_t n = std::min(kBlock, L.classes - begin);
    in.load(base + begin * L.stride_v, L.stride_v, n, z);
    map_values(map, z, n);
    const op_t* c = target.read(row, begin, n, c_scratch);
    const op_t top = block_max(z, n), shift = std::isfinite(top) ? top : op_t(0);
    op_t block_dot, block_mass;
    soft_sums(z, c, n, shift, &block_dot, &block_mass);
    if (!std::isfinite(origin) && std::isfinite(top)) origin = top;
    // every block counts from one logit of the row, so that a common offset of the row costs no digits
    dot += block_dot + (std::isfinite(origin) ? block_mass * (shift - origin) : 0);
    mass += block_mass;
    all.add(z, n);
  }
  op_t unused;
  // the target logit is not special here: lse of all classes is the deficit form against an absent target at -inf
  row_statistics_in_double(-simd::infinity<double>, all, &unused, out.lse + row, out.residual + row);
  const double lse = (out.lse[row] - (std::isfinite(origin) ? origin : 0)) + out.residual[row];
  out.xent[row] = static_cast<op_t>(mass * lse - dot);
  out.mass[row] = static_cast<op_t>(mass);
}

template <typename op_t>
struct SoftUpstream {
  const op_t *d_xent, *d_lse, *lse, *residual, *mass;
};

template <typename op_t, typename map_t>
void soft_backward_row(const Logits& L, const Blocks<op_t>& in, map_t map, const SoftTarget<op_t>& target, int64_t row,
                       const SoftUpstream<op_t>& up, const Logits& D, const Blocks<op_t>& d_in, const Logits* DT,
                       const Blocks<op_t>* d_target) {
  alignas(64) op_t a[kBlock], z[kBlock], c_scratch[kBlock], d[kBlock];
  const op_t g = up.d_xent[row], lse = up.lse[row], residual = up.residual[row];
  const op_t total = (g * up.mass[row] + up.d_lse[row]) * simd::exp(-residual);
  const bool live = g != 0 || up.d_lse[row] != 0;  // a row with zero upstream gives zeros, whatever its logits and targets are
  for (int64_t begin = 0; begin < L.classes; begin += kBlock) {
    const int64_t n = std::min(kBlock, L.classes - begin);
    in.load(L.offset(row) + begin * L.stride_v, L.stride_v, n, a);
    std::copy_n(a, n, z);
    map_values(map, z, n);
    const op_t* c = target.read(row, begin, n, c_scratch);
    if (live) {
      soft_gradient(z, c, n, lse, total, g, d);
      times_map_slope(map, a, d, n);
    } else {
      std::fill_n(d, n, op_t(0));
    }
    d_in.store(d, n, D.offset(row) + begin * D.stride_v, D.stride_v);
    if (d_target == nullptr) continue;
    if (live) soft_target_gradient(z, target.weight == nullptr ? nullptr : target.weight + begin, n, lse, residual, g * target.keep, d);
    d_target->store(d, n, DT->offset(row) + begin * DT->stride_v, DT->stride_v);
  }
}

}  // namespace nearlinear

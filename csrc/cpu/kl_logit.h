// two_logit_stats on one row, in blocks of classes: the soft maximum of each logit, then the two compared class by class, in one of two
// forms: the Kullback-Leibler divergence, or the Jensen-Shannon divergence.
#pragma once
#include <optional>

#include "row_blocks.h"

namespace nearlinear {

// logits or a gradient of them, read and written in blocks
template <typename op_t>
struct Plane {
  Logits layout;
  Blocks<op_t> values;

  Plane(const Tensor& t, const char* op, const char* argument) : layout(t, op, argument), values(t, op, argument) {}
  int64_t at(int64_t row, int64_t begin) const { return layout.offset(row) + begin * layout.stride_v; }
  bool pairs(int64_t n) const { return values.pairs(layout.stride_v, n); }
  const op_t* read(int64_t row, int64_t begin, int64_t n, bool in_pairs, op_t* scratch) const {
    if (!in_pairs) return values.read(at(row, begin), layout.stride_v, n, scratch);
    values.load_pairs(at(row, begin), n, scratch);
    return scratch;
  }
  // where to put a block: its place in memory, or scratch that write() brings there
  op_t* place(int64_t row, int64_t begin, op_t* scratch) const {
    op_t* direct = values.in_place(at(row, begin), layout.stride_v);
    return direct != nullptr ? direct : scratch;
  }
  void write(const op_t* block, int64_t row, int64_t begin, int64_t n, bool in_pairs) const {
    if (in_pairs) return values.store_pairs(block, n, at(row, begin));
    if (block != values.in_place(at(row, begin), layout.stride_v)) values.store(block, n, at(row, begin), layout.stride_v);
  }
};

// a number as its rounded value and what rounding lost
template <typename op_t>
struct Split {
  op_t value, lost;

  static Split sum(double a, double b) {
    const double high = a + b, part = high - a, low = (a - (high - part)) + (b - part);
    const op_t value = static_cast<op_t>(high);
    return {value, std::isfinite(value) ? static_cast<op_t>((high - value) + low) : op_t(0)};
  }
};

// T log sum_j e^{z_j / T} = origin + rest: the origin is a logit of the row, so that a common offset costs no digits
struct SoftMaximum {
  double origin, rest;
};

template <typename op_t>
NL_CLONES void recentre(const op_t* __restrict in, int64_t n, op_t origin, op_t rate, op_t* __restrict z) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) z[j] = (in[j] - origin) * rate;
}

template <typename op_t>
SoftMaximum soft_maximum(const Plane<op_t>& logits, int64_t row, double rate) {
  alignas(64) op_t scratch[kBlock], z[kBlock];
  OnlineSum all;
  op_t origin = simd::infinity<op_t>;  // the first finite block maximum
  for (int64_t begin = 0; begin < logits.layout.classes; begin += kBlock) {
    const int64_t n = std::min(kBlock, logits.layout.classes - begin);
    const op_t* in = logits.read(row, begin, n, logits.pairs(n), scratch);
    if (!std::isfinite(origin)) origin = block_max(in, n);
    recentre(in, n, std::isfinite(origin) ? origin : op_t(0), static_cast<op_t>(rate), z);
    all.add(z, n);
  }
  op_t unused, lse, residual;
  // lse of all classes is the deficit form against an absent target at -inf
  row_statistics_in_double(-simd::infinity<double>, all, &unused, &lse, &residual);
  return {std::isfinite(origin) ? origin : 0.0, (static_cast<double>(lse) + residual) / rate};
}

// The two softmaxes of a row, class by class. u = log(p / q) comes from the difference of the logits, which is formed exactly, and not
// from log p - log q, so that softmaxes that nearly agree keep their digits.
template <typename op_t>
struct Comparison {
  Split<op_t> input, target, shift;  // soft maxima, and the first minus the second
  op_t rate;                         // 1 / T

  NL_INLINE op_t p(op_t x) const { return simd::exp((x - input.value) * rate - input.lost * rate); }
  NL_INLINE op_t q(op_t t) const { return simd::exp((t - target.value) * rate - target.lost * rate); }
  NL_INLINE op_t log_ratio(op_t x, op_t t) const {
    const op_t gap = x - t, part = x - gap, low = (x - (gap + part)) + (part - t);
    return ((gap - shift.value) + (gap - gap == 0 ? low : op_t(0))) * rate - shift.lost * rate;
  }
};

// p - q from q, p, u and e^u - 1 - u
template <typename op_t>
NL_INLINE op_t probability_difference(op_t q, op_t p, op_t u, op_t series) {
  return std::fabs(u) < 1 ? q * (u + series) : p - q;
}

// q (e^u - 1 - u); q = 0 leaves p, unless q > 0 underflowed next to p = 0, which u = -inf tells
template <typename op_t>
NL_INLINE op_t probability_excess(op_t q, op_t p, op_t u, op_t series) {
  const op_t far = (p - q) - q * u, possible = q == 0 ? p : far;
  return (std::fabs(u) < 1 ? q * series : possible) + (u == -simd::infinity<op_t> ? simd::infinity<op_t> : op_t(0));
}

// what a class adds to KL(q || m) and to KL(p || m), and p - q
template <typename op_t>
struct ClassTerms {
  op_t target, input, difference;
};

// KL(q || p): the mixture m is p
template <typename op_t>
struct KullbackLeibler {
  static constexpr op_t target = 0, input = 1;  // shares of q and p in m

  NL_INLINE ClassTerms<op_t> terms(op_t q, op_t p, op_t u) const {
    const op_t series = simd::exp_excess(u);
    return {probability_excess(q, p, u, series), 0, probability_difference(q, p, u, series)};
  }
  NL_INLINE void gradients(op_t q, op_t p, op_t u, op_t scale, op_t kl_target, op_t kl_input, op_t* d_x, op_t* d_t) const {
    *d_x = scale * probability_difference(q, p, u, simd::exp_excess(u));
    *d_t = q == 0 ? op_t(0) : -scale * (q * (u + kl_target));
  }
  double value(double kl_target, double kl_input) const { return kl_target; }
  double kl_target(double value, double kl_input) const { return value; }
};

// target KL(q || m) + input KL(p || m), m = target q + input p. Since q, p and m each add up to 1, KL(q || m) is the sum of
// q (y - log(1 + y)), y = m / q - 1 = input (e^u - 1), and KL(p || m) that of p (z - log(1 + z)), z = m / p - 1 = target (e^-u - 1).
template <typename op_t>
struct JensenShannon {
  op_t target, input;  // shares of q and p in m

  struct Logs {
    op_t target, input;  // log(m / q), log(m / p)
    op_t target_excess, input_excess;
  };
  NL_INLINE Logs logs(op_t q, op_t p, op_t u, op_t growth) const {  // growth: e^u - 1 where |u| < 1
    const bool near = std::fabs(u) < 1;
    const op_t ratio = p / q, inverse = q / p;
    const op_t y = input * (near ? growth : ratio - 1), z = target * (near ? -growth * inverse : inverse - 1);
    Logs found;
    found.target = simd::log1p_excess(y, target + input * ratio, &found.target_excess);
    found.input = simd::log1p_excess(z, input + target * inverse, &found.input_excess);
    return found;
  }
  NL_INLINE ClassTerms<op_t> terms(op_t q, op_t p, op_t u) const {
    const op_t series = simd::exp_excess(u);
    const Logs l = logs(q, p, u, u + series);
    return {q == 0 ? input * p : q * l.target_excess, p == 0 ? target * q : p * l.input_excess, probability_difference(q, p, u, series)};
  }
  NL_INLINE void gradients(op_t q, op_t p, op_t u, op_t scale, op_t kl_target, op_t kl_input, op_t* d_x, op_t* d_t) const {
    const Logs l = logs(q, p, u, u + simd::exp_excess(u));
    *d_x = p == 0 ? op_t(0) : -scale * input * (p * (l.input + kl_input));
    *d_t = q == 0 ? op_t(0) : -scale * target * (q * (l.target + kl_target));
  }
  double value(double kl_target, double kl_input) const { return target * kl_target + input * kl_input; }
  double kl_target(double value, double kl_input) const { return (value - input * kl_input) / target; }
};

template <typename form_t, typename op_t>
NL_CLONES void divergence_sums(form_t form, const op_t* __restrict x, const op_t* __restrict t, int64_t n, Comparison<op_t> compare,
                               ClassTerms<op_t>* sums) {
  op_t of_target = 0, of_input = 0, difference = 0;
#pragma omp simd reduction(+ : of_target, of_input, difference)
  for (int64_t j = 0; j < n; ++j) {
    const auto terms = form.terms(compare.q(t[j]), compare.p(x[j]), compare.log_ratio(x[j], t[j]));
    of_target += terms.target;
    of_input += terms.input;
    difference += terms.difference;
  }
  *sums = {of_target, of_input, difference};
}

template <typename form_t, typename op_t>
NL_CLONES void divergence_gradients(form_t form, const op_t* __restrict x, const op_t* __restrict t, int64_t n, Comparison<op_t> compare,
                                    op_t scale, op_t kl_target, op_t kl_input, op_t* __restrict d_x, op_t* __restrict d_t) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    form.gradients(compare.q(t[j]), compare.p(x[j]), compare.log_ratio(x[j], t[j]), scale, kl_target, kl_input, d_x + j, d_t + j);
  }
}

template <typename op_t>
struct TwoLogitOutputs {
  op_t *divergence, *kl_input, *lse_input, *lse_target, *residual_input, *residual_target;
};

template <typename form_t, typename op_t>
void two_logit_forward_row(form_t form, const Plane<op_t>& input, const Plane<op_t>& target, double rate, int64_t row,
                           const TwoLogitOutputs<op_t>& out) {
  alignas(64) op_t x_scratch[kBlock], t_scratch[kBlock];
  SoftMaximum of_input = soft_maximum(input, row, rate);
  const SoftMaximum of_target = soft_maximum(target, row, rate);
  const auto lse_target = Split<op_t>::sum(of_target.origin, of_target.rest);
  const Comparison<op_t> compare{Split<op_t>::sum(of_input.origin, of_input.rest), lse_target,
                                 Split<op_t>::sum(of_input.origin - of_target.origin, of_input.rest - of_target.rest),
                                 static_cast<op_t>(rate)};
  double kl_target = 0, kl_input = 0, difference = 0;
  for (int64_t begin = 0; begin < input.layout.classes; begin += kBlock) {
    const int64_t n = std::min(kBlock, input.layout.classes - begin);
    const bool pairs = input.pairs(n) && target.pairs(n);
    ClassTerms<op_t> sums;
    divergence_sums(form, input.read(row, begin, n, pairs, x_scratch), target.read(row, begin, n, pairs, t_scratch), n, compare, &sums);
    kl_target += sums.target;
    kl_input += sums.input;
    difference += sums.difference;
  }
  // sum_j (p_j - q_j) is the rounding error of the difference of the soft maxima: first order there, second order in a divergence
  of_input.rest += difference / rate;
  const auto lse_input = Split<op_t>::sum(of_input.origin, of_input.rest);
  const double of_m_in_q = form.input * difference, of_m_in_p = form.target * difference;
  kl_input -= of_m_in_p * of_m_in_p / 2;
  const double value = form.value(kl_target - of_m_in_q * of_m_in_q / 2, kl_input);
  out.divergence[row] = static_cast<op_t>(value < 0 ? 0 : value);
  if (out.kl_input != nullptr) out.kl_input[row] = static_cast<op_t>(kl_input < 0 ? 0 : kl_input);
  out.lse_input[row] = lse_input.value, out.residual_input[row] = lse_input.lost;
  out.lse_target[row] = lse_target.value, out.residual_target[row] = lse_target.lost;
}

template <typename op_t>
struct TwoLogitUpstream {
  const op_t *d_divergence, *divergence, *kl_input, *lse_input, *lse_target, *residual_input, *residual_target;
};

template <typename op_t>
using OptionalPlane = std::optional<Plane<op_t>>;

template <typename form_t, typename op_t>
void two_logit_backward_row(form_t form, const Plane<op_t>& input, const Plane<op_t>& target, double rate, int64_t row,
                            const TwoLogitUpstream<op_t>& up, const OptionalPlane<op_t>& d_input, const OptionalPlane<op_t>& d_target) {
  alignas(64) op_t x_scratch[kBlock], t_scratch[kBlock], dx_scratch[kBlock], dt_scratch[kBlock];
  const Split<op_t> of_input{up.lse_input[row], up.residual_input[row]}, of_target{up.lse_target[row], up.residual_target[row]};
  const Comparison<op_t> compare{
      of_input, of_target,
      Split<op_t>::sum(static_cast<double>(of_input.value) - of_target.value, static_cast<double>(of_input.lost) - of_target.lost),
      static_cast<op_t>(rate)};
  const op_t scale = up.d_divergence[row] * static_cast<op_t>(rate), kl_input = up.kl_input == nullptr ? op_t(0) : up.kl_input[row];
  const op_t kl_target = static_cast<op_t>(form.kl_target(up.divergence[row], kl_input));
  for (int64_t begin = 0; begin < input.layout.classes; begin += kBlock) {
    const int64_t n = std::min(kBlock, input.layout.classes - begin);
    const bool pairs = input.pairs(n) && target.pairs(n) && (!d_input || d_input->pairs(n)) && (!d_target || d_target->pairs(n));
    op_t* d_x = d_input ? d_input->place(row, begin, dx_scratch) : dx_scratch;
    op_t* d_t = d_target ? d_target->place(row, begin, dt_scratch) : dt_scratch;
    divergence_gradients(form, input.read(row, begin, n, pairs, x_scratch), target.read(row, begin, n, pairs, t_scratch), n, compare, scale,
                         kl_target, kl_input, d_x, d_t);
    if (d_input) d_input->write(d_x, row, begin, n, pairs);
    if (d_target) d_target->write(d_t, row, begin, n, pairs);
  }
}

}  // namespace nearlinear

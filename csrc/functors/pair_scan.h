// sums over pairs that a sorted scan carries: states, and the walks that a kernel of python/nearlinear/pair_kernels.py is made of.
//
// A walk goes through the scores of both labels in one order, keeps the state of those of one label (the sources), and reads it at those of
// the other (the queries). A state is a row of sums over the sources passed, relative to the current place, all of the sign of their
// coefficients: moving on adds and multiplies, nothing cancels. States of neighbouring stretches combine: shift the left one, add.
//   PowerState      T_k = sum c (place - s)^k                           k(x) = sum factor_k gap^k
//   LogisticState   C = sum c,  L = sum c gap,  E_k = sum c e^(-rate k gap)
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <vector>

#include "../common/check.h"
#include "ordered_key.h"

namespace nearlinear {

// most terms of a walk: C, L and 24 exponentials
constexpr int kMostTerms = 26;
constexpr double kLargest = 1.7976931348623157e308;

// distance of two places in order; infinity would make NaN of an empty state
NL_HD_INLINE double gap_of(double from, double to) {
  const double gap = to - from;
  return gap < kLargest ? gap : kLargest;
}

// e^-x for x >= 0 in instructions that vectors have, relative error 3e-16; 0 above 708.
// x = n ln2 + r, |r| <= ln2 / 2, ln2 in two parts; e^-r by its series; 2^-n from the exponent field, which the shifted sum holds.
NL_HD_INLINE double decay_of(double x) {
  constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  const double c = x < 709.0 ? x : 709.0, shifted = c * 1.4426950408889634 + magic, n = shifted - magic;
  const double r = (n * 6.93147180369123816490e-01 - c) + n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  int64_t bits;
  memcpy(&bits, &shifted, sizeof(bits));
  bits = (1023 - bits) << 52;
  double scale;
  memcpy(&scale, &bits, sizeof(scale));
  return x < 708.0 ? p * scale : 0.0;
}

template <int kDegree>
struct PowerState {
  static constexpr int kTerms = kDegree + 1;
  static constexpr bool kOrdered = false;  // a difference of 0 counts as 0
  double t[kTerms] = {};

  NL_HD_INLINE static double decay(double, double) { return 1; }
  NL_HD_INLINE void shift(double gap, double) {
    NL_UNROLL
    for (int k = kDegree; k > 0; --k) {
      double binomial = 1, rest = 0;
      NL_UNROLL
      for (int j = 0; j < k; ++j) {  // sum over j < k of binom(k, j) gap^(k - j) t_j, by Horner's rule
        rest = (rest + binomial * t[j]) * gap;
        binomial = binomial * (k - j) / (j + 1);
      }
      t[k] += k == 1 || gap > 0 ? rest : 0.0;  // not 0 times an overflow
    }
  }
  NL_HD_INLINE void insert(double c) { t[0] += c; }
  // a source that is `gap` behind
  NL_HD_INLINE void gather(double gap, double, double c) {
    NL_UNROLL
    for (int k = 0; k < kTerms; ++k, c *= gap) t[k] += c;
  }
  NL_HD_INLINE void add(const PowerState& other) {
    NL_UNROLL
    for (int k = 0; k < kTerms; ++k) t[k] += other.t[k];
  }
  NL_HD_INLINE double query(const double* factor) const {
    double sum = factor[0] * t[0];
    NL_UNROLL
    for (int k = 1; k < kTerms; ++k) sum += factor[k] != 0 ? factor[k] * t[k] : 0.0;
    return sum;
  }
};

// compilers keep the state in vector registers only if told so
#ifdef __CUDACC__
using Lanes = double;
#else
typedef double Lanes __attribute__((vector_size(32), aligned(8)));
#endif
constexpr int kLanes = sizeof(Lanes) / sizeof(double);

template <int kDegree>
struct LogisticState {
  static constexpr int kVectors = kDegree / kLanes;
  static constexpr bool kOrdered = true;  // the positions of a tie say which of the two is below
  double count = 0, length = 0;           // C, L
  Lanes e[kVectors] = {};

  NL_HD_INLINE static double decay(double gap, double rate) { return decay_of(rate * gap); }
  NL_HD_INLINE void shift(double gap, double q) {
    length += gap * count;
    double first[kLanes], last = q;  // q, q^2, ...
    NL_UNROLL
    for (int l = 0; l < kLanes; ++l, last *= q) first[l] = last;
    const double step = first[kLanes - 1];
    Lanes power;
    memcpy(&power, first, sizeof(power));
    NL_UNROLL
    for (int k = 0; k < kVectors; ++k) e[k] *= power, power *= step;
  }
  NL_HD_INLINE void insert(double c) {
    count += c;
    NL_UNROLL
    for (int k = 0; k < kVectors; ++k) e[k] += c;
  }
  NL_HD_INLINE void gather(double gap, double q, double c) {
    LogisticState one;
    one.insert(c);
    one.shift(gap, q);
    add(one);
  }
  NL_HD_INLINE void add(const LogisticState& other) {
    count += other.count, length += other.length;
    NL_UNROLL
    for (int k = 0; k < kVectors; ++k) e[k] += other.e[k];
  }
  NL_HD_INLINE double query(const double* factor) const {
    Lanes sum{}, part;
    NL_UNROLL
    for (int k = 0; k < kVectors; ++k) {
      memcpy(&part, factor + 2 + k * kLanes, sizeof(part));
      sum += part * e[k];
    }
    double lane[kLanes], total = factor[0] * count + (factor[1] != 0 ? factor[1] * length : 0.0);
    memcpy(lane, &sum, sizeof(sum));
    NL_UNROLL
    for (int l = 0; l < kLanes; ++l) total += lane[l];
    return total;
  }
};

// a state and where it stands
template <typename state_t>
struct Carry {
  state_t state;
  double place = -kLargest;

  NL_HD_INLINE void move(double to, double rate) {
    const double gap = gap_of(place, to);
    state.shift(gap, state_t::decay(gap, rate));
    place = to;
  }
  NL_HD_INLINE void insert(double at, double c, double rate) {
    move(at, rate);
    state.insert(c);
  }
  // of two neighbouring stretches, this one the later
  NL_HD_INLINE void prepend(Carry before, double rate) {
    before.move(place, rate);
    state.add(before.state);
  }
};

// Walks of one knot. low: pairs with x < knot, gap = knot - x; otherwise x > knot, gap = x - knot. Factors belong to the terms of a state.
struct PairStep {
  bool low;
  double knot;
  double value[kMostTerms] = {}, potential[kMostTerms] = {};
};

// what a kernel is at x = -infinity and x = +infinity, and what every pair of finite x has beside the steps
struct PairLimits {
  double low = 0, high = 0, constant = 0;
};

struct PairPlan {
  std::vector<PairStep> steps;
  PairLimits value, potential;
  bool logistic, wants_value, wants_potential;
  double rate = 0;
  int degree = 0;  // of the states
};

// sum of factor_k gap^k at gap = infinity
inline double limit_of(const std::array<double, 8>& factor) {
  for (size_t k = 7; k > 0; --k)
    if (factor[k] != 0) return factor[k] * HUGE_VAL;
  return factor[0];
}

class PairPlanner {
 public:
  PairPlanner(std::string_view family, const std::vector<double>& value, const std::vector<double>& potential, const char* op)
      : value_(value), potential_(potential), op_(op) {
    plan_.logistic = family == "logistic";
    plan_.wants_value = !value.empty(), plan_.wants_potential = !potential.empty();
    check(plan_.logistic || family == "power", op, "family must be power or logistic, got ", family);
    for (const bool first : {true, false}) {
      const std::vector<double>& kernel = first ? value : potential;
      if (!kernel.empty()) plan_.logistic ? add_logistic(kernel, first) : add_power(kernel, first);
    }
  }
  PairPlan plan() const { return plan_; }

 private:
  double* factors(bool low, double knot, bool of_value) {
    for (PairStep& step : plan_.steps)
      if (step.low == low && step.knot == knot) return of_value ? step.value : step.potential;
    plan_.steps.push_back({low, knot});
    return of_value ? plan_.steps.back().value : plan_.steps.back().potential;
  }

  void add_power(const std::vector<double>& kernel, bool of_value) {
    check(kernel.size() % 4 == 1, op_, "a kernel of the family power must have 1 + 4 n numbers, got ", kernel.size());
    std::array<double, 8> far[2] = {{kernel[0]}, {kernel[0]}};  // polynomials in |x| far above and far below
    for (size_t i = 1; i < kernel.size(); i += 4) {
      const double side = kernel[i], knot = kernel[i + 1], factor = kernel[i + 2], power = kernel[i + 3];
      check(side == 0 || side == 1, op_, "the side of a term must be 0 or 1, got ", side);
      check(std::isfinite(knot) && std::isfinite(factor), op_, "knots and factors must be finite");
      check(power >= 0 && power <= 6 && power == std::floor(power), op_, "the power of a term must be 0 to 6, got ", power);
      const auto k = static_cast<size_t>(power);
      const bool low = side == 0;
      factors(low, knot, of_value)[k] += factor;
      plan_.degree = std::max(plan_.degree, static_cast<int>(k));
      double term = factor;  // factor (|x| +- knot)^k
      for (size_t j = 0; j <= k; ++j) {
        far[low][k - j] += term;
        term *= (low ? knot : -knot) * static_cast<double>(k - j) / static_cast<double>(j + 1);
      }
    }
    (of_value ? plan_.value : plan_.potential) = {limit_of(far[1]), limit_of(far[0]), kernel[0]};
  }

  void add_logistic(const std::vector<double>& kernel, bool of_value) {
    check(kernel.size() >= 3 && kernel.size() % 2 == 1 && kernel.size() <= 3 + 2 * 24, op_,
          "a kernel of the family logistic must have 3 + 2 d numbers, d <= 24, got ", kernel.size());
    const size_t degree = (kernel.size() - 3) / 2;
    const double rate = kernel[0], constant = kernel[1], slope = kernel[2];
    check(rate > 0 && std::isfinite(rate), op_, "scale must be positive, got ", rate);
    check(value_.empty() || potential_.empty() || value_[0] == potential_[0], op_, "value and potential must have the same scale");
    double* above = factors(false, 0, of_value);
    std::copy_n(kernel.data() + 3, degree, above + 2);
    double* below = factors(true, 0, of_value);
    below[0] = constant, below[1] = -slope;
    std::copy_n(kernel.data() + 3 + degree, degree, below + 2);
    plan_.rate = rate, plan_.degree = std::max(plan_.degree, static_cast<int>(degree));
    (of_value ? plan_.value : plan_.potential) = {slope != 0 ? -slope * HUGE_VAL : constant, 0, 0};
  }

  const std::vector<double>&value_, &potential_;
  const char* op_;
  PairPlan plan_{};
};

// calls f with an empty state that has the terms of the plan
template <typename F>
void dispatch_state(const PairPlan& plan, F&& f) {
  if (plan.logistic) return plan.degree <= 12 ? f(LogisticState<12>{}) : f(LogisticState<24>{});
  plan.degree <= 2 ? f(PowerState<2>{}) : f(PowerState<6>{});
}

}  // namespace nearlinear

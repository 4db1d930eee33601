// pair_scan, CPU.   x = s_i - s_j over the positives i and the negatives j of a group, k the kernels of python/nearlinear/pair_kernels.py:
//                   total_g = sum_ij c_i c_j value(x);   potential_i = sum_j c_j potential(x),  potential_j = sum_i c_i potential(x)
// Shapes: input [N] float32 or float64, any stride; target [N] bool; coefficient [N] of input's dtype; group [N] int64; total [G] float64;
//   potential [N] in input's dtype
// Algorithm: scores with their positions are sorted by group and label (sorted_segments.h). Each knot of a kernel is one merge of the two
//   sorted labels, in blocks (pair_walks.h): the sums of each block's sources, their combination in order from either end, then the merge
//   of a block, along which a state goes up and another one down (functors/pair_scan.h). "direct": every pair of the sorted group; "auto":
//   the same where a group has at most kFew pairs per element.
// Cost: 4 passes of 8 bits over 8 bytes per element (8 over 16 for float64), the first of them straight from the input where there is one
//   long group; for each knot one merge of 10 to 15 ns per element with few terms. Squared hinge with slope, float32, 1 thread: 0.23 of
//   torch.sort at 1e6, 0.24 at 1e7. Temporaries: two records per element, 16 N bytes in float32 and 32 N in float64, the sorted
//   coefficients, and two states for every 512 elements.
// Numerics: float64 sums in a fixed order, rounded once: run_to_run, for any number of threads. Ties are told apart by position (logistic)
//   or lie at the knot (power), where a difference counts as 0. Partners at an infinite distance give the limit of k, equal infinities are
//   ties, a coefficient of 0 removes even NaN, any other NaN makes its group NaN.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <optional>
#include <string>
#include <tuple>

#include "../common/dispatch.h"
#include "pair_walks.h"

namespace nearlinear {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kFew = 1;     // pairs per element up to which all pairs are walked one by one
constexpr int64_t kAhead = 32;  // elements whose places in the output are fetched in advance

// pairs of elements at finite distances, or all at the same infinity
template <typename state_t, typename scalar_t>
double near_pairs(const PairPlan& plan, bool direct, const Elements<scalar_t>& p, const Elements<scalar_t>& q) {
  double total = 0;
  for (const PairStep& step : plan.steps) {
    const Line<scalar_t> positive{p, 0}, negative{q, step.knot};
    const Walk<state_t, scalar_t> walk{step.low ? positive : negative, step.low ? negative : positive,
                                       plan.wants_value ? step.value : nullptr, plan.wants_potential ? step.potential : nullptr, plan.rate};
    total += direct ? compare(walk) : scan(walk);
  }
  return total;
}

enum class Method { kAuto, kScan, kDirect };

// one group, NaN last: its total, or NaN
template <typename state_t, typename scalar_t>
double group_sum(const PairPlan& plan, Method method, Elements<scalar_t> p, Elements<scalar_t> q) {
  using key_t = typename Elements<scalar_t>::key_t;
  p.fill(0), q.fill(0);
  if (p.size == 0 || q.size == 0) return 0;
  const int64_t numbers_p = p.below(kNotANumber<key_t>, false), numbers_q = q.below(kNotANumber<key_t>, false);
  if (numbers_p < p.size || numbers_q < q.size) {
    const auto nan_p = p.part(numbers_p, p.size), nan_q = q.part(numbers_q, q.size);
    const bool any_p = p.any_weight(), any_q = q.any_weight(), poison = nan_p.any_weight() || nan_q.any_weight();
    if (any_q) (poison ? p : nan_p).fill(kNan);
    if (any_p) (poison ? q : nan_q).fill(kNan);
    if (poison) return any_p && any_q ? kNan : 0;
    p = p.part(0, numbers_p), q = q.part(0, numbers_q);
  }
  // three zones: -infinity, finite, +infinity
  constexpr scalar_t infinity = std::numeric_limits<scalar_t>::infinity();
  const key_t least = ordered_key(-infinity), most = ordered_key(infinity);
  const auto zone = [&](const Elements<scalar_t>& e, int k) {
    const int64_t begin = e.below(least, true), end = e.below(most, false);
    auto part = k == 0 ? e.part(0, begin) : k == 1 ? e.part(begin, end) : e.part(end, e.size);
    part.flat = k != 1;
    return part;
  };
  double total = 0;
  for (int a = 0; a < 3; ++a) {
    for (int b = 0; b < 3; ++b) {
      const auto zp = zone(p, a), zq = zone(q, b);
      if (zp.size == 0 || zq.size == 0) continue;
      const auto far = [=](const PairLimits& k) { return a == b ? k.constant : a < b ? k.low : k.high; };
      const double k = far(plan.value), u = far(plan.potential);
      if (k != 0 || u != 0) {
        const double mp = zp.mass(), mq = zq.mass();
        if (mp != 0 && mq != 0) total += k * mp * mq;
        if (mq != 0) zp.add(u * mq);
        if (mp != 0) zq.add(u * mp);
      }
      if (a != b) continue;
      const bool few = zp.size * zq.size <= kFew * (zp.size + zq.size);
      total += near_pairs<state_t>(plan, method == Method::kDirect || (method == Method::kAuto && few), zp, zq);
    }
  }
  return total;
}

const char* const kOp = "pair_scan";

// contiguous arguments
struct Arguments {
  Tensor target, coefficient, group;
  int64_t count, groups;
  bool weighed, grouped;

  Arguments(const Tensor& input, const Tensor& target_, const OptionalTensor& coefficient_, const OptionalTensor& group_, int64_t groups_)
      : target(torch::stable::contiguous(target_)),
        coefficient(torch::stable::contiguous(coefficient_.value_or(target_))),
        group(torch::stable::contiguous(group_.value_or(target_))),
        count(input.numel()),
        groups(groups_),
        weighed(coefficient_.has_value()),
        grouped(group_.has_value()) {
    check(input.dim() == 1, kOp, "input must have shape (N,), got ", input.dim(), " dimensions");
    const ScalarType dtype = input.scalar_type();
    check(dtype == ScalarType::Float || dtype == ScalarType::Double, kOp, "input must be float32 or float64");
    check(count <= (int64_t{1} << 32) || dtype == ScalarType::Double, kOp, "float32 input must have at most 2^32 elements, got ", count);
    check(target.scalar_type() == ScalarType::Bool && target.dim() == 1 && target.numel() == count, kOp,
          "target must be bool of shape (N,)");
    if (weighed)
      check(coefficient.scalar_type() == dtype && coefficient.dim() == 1 && coefficient.numel() == count, kOp,
            "coefficient must have the dtype and the shape of input");
    check(groups >= 0 && (grouped || groups == 1), kOp, "num_groups must be >= 0, and 1 without group, got ", groups);
    if (!grouped) return;
    check(group.scalar_type() == ScalarType::Long && group.dim() == 1 && group.numel() == count, kOp, "group must be int64 of shape (N,)");
    const int64_t* g = group.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < count; ++i)
      check(g[i] >= 0 && g[i] < groups, kOp, "group[", i, "] = ", g[i], " is out of range [0, ", groups, ")");
  }
};

template <typename state_t, typename scalar_t>
void run(const PairPlan& plan, Method method, const scalar_t* score, int64_t stride, const Arguments& given, double* total,
         scalar_t* potential) {
  using key_t = typename Elements<scalar_t>::key_t;
  const bool* positive = given.target.const_data_ptr<bool>();
  const int64_t n = given.count, *group = given.grouped ? given.group.const_data_ptr<int64_t>() : nullptr;
  SortedSegments<Indexed<key_t>> sorted(
      n, 2 * given.groups, [=](int64_t i) { return 2 * (group ? group[i] : 0) + positive[i]; },
      [=](int64_t i) { return Indexed<key_t>{ordered_key(score[i * stride]), static_cast<key_t>(i)}; });
  static_assert(sizeof(double) <= sizeof(Indexed<key_t>));
  double* sum = potential != nullptr ? reinterpret_cast<double*>(sorted.spare()) : nullptr;
  const Indexed<key_t>* record = sorted.records();
  std::unique_ptr<scalar_t[]> coefficient;
  if (given.weighed) {
    coefficient = scratch<scalar_t>(n);
    const scalar_t* c = given.coefficient.const_data_ptr<scalar_t>();
    parallel_for(0, n, 1 << 14, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) coefficient[i] = c[record[i].index];
    });
  }
  const auto elements = [&](int64_t segment) {
    const int64_t begin = sorted.begin(segment);
    return Elements<scalar_t>{record, coefficient.get(), sum, 0, false}.part(begin, begin + sorted[segment].size);
  };
  const auto long_group = [&](int64_t g) { return sorted[2 * g].size + sorted[2 * g + 1].size > kPiece; };
  const auto sum_up = [&](int64_t g) {
    const double x = group_sum<state_t>(plan, method, elements(2 * g + 1), elements(2 * g));
    if (total != nullptr) total[g] = x;
  };
  // long groups one after another, each by all threads; then the short ones, each by one
  for (int64_t g = 0; g < given.groups; ++g)
    if (long_group(g)) sum_up(g);
  parallel_for(0, given.groups, std::max<int64_t>(1, given.groups * 4096 / std::max<int64_t>(n, 1)), [&](int64_t first, int64_t last) {
    for (int64_t g = first; g < last; ++g)
      if (!long_group(g)) sum_up(g);
  });
  if (potential == nullptr) return;
  parallel_for(0, n, 1 << 14, [&](int64_t first, int64_t last) {
    const int64_t final = n - 1;
    for (int64_t i = first; i < last; ++i) {
      __builtin_prefetch(potential + record[std::min(i + kAhead, final)].index, 1);
      potential[record[i].index] = static_cast<scalar_t>(sum[i]);
    }
  });
}

std::tuple<Tensor, Tensor> pair_scan_cpu(const Tensor& input, const Tensor& target, const OptionalTensor& coefficient,
                                         const OptionalTensor& group, int64_t num_groups, const std::string& family,
                                         const std::vector<double>& value, const std::vector<double>& potential,
                                         const std::string& method) {
  const Arguments given(input, target, coefficient, group, num_groups);
  const PairPlan plan = PairPlanner(family, value, potential, kOp).plan();
  check(method == "auto" || method == "scan" || method == "direct", kOp, "method must be auto, scan or direct, got ", method);
  const Method way = method == "auto" ? Method::kAuto : method == "scan" ? Method::kScan : Method::kDirect;
  Tensor total = torch::stable::new_empty(input, {value.empty() ? 0 : num_groups}, ScalarType::Double);
  Tensor out = torch::stable::new_empty(input, {potential.empty() ? 0 : given.count});
  advise_huge_pages(out.mutable_data_ptr(), static_cast<size_t>(out.numel()) * (input.scalar_type() == ScalarType::Double ? 8 : 4));
  const auto typed = [&](auto zero) {
    using scalar_t = decltype(zero);
    dispatch_state(plan, [&](auto state) {
      run<decltype(state)>(plan, way, input.const_data_ptr<scalar_t>(), input.stride(0), given,
                           value.empty() ? nullptr : total.mutable_data_ptr<double>(),
                           potential.empty() ? nullptr : out.mutable_data_ptr<scalar_t>());
    });
  };
  if (input.scalar_type() == ScalarType::Double) {
    typed(double{});
  } else {
    typed(float{});
  }
  return {total, out};
}

}  // namespace
}  // namespace nearlinear

STABLE_TORCH_LIBRARY_IMPL(nearlinear, CPU, m) { m.impl("pair_scan", TORCH_BOX(&nearlinear::pair_scan_cpu)); }

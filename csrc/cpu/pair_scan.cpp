// pair_scan, CPU.   x = s_i - s_j over the positives i and the negatives j of a group, k the kernels of python/nearlinear/pair_kernels.py:
//                   total_g = sum_ij c_i c_j value(x);   potential_i = sum_j c_j potential(x),  potential_j = sum_i c_i potential(x)
// Shapes: input [N] float32 or float64, any stride; target [N] bool; coefficient [N] of input's dtype; group [N] int64; total [G] float64;
//   potential [N] in input's dtype
// Algorithm: scores with their positions are sorted by group and label (sorted_segments.h). Each knot of a kernel is a merge of the two
//   sorted labels, from below and from above, which carries a state (functors/pair_scan.h). Long groups are cut into pieces: the state of
//   each piece, their combination in order, the piece again with what it begins with. "direct": every pair of the sorted group; "auto":
//   the same where a group has at most kFew pairs per element.
// Cost: 4 passes of 8 bits over 8 bytes per element (8 over 16 for float64); for each side of each knot, 2 merges (1 for total alone) of 2
//   to 10 ns per element. Temporaries: two records per element, 16 N bytes in float32 and 32 N in float64, and the sorted coefficients.
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
#include "../common/simd.h"
#include "../functors/pair_scan.h"
#include "sorted_segments.h"

namespace nearlinear {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kFew = 1;  // measured: pairs per element up to which all pairs are as fast as a scan

// sorted elements of one group and label, or a stretch of them
template <typename scalar_t>
struct Elements {
  using key_t = decltype(ordered_key(scalar_t{}));
  const Indexed<key_t>* record;
  const scalar_t* coefficient;  // null: 1
  double* potential;            // null: not wanted
  int64_t size;
  bool flat;  // equal infinities, which count as 0

  double score(int64_t i) const { return flat ? 0.0 : static_cast<double>(number_of<scalar_t>(record[i].key)); }
  double weight(int64_t i) const { return coefficient == nullptr ? 1.0 : static_cast<double>(coefficient[i]); }
  Elements part(int64_t begin, int64_t end) const {
    return {record + begin, coefficient ? coefficient + begin : nullptr, potential ? potential + begin : nullptr, end - begin, flat};
  }
  double mass() const {
    if (coefficient == nullptr) return static_cast<double>(size);
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += weight(i);
    return sum;
  }
  bool any_weight() const {
    for (int64_t i = 0; i < size; ++i)
      if (weight(i) != 0) return true;
    return false;
  }
  void add(double x) const {
    if (potential != nullptr && x != 0)
      for (int64_t i = 0; i < size; ++i) potential[i] += x;
  }
  void fill(double x) const {
    if (potential != nullptr) std::fill_n(potential, size, x);
  }
  // elements before the first whose key is at least, or above, `key`
  int64_t below(key_t key, bool with_equal) const {
    const auto less = [=](const Indexed<key_t>& r) { return r.key < key || (with_equal && r.key == key); };
    return std::partition_point(record, record + size, less) - record;
  }
};

// integers in the order of doubles other than -0.0 and NaN, which are merged faster; the same map leads back
NL_INLINE int64_t swap_order(int64_t bits) { return bits ^ ((bits >> 63) & std::numeric_limits<int64_t>::max()); }
NL_INLINE int64_t ordered(double x) { return swap_order(std::bit_cast<int64_t>(x)); }
NL_INLINE double placed(int64_t x) { return std::bit_cast<double>(swap_order(x)); }

// elements in the direction of a walk: places ascend, and so do the positions of ties
template <typename scalar_t>
struct Line {
  using key_t = typename Elements<scalar_t>::key_t;
  const Indexed<key_t>* record;
  const scalar_t* coefficient;
  double* potential;
  int64_t step;
  double sign, offset;
  bool flat;

  Line(const Elements<scalar_t>& e, bool ascending, double knot)
      : record(e.record),
        coefficient(e.coefficient),
        potential(e.potential),
        step(ascending ? 1 : -1),
        sign(ascending ? 1.0 : -1.0),
        offset(sign * knot),
        flat(e.flat) {
    if (ascending || e.size == 0) return;
    record += e.size - 1;
    if (coefficient != nullptr) coefficient += e.size - 1;
    if (potential != nullptr) potential += e.size - 1;
  }
  NL_INLINE double place(int64_t i) const {
    const double score = flat ? 0.0 : static_cast<double>(number_of<scalar_t>(record[i * step].key));
    return sign * score + offset + 0.0;  // -0.0 becomes 0.0
  }
  NL_INLINE double weight(int64_t i) const { return coefficient == nullptr ? 1.0 : static_cast<double>(coefficient[i * step]); }
  NL_INLINE void load(int64_t begin, int64_t n, int64_t* to, double* weights) const {
    for (int64_t i = 0; i < n; ++i) to[i] = ordered(place(begin + i));
    for (int64_t i = 0; i < n; ++i) weights[i] = weight(begin + i);
  }
  // whether element i comes before a tied element j of another line
  NL_INLINE bool leads(int64_t i, const Line& other, int64_t j) const {
    const key_t mine = record[i * step].index, theirs = other.record[j * step].index;
    return step > 0 ? mine < theirs : mine > theirs;
  }
};

template <typename state_t, typename scalar_t>
struct Walk {
  Line<scalar_t> source, query;
  int64_t sources, queries;
  const double *value, *potential;  // factors; null: not wanted
  double rate;

  NL_INLINE bool source_first(int64_t s, int64_t q) const {
    const double a = source.place(s), b = query.place(q);
    return a < b || (state_t::kOrdered && a == b && source.leads(s, query, q));
  }
  NL_INLINE void absorb(Carry<state_t>& carry, int64_t s) const { carry.insert(source.place(s), source.weight(s), rate); }
  // adds what a query finds to its potential; returns its share of the total
  NL_INLINE double answer(const state_t& state, int64_t q) const {
    if (potential != nullptr) query.potential[q * query.step] += state.query(potential);
    if (value == nullptr) return 0;
    const double c = query.weight(q);
    return c != 0 ? c * state.query(value) : 0.0;
  }
};

constexpr int64_t kWindow = 256;

// places that a state moves to, and what it takes in there
struct Path {
  int64_t place[2 * kWindow + 1];  // ordered
  double gap[2 * kWindow], decay[2 * kWindow], weight[2 * kWindow];
  int64_t size = 0;

  template <typename state_t>
  NL_INLINE void measure(double rate) {
#pragma omp simd
    for (int64_t m = 0; m < size; ++m) {
      gap[m] = gap_of(placed(place[m]), placed(place[m + 1]));
      decay[m] = state_t::decay(gap[m], rate);
    }
  }
};

// state of the sources [s, s_end)
template <typename state_t, typename scalar_t>
NL_CLONES void absorb(const Walk<state_t, scalar_t>& walk, int64_t s, int64_t s_end, Carry<state_t>* out) {
  Path path;
  Carry<state_t> carry;
  for (; s < s_end; s += path.size) {
    path.size = std::min(kWindow, s_end - s);
    path.place[0] = ordered(carry.place);
    walk.source.load(s, path.size, path.place + 1, path.weight);
    path.measure<state_t>(walk.rate);
    for (int64_t m = 0; m < path.size; ++m) {
      carry.state.shift(path.gap[m], path.decay[m]);
      carry.state.insert(path.weight[m]);
    }
    carry.place = placed(path.place[path.size]);
  }
  *out = carry;
}

// the queries [q, q_end) after `carry` and among the sources [s, s_end); returns their share of the total
template <typename state_t, typename scalar_t>
NL_CLONES double scan(const Walk<state_t, scalar_t>& walk, Carry<state_t> carry, int64_t s, int64_t s_end, int64_t q, int64_t q_end) {
  Path path;
  int64_t source[kWindow + 1], query[kWindow], slot[2 * kWindow];  // slot: of the query at a place, or after it
  double source_weight[kWindow + 2], query_weight[kWindow], value[kWindow], potential[kWindow];
  double total = 0;
  while (q < q_end) {
    const int64_t ns = std::min(kWindow, s_end - s), nq = std::min(kWindow, q_end - q);
    walk.source.load(s, ns, source, source_weight + 1);
    walk.query.load(q, nq, query, query_weight);
    source[ns] = std::numeric_limits<int64_t>::max(), source_weight[0] = source_weight[ns + 1] = 0;
    const int64_t sources = s + ns < s_end ? ns : ns + 1;  // the last window ends beyond every query
    int64_t i = 0, j = 0, m = 0;
    path.place[0] = ordered(carry.place);
    for (; i < sources && j < nq; ++m) {  // no branch depends on the order
      const int64_t a = source[i], b = query[j];
      bool first = a < b;
      if constexpr (state_t::kOrdered)
        if (a == b) first = walk.source.leads(s + i, walk.query, q + j);
      path.place[m + 1] = a < b ? a : b;
      path.weight[m] = source_weight[(i + 1) & -int64_t{first}];
      slot[m] = j;
      i += first, j += !first;
    }
    path.size = m;
    path.measure<state_t>(walk.rate);
    for (m = 0; m < path.size; ++m) {
      carry.state.shift(path.gap[m], path.decay[m]);
      carry.state.insert(path.weight[m]);
      if (walk.value != nullptr) value[slot[m]] = carry.state.query(walk.value);
      if (walk.potential != nullptr) potential[slot[m]] = carry.state.query(walk.potential);
    }
    carry.place = placed(path.place[path.size]);
    for (m = 0; m < j; ++m) {
      if (walk.value != nullptr && query_weight[m] != 0) total += query_weight[m] * value[m];
      if (walk.potential != nullptr) walk.query.potential[(q + m) * walk.query.step] += potential[m];
    }
    s += i, q += j;
  }
  return total;
}

// every pair by itself
template <typename state_t, typename scalar_t>
NL_CLONES double compare(const Walk<state_t, scalar_t>& given) {
  const Walk<state_t, scalar_t> walk = given;
  double total = 0;
  for (int64_t q = 0; q < walk.queries; ++q) {
    double row = 0;  // a sum of sums: the rounding of a total of all pairs would grow with their number
    for (int64_t s = 0; s < walk.sources && walk.source_first(s, q); ++s) {
      Carry<state_t> one;
      walk.absorb(one, s);
      one.move(walk.query.place(q), walk.rate);
      row += walk.answer(one.state, q);
    }
    total += row;
  }
  return total;
}

// how many sources are among the first `rank` of the merged elements
template <typename walk_t>
int64_t sources_before(const walk_t& walk, int64_t rank) {
  int64_t low = std::max<int64_t>(0, rank - walk.queries), high = std::min(rank, walk.sources);
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (walk.source_first(middle, rank - middle - 1)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <typename state_t, typename scalar_t>
double scan_pieces(const Walk<state_t, scalar_t>& walk) {
  const int64_t size = walk.sources + walk.queries, pieces = pieces_of(size);
  if (pieces == 1) return scan(walk, Carry<state_t>{}, 0, walk.sources, 0, walk.queries);
  std::vector<int64_t> rank, source;
  for (int64_t p = 0; p <= pieces; ++p) {
    rank.push_back(std::min(size, p * kPiece));
    source.push_back(sources_before(walk, rank.back()));
  }
  std::vector<Carry<state_t>> carry(rank.size());
  std::vector<double> total(rank.size());
  parallel_for(0, pieces - 1, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) absorb(walk, source[p], source[p + 1], &carry[p + 1]);
  });
  for (int64_t p = 1; p < pieces; ++p) {
    if (source[p] < source[p + 1]) {
      carry[p + 1].prepend(carry[p], walk.rate);
    } else {
      carry[p + 1] = carry[p];
    }
  }
  parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p)
      total[p] = scan(walk, carry[p], source[p], source[p + 1], rank[p] - source[p], rank[p + 1] - source[p + 1]);
  });
  double sum = 0;
  for (const double part : total) sum += part;
  return sum;
}

// pairs of elements at finite distances, or all at the same infinity
template <typename state_t, typename scalar_t>
double near_pairs(const PairPlan& plan, bool direct, const Elements<scalar_t>& p, const Elements<scalar_t>& q) {
  double total = 0;
  for (const PairStep& step : plan.steps) {
    for (const bool ascending : {true, false}) {
      if (!ascending && !plan.wants_potential) continue;
      const Line<scalar_t> positive(p, ascending, 0), negative(q, ascending, step.knot);
      // low: positives below negatives, so that they are the sources on the way up
      const bool positive_source = step.low == ascending;
      const Walk<state_t, scalar_t> walk{positive_source ? positive : negative,
                                         positive_source ? negative : positive,
                                         positive_source ? p.size : q.size,
                                         positive_source ? q.size : p.size,
                                         plan.wants_value && ascending ? step.value : nullptr,
                                         plan.wants_potential ? step.potential : nullptr,
                                         plan.rate};
      total += direct ? compare(walk) : scan_pieces(walk);
    }
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
    for (int64_t i = first; i < last; ++i) potential[record[i].index] = static_cast<scalar_t>(sum[i]);
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

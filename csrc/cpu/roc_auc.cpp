// roc_auc_counts, CPU.   (2 U, positives, negatives) of every group,  2 U = sum over its positives i and negatives j of 2 [s_i > s_j] +
//                        [s_i = s_j].   roc_auc_sums: (U, W_P, W_Q) with weights, U over the negatives of highest score that make up the
//                        share max_fpr of W_Q.   roc_auc_class_sums: U of class c against class j on column c, and the weight of each class
// Shapes: input [N], for classes [N, C], any strides; target [N] bool, for classes int64 [N]; group int64 [N]; results [G, 3]; [C, C], [C].
// Algorithm: keys in the order of the scores are put together by group and label, each segment is sorted alone by radix (std::sort below
//   512), and the positives of a group are merged with its negatives. Classes: a column is put together by class and sorted once, and its
//   class is merged with every other. Keys only: labels and indices are never moved.
// Cost: reads the inputs twice; 4 passes of 8 bits over the keys (8 for float64), then one merge. Temporaries: two keys, or key and weight,
//   per element: 8 N bytes in float32, 16 N with float32 weights or in float64.
// Numerics: counts are integers, sums are float64 in the order of the scores; -0.0 = 0.0, equal infinities are ties; NaN among the scores
//   gives 2 U = -1, U = NaN; weight 0 leaves an element out, NaN score included; run_to_run, for any number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <limits>
#include <optional>
#include <tuple>

#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/simd.h"
#include "../functors/ordered_key.h"
#include "sorted_segments.h"

namespace nearlinear {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// one score per element, with any stride
template <typename scalar_t>
struct Scores {
  using key_t = std::conditional_t<std::is_same_v<scalar_t, double>, uint64_t, uint32_t>;
  const scalar_t* data;
  int64_t stride;
  key_t operator()(int64_t i) const { return ordered_key(simd::to_op(data[i * stride])); }
};

// contiguous labels, groups and weights of the elements
struct Elements {
  Tensor target, group, weight;
  int64_t count;

  Elements(const Tensor& input, const Tensor& target_, const OptionalTensor& group_, const OptionalTensor& weight_, const char* op)
      : target(torch::stable::contiguous(target_)),
        group(torch::stable::contiguous(group_.value_or(target_))),
        weight(torch::stable::contiguous(weight_.value_or(target_))),
        count(input.size(0)) {
    check(target.dim() == 1 && target.numel() == count, op, "target must have shape (N,)");
    if (group_.has_value())
      check(group.scalar_type() == ScalarType::Long && group.dim() == 1 && group.numel() == count, op, "group must be int64 of shape (N,)");
    if (weight_.has_value()) {
      const ScalarType dtype = weight.scalar_type();
      check(dtype == ScalarType::Float || dtype == ScalarType::Double, op, "sample_weight must be float32 or float64");
      check(weight.dim() == 1 && weight.numel() == count, op, "sample_weight must have shape (N,)");
    }
  }
};

void check_range(const Tensor& ids, int64_t end, const char* op, const char* name) {
  const int64_t *data = ids.const_data_ptr<int64_t>(), n = ids.numel();
  for (int64_t i = 0; i < n; ++i)
    check(data[i] >= 0 && data[i] < end, op, name, "[", i, "] = ", data[i], " is out of range [0, ", end, ")");
}

template <typename record_t>
bool has_nan(Span<record_t> s) {  // NaN is the largest key
  return s.size > 0 && s.data[s.size - 1].key == kNotANumber<typename record_t::key_t>;
}

// mass of the records of `key` at the upper end of what is left
template <typename record_t>
auto take_run(Span<record_t>& s, typename record_t::key_t key) {
  decltype(s.data->mass()) sum = 0;
  for (; s.size > 0 && s.data[s.size - 1].key == key; --s.size) sum += s.data[s.size - 1].mass();
  return sum;
}

template <typename record_t>
typename record_t::key_t last_key(Span<record_t> s) {
  return s.data[s.size - 1].key;
}

// 2 U of two sorted segments; the positives are cut into pieces, over which it is a sum
template <typename key_t>
int64_t twice_u(Span<Keyed<key_t>> positives, Span<Keyed<key_t>> negatives) {
  if (has_nan(positives) || has_nan(negatives)) return -1;
  std::atomic<int64_t> total{0};
  parallel_for(0, pieces_of(positives.size), 1, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kPiece;
    Span<Keyed<key_t>> p{positives.data + begin, std::min(positives.size, last * kPiece) - begin}, q = negatives;
    q.size = std::upper_bound(q.data, q.data + q.size, last_key(p), [](key_t key, Keyed<key_t> r) { return key < r.key; }) - q.data;
    int64_t above = 0, sum = 0;
    while (p.size > 0 && q.size > 0) {
      const key_t key = std::max(last_key(p), last_key(q));
      const int64_t height = take_run(p, key), width = take_run(q, key);
      sum += width * (2 * above + height);
      above += height;
    }
    total += sum + q.size * 2 * above;
  });
  return total;
}

template <typename record_t>
double mass_of(Span<record_t> s) {
  if constexpr (std::is_same_v<record_t, Keyed<typename record_t::key_t>>) return static_cast<double>(s.size);
  double sum = 0;
  for (int64_t i = 0; i < s.size; ++i) sum += s.data[i].mass();
  return sum;
}

// area under the ROC curve up to a mass `limit` of negatives, from high scores to low; the curve is a line across a run of equal scores
template <typename record_t>
double area(Span<record_t> p, Span<record_t> q, double limit) {
  if (has_nan(p) || has_nan(q)) return std::numeric_limits<double>::quiet_NaN();
  double above = 0, passed = 0, sum = 0;
  while (q.size > 0 && passed < limit) {
    const auto key = p.size > 0 ? std::max(last_key(p), last_key(q)) : last_key(q);
    const double height = static_cast<double>(take_run(p, key)), width = static_cast<double>(take_run(q, key));
    const double share = passed + width > limit ? (limit - passed) / width : 1.0;
    sum += share * width * (above + share * height / 2);
    above += height, passed += width;
  }
  return sum;
}

// calls f with the scores and a maker of records: a key, or a key with a weight
template <typename F>
void dispatch_records(const Tensor& input, int64_t stride, const OptionalTensor& given, const Elements& e, const char* op, F&& f) {
  dispatch_floating(input.scalar_type(), op, "input", [&](auto zero) {
    using scores_t = Scores<decltype(zero)>;
    using key_t = typename scores_t::key_t;
    const scores_t scores{static_cast<const decltype(zero)*>(input.const_data_ptr()), stride};
    const auto weighed = [&](const auto* w) {
      using weight_t = std::remove_cvref_t<decltype(*w)>;
      f(scores, [w](key_t key, int64_t i) { return Weighed<key_t, weight_t>{key, w[i]}; }, [w](int64_t i) { return w[i] != 0; });
    };
    if (!given.has_value()) return f(scores, [](key_t key, int64_t) { return Keyed<key_t>{key}; }, [](int64_t) { return true; });
    if (e.weight.scalar_type() == ScalarType::Double) return weighed(e.weight.template const_data_ptr<double>());
    weighed(e.weight.template const_data_ptr<float>());
  });
}

// calls f(group, positives, negatives) for every group, groups by all threads
template <typename F>
void for_groups(const Tensor& input, const Tensor& target, const OptionalTensor& sample_weight, const OptionalTensor& group,
                int64_t num_groups, const char* op, F&& f) {
  check(input.dim() == 1, op, "input must have shape (N,), got ", input.dim(), " dimensions");
  const Elements e(input, target, group, sample_weight, op);
  check(target.scalar_type() == ScalarType::Bool, op, "target must be bool");
  check(num_groups >= 0 && (group.has_value() || num_groups == 1), op, "num_groups must be >= 0, and 1 without group, got ", num_groups);
  if (group.has_value()) check_range(e.group, num_groups, op, "group");
  const bool* positive = e.target.const_data_ptr<bool>();
  const int64_t* g = group.has_value() ? e.group.const_data_ptr<int64_t>() : nullptr;
  dispatch_records(input, input.stride(0), sample_weight, e, op, [&](auto scores, auto make, auto kept) {
    using record_t = decltype(make(scores(0), 0));
    const SortedSegments<record_t> sorted(
        e.count, 2 * num_groups, [=](int64_t i) { return kept(i) ? 2 * (g ? g[i] : 0) + positive[i] : -1; },
        [=](int64_t i) { return make(scores(i), i); });
    parallel_for(0, num_groups, std::max<int64_t>(1, num_groups * 4096 / std::max<int64_t>(e.count, 1)), [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) f(k, sorted[2 * k + 1], sorted[2 * k]);
    });
  });
}

Tensor roc_auc_counts_cpu(const Tensor& input, const Tensor& target, const OptionalTensor& group, int64_t num_groups) {
  Tensor counts = torch::stable::new_empty(input, {num_groups, 3}, ScalarType::Long);
  int64_t* out = counts.mutable_data_ptr<int64_t>();
  const OptionalTensor unweighted;
  for_groups(input, target, unweighted, group, num_groups, "roc_auc_counts", [out](int64_t k, auto p, auto q) {
    if constexpr (requires { twice_u(p, q); })  // records without weights
      out[3 * k] = twice_u(p, q), out[3 * k + 1] = p.size, out[3 * k + 2] = q.size;
  });
  return counts;
}

Tensor roc_auc_sums_cpu(const Tensor& input, const Tensor& target, const OptionalTensor& sample_weight, const OptionalTensor& group,
                        int64_t num_groups, double max_fpr) {
  const char* op = "roc_auc_sums";
  check(max_fpr > 0 && max_fpr <= 1, op, "max_fpr must be in (0, 1], got ", max_fpr);
  Tensor sums = torch::stable::new_empty(input, {num_groups, 3}, ScalarType::Double);
  double* out = sums.mutable_data_ptr<double>();
  for_groups(input, target, sample_weight, group, num_groups, op, [out, max_fpr](int64_t k, auto p, auto q) {
    const double mass = mass_of(q);
    // all of it: sums in two orders differ, and the last run must not be cut
    const double limit = max_fpr < 1 ? max_fpr * mass : std::numeric_limits<double>::infinity();
    out[3 * k] = area(p, q, limit), out[3 * k + 1] = mass_of(p), out[3 * k + 2] = mass;
  });
  return sums;
}

std::tuple<Tensor, Tensor> roc_auc_class_sums_cpu(const Tensor& input, const Tensor& target, const OptionalTensor& sample_weight) {
  const char* op = "roc_auc_class_sums";
  check(input.dim() == 2, op, "input must have shape (N, C), got ", input.dim(), " dimensions");
  const int64_t classes = input.size(1);
  const Elements e(input, target, OptionalTensor{}, sample_weight, op);
  check(target.scalar_type() == ScalarType::Long, op, "target must be int64");
  check_range(e.target, classes, op, "target");
  Tensor sums = torch::stable::new_empty(input, {classes, classes}, ScalarType::Double);
  Tensor mass = torch::stable::new_empty(input, {classes}, ScalarType::Double);
  double *out = sums.mutable_data_ptr<double>(), *m = mass.mutable_data_ptr<double>();
  const int64_t* y = e.target.const_data_ptr<int64_t>();
  dispatch_records(input, input.stride(0), sample_weight, e, op, [&](auto scores, auto make, auto kept) {
    using record_t = decltype(make(scores(0), 0));
    for (int64_t c = 0; c < classes; ++c, scores.data += input.stride(1)) {
      const SortedSegments<record_t> sorted(
          e.count, classes, [=](int64_t i) { return kept(i) ? y[i] : -1; }, [=](int64_t i) { return make(scores(i), i); });
      parallel_for(0, classes, 1, [&](int64_t first, int64_t last) {
        for (int64_t j = first; j < last; ++j) out[c * classes + j] = area(sorted[c], sorted[j], std::numeric_limits<double>::infinity());
      });
      m[c] = mass_of(sorted[c]);
    }
  });
  return {sums, mass};
}

}  // namespace
}  // namespace nearlinear

STABLE_TORCH_LIBRARY_IMPL(nearlinear, CPU, m) {
  m.impl("roc_auc_counts", TORCH_BOX(&nearlinear::roc_auc_counts_cpu));
  m.impl("roc_auc_sums", TORCH_BOX(&nearlinear::roc_auc_sums_cpu));
  m.impl("roc_auc_class_sums", TORCH_BOX(&nearlinear::roc_auc_class_sums_cpu));
}

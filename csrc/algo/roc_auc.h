// (U, positives, negatives) of every group after a sort, by Thrust: the GPU form of csrc/cpu/roc_auc.cpp, which its tests run on the host.
//
// Steps, all on one stream, none waits for a result: keys in the order of the scores, stably sorted with their positions (and once more by
// group); running sums of positives and of negatives, within each group and within each run of equal scores; at the last element of a
// run, its share of U; a running sum of that. Sums are added tile by tile in a fixed order, so that float64 gives the same bits each time.
#pragma once
#include <thrust/binary_search.h>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/sort.h>

#include <cmath>
#include <cstdint>

#include "roc_auc_launch.h"
#include "tiles.h"

namespace nearlinear::algo {

// T = int64_t: out = (2 U, positives, negatives), -1 for NaN. T = double: (U, W_P, W_Q) up to max_fpr of the negatives.
template <typename T, typename policy_t, typename scalar_t>
void roc_auc(policy_t&& policy, Arena& arena, Samples<scalar_t> samples, double max_fpr, T* out) {
  using key_t = decltype(ordered_key(scalar_t{}));
  constexpr bool counts = !std::is_floating_point_v<T>;
  const int64_t n = samples.count, groups = samples.groups;
  const size_t size = static_cast<size_t>(n);
  key_t* key = arena.array<key_t>(size);
  int64_t *position = arena.array<int64_t>(size), *group = arena.array<int64_t>(size);
  each(policy, n, [=] NL_HD(int64_t i) { key[i] = ordered_key(samples.score[i]), position[i] = i; });
  char* mark = arena.mark();
  thrust::stable_sort_by_key(policy, key, key + n, position);
  arena.release(mark);
  each(policy, n, [=] NL_HD(int64_t i) { group[i] = samples.group_of(position[i]); });
  if (samples.group != nullptr || samples.weight != nullptr) {
    thrust::stable_sort_by_key(policy, group, group + n, position);
    arena.release(mark);
    each(policy, n, [=] NL_HD(int64_t i) { key[i] = ordered_key(samples.score[position[i]]); });
  }
  uint8_t *group_head = arena.array<uint8_t>(size), *run_head = arena.array<uint8_t>(size);
  T *p = arena.array<T>(size), *q = arena.array<T>(size), *p_run = arena.array<T>(size), *q_run = arena.array<T>(size);
  T* share = arena.array<T>(size);
  int64_t* end = arena.array<int64_t>(static_cast<size_t>(groups));
  each(policy, n, [=] NL_HD(int64_t i) {
    group_head[i] = i == 0 || group[i] != group[i - 1];
    run_head[i] = group_head[i] || key[i] != key[i - 1];
    const T w = samples.weight == nullptr ? T(1) : static_cast<T>(samples.weight[position[i]]);
    const bool up = samples.positive[position[i]];
    p[i] = p_run[i] = up ? w : T(0);
    q[i] = q_run[i] = up ? T(0) : w;
  });
  const thrust::counting_iterator<int64_t> ids(0);
  thrust::upper_bound(policy, group, group + n, ids, ids + groups, end);
  char* sums = arena.mark();
  const auto run = [&](T* x, const uint8_t* head) {
    if (n > 0) running_sum(policy, x, head, n, arena);
    arena.release(sums);
  };
  run(p, group_head), run(q, group_head), run(p_run, run_head), run(q_run, run_head);
  each(policy, n, [=] NL_HD(int64_t i) {
    share[i] = 0;
    const bool last = i + 1 == n || run_head[i + 1];
    if (!last || group[i] == groups) return;
    const int64_t tail = end[group[i]] - 1;
    const T above = p[tail] - p[i], height = p_run[i], width = q_run[i];
    const double left = max_fpr * q[tail] - (q[tail] - q[i]);
    const double part = max_fpr >= 1 || left >= width ? 1.0 : left <= 0 ? 0.0 : left / width;
    share[i] = counts ? width * (2 * above + height) : static_cast<T>(part * width * (above + part * height / 2));
  });
  run(share, group_head);
  each(policy, groups, [=] NL_HD(int64_t g) {
    const int64_t tail = end[g] - 1;
    const bool any = tail >= 0 && group[tail] == g;
    const bool nan = any && key[tail] == kNotANumber<key_t>;
    out[3 * g] = nan ? (counts ? T(-1) : static_cast<T>(NAN)) : any ? share[tail] : T(0);
    out[3 * g + 1] = any ? p[tail] : T(0);
    out[3 * g + 2] = any ? q[tail] : T(0);
  });
}

// sums of x over the elements of every class, by a stable sort of ids, which are overwritten; NaN stays in its class
template <typename policy_t>
void sum_by_class(policy_t&& policy, Arena& arena, int64_t* id, double* x, int64_t n, int64_t classes, double* out) {
  char* mark = arena.mark();
  thrust::stable_sort_by_key(policy, id, id + n, x);
  arena.release(mark);
  uint8_t* head = arena.array<uint8_t>(static_cast<size_t>(n));
  int64_t* end = arena.array<int64_t>(static_cast<size_t>(classes));
  each(policy, n, [=] NL_HD(int64_t i) { head[i] = i == 0 || id[i] != id[i - 1]; });
  if (n > 0) running_sum(policy, x, head, n, arena);
  const thrust::counting_iterator<int64_t> ids(0);
  thrust::upper_bound(policy, id, id + n, ids, ids + classes, end);
  each(policy, classes, [=] NL_HD(int64_t c) { out[c] = end[c] > 0 && id[end[c] - 1] == c ? x[end[c] - 1] : 0.0; });
  arena.release(mark);
}

// running sum p before the first key that is not below k, or that is above it
template <typename key_t>
NL_HD double mass_before(const key_t* key, const double* p, int64_t n, key_t k, bool with_equal) {
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (key[middle] < k || (with_equal && key[middle] == k)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low > 0 ? p[low - 1] : 0.0;
}

// sums [C, C]: U of class c against every class by the scores of column c; mass [C]. An element of class j adds w (W_c - what of class c
// is below it, and half of what is equal).
template <typename policy_t, typename scalar_t>
void roc_auc_classes(policy_t&& policy, Arena& arena, ClassSamples<scalar_t> samples, double* sums, double* mass) {
  using key_t = decltype(ordered_key(scalar_t{}));
  const int64_t n = samples.count, classes = samples.classes;
  const size_t size = static_cast<size_t>(n);
  key_t* key = arena.array<key_t>(size);
  int64_t *position = arena.array<int64_t>(size), *id = arena.array<int64_t>(size);
  double *p = arena.array<double>(size), *part = arena.array<double>(size);
  uint8_t* head = arena.array<uint8_t>(size);
  double* numbers = arena.array<double>(1);  // what of class c has a score that is a number
  each(policy, n, [=] NL_HD(int64_t i) { id[i] = samples.class_of(i), part[i] = samples.weight_of(i); });
  sum_by_class(policy, arena, id, part, n, classes, mass);
  for (int64_t c = 0; c < classes; ++c) {
    char* mark = arena.mark();
    each(policy, n, [=] NL_HD(int64_t i) {
      key[i] = ordered_key(samples.score[i * samples.row + c * samples.column]);
      position[i] = i;
    });
    thrust::stable_sort_by_key(policy, key, key + n, position);
    arena.release(mark);
    each(policy, n, [=] NL_HD(int64_t i) {
      id[i] = samples.class_of(position[i]);
      p[i] = id[i] == c ? samples.weight_of(position[i]) : 0.0;
      head[i] = i == 0;
    });
    if (n > 0) running_sum(policy, p, head, n, arena);
    arena.release(mark);
    // one search a pass: two in one take more registers than sm_80 has for the block
    each(policy, n > 0 ? 1 : 0, [=] NL_HD(int64_t) { *numbers = mass_before(key, p, n, kNotANumber<key_t>, false); });
    each(policy, n, [=] NL_HD(int64_t i) { part[i] = mass_before(key, p, n, key[i], false); });
    each(policy, n, [=] NL_HD(int64_t i) { part[i] += mass_before(key, p, n, key[i], true); });
    each(policy, n, [=] NL_HD(int64_t i) {
      const bool nan = key[i] == kNotANumber<key_t> || p[n - 1] > *numbers;
      part[i] = nan ? static_cast<double>(NAN) : samples.weight_of(position[i]) * (p[n - 1] - part[i] / 2);
    });
    sum_by_class(policy, arena, id, part, n, classes, sums + c * classes);
  }
}

}  // namespace nearlinear::algo

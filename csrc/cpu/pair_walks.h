// walks over the two sorted labels of a group (functors/pair_scan.h): block by block, or every pair.
//
// A block is a stretch of the merged elements. Its sources are gathered first, and what the blocks before and after it hold is combined;
// then its elements are merged once, and the states go up and down the merged places while they lie in the first cache.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../functors/pair_scan.h"
#include "pair_lines.h"

namespace nearlinear {

// Pairs of an element of `lower` before one of `upper`: lower is the source on the way up, upper on the way down.
template <typename state_t, typename scalar_t>
struct Walk {
  Line<scalar_t> lower, upper;
  const double *value, *potential;  // factors; null: not wanted
  double rate;

  NL_INLINE bool tie_leads(int64_t i, int64_t j) const {
    return state_t::kOrdered && lower.element.record[i].index < upper.element.record[j].index;
  }
  NL_INLINE bool lower_first(int64_t i, int64_t j) const {
    const double a = lower.place(i), b = upper.place(j);
    return a < b || (a == b && tie_leads(i, j));
  }
  int64_t size() const { return lower.element.size + upper.element.size; }
};

// how many of lower are among the first `rank` of the merged elements, at least `low` and at most `high`
template <typename walk_t>
int64_t lower_before(const walk_t& walk, int64_t rank, int64_t low, int64_t high) {
  low = std::max(low, rank - walk.upper.element.size), high = std::min({high, rank, walk.lower.element.size});
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (walk.lower_first(middle, rank - middle - 1)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// how many of lower are before each block, and in all
template <typename walk_t>
std::vector<int64_t> cuts_of(const walk_t& walk) {
  const int64_t blocks = (walk.size() + kBlock - 1) / kBlock;
  std::vector<int64_t> cut(static_cast<size_t>(blocks) + 1);
  parallel_for(0, (blocks + kBlocks - 1) / kBlocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first * kBlocks; b < std::min(blocks, last * kBlocks); ++b) {
      const bool known = b > first * kBlocks;
      cut[b] = known ? lower_before(walk, b * kBlock, cut[b - 1], cut[b - 1] + kBlock) : lower_before(walk, b * kBlock, 0, b * kBlock);
    }
  });
  cut[blocks] = walk.lower.element.size;
  return cut;
}

// What a walk reads of the states at the elements of a block: of few terms the terms themselves, from which vectors make the sums; of
// many the sums.
template <typename state_t>
struct Trail {
  const double *value, *potential;
  double first[kBlock], second[kBlock];

  NL_INLINE void note(int64_t m, const state_t& state) {
    if (value != nullptr) first[m] = state.query(value);
    if (potential != nullptr) second[m] = state.query(potential);
  }
  NL_INLINE const double* values(int64_t) { return first; }
  NL_INLINE const double* potentials(int64_t) { return second; }
};

template <int kDegree>
struct Trail<PowerState<kDegree>> {
  const double *value, *potential;
  double t[kDegree + 1][kBlock], first[kBlock], second[kBlock];

  NL_INLINE void note(int64_t m, const PowerState<kDegree>& state) {
    NL_UNROLL
    for (int k = 0; k <= kDegree; ++k) t[k][m] = state.t[k];
  }
  NL_INLINE const double* values(int64_t n) { return sum(value, n, first); }
  NL_INLINE const double* potentials(int64_t n) { return sum(potential, n, second); }
  NL_INLINE const double* sum(const double* factor, int64_t n, double* __restrict out) const {
    std::fill_n(out, n, 0.0);
    for (int k = 0; k <= kDegree; ++k) {
      if (factor[k] == 0) continue;  // not 0 times an overflow
#pragma omp simd
      for (int64_t m = 0; m < n; ++m) out[m] += factor[k] * t[k][m];
    }
    return out;
  }
};

// Sums of the sources [begin, end), fewer than a block and at least one, at the last of their places on the way up or on the way down.
template <typename state_t, typename scalar_t>
NL_CLONES void gather(const Line<scalar_t>& line, bool up, int64_t begin, int64_t end, double rate, Carry<state_t>* out) {
  int64_t place[kBlock];
  double weight[kBlock], gap[kBlock], decay[kBlock];
  const int64_t n = end - begin;
  line.load(begin, n, place, weight);
  const double at = line.place(up ? end - 1 : begin);
#pragma omp simd
  for (int64_t m = 0; m < n; ++m) {
    const double from = placed(place[m]);
    gap[m] = up ? gap_of(from, at) : gap_of(at, from);
    decay[m] = state_t::decay(gap[m], rate);
  }
  state_t even, odd;
  int64_t m = 0;
  for (; m + 1 < n; m += 2) even.gather(gap[m], decay[m], weight[m]), odd.gather(gap[m + 1], decay[m + 1], weight[m + 1]);
  if (m < n) even.gather(gap[m], decay[m], weight[m]);
  even.add(odd);
  out->state = even, out->place = up ? at : -at;
}

// the merged elements of a block
struct Merged {
  int64_t size, lowers, uppers;
  int64_t place[kBlock];
  int32_t before[kBlock + 1];  // of upper before an element: the same as before the next one if it is of lower
  double gap[kBlock + 1], decay[kBlock + 1];
  double lower_weight[kBlock + 1], upper_weight[kBlock + 1];
};

// Merges the elements of lower and of upper from either end: two chains of dependent steps, half as long. No branch depends on the
// order.
template <typename state_t, typename scalar_t>
NL_INLINE void merge(const Walk<state_t, scalar_t>& walk, int64_t first_lower, int64_t first_upper, Merged& out) {
  constexpr int64_t least = std::numeric_limits<int64_t>::min(), most = std::numeric_limits<int64_t>::max();
  int64_t lower_place[kBlock + 2], upper_place[kBlock + 2];
  double lower_weight[kBlock + 1], upper_weight[kBlock + 1];
  int64_t *const a = lower_place + 1, *const b = upper_place + 1;
  walk.lower.load(first_lower, out.lowers, a, lower_weight + 1);
  walk.upper.load(first_upper, out.uppers, b, upper_weight + 1);
  a[-1] = b[-1] = least, a[out.lowers] = b[out.uppers] = most;
  lower_weight[0] = upper_weight[0] = 0;
  const auto is_first = [&](int64_t i, int64_t j) {
    return a[i] < b[j] || (state_t::kOrdered && a[i] == b[j] && walk.tie_leads(first_lower + i, first_upper + j));
  };
  int64_t i = 0, j = 0, k = out.lowers - 1, l = out.uppers - 1;
  const auto up = [&](int64_t m) {
    const bool first = is_first(i, j);
    out.place[m] = a[i] < b[j] ? a[i] : b[j];
    out.before[m] = static_cast<int32_t>(j);
    i += first, j += !first;
  };
  const auto down = [&](int64_t m) {
    const bool first = is_first(k, l);
    out.place[m] = a[k] < b[l] ? b[l] : a[k];
    out.before[m] = static_cast<int32_t>(l + !first);
    k -= !first, l -= first;
  };
  const int64_t half = out.size / 2;
  for (int64_t m = 0; m < half; ++m) up(m), down(out.size - 1 - m);
  if (out.size % 2 == 1) up(half);
  out.before[out.size] = static_cast<int32_t>(out.uppers);
  for (int64_t m = 0; m < out.size; ++m) {
    const int64_t j = out.before[m], upper = out.before[m + 1] - j;
    out.lower_weight[m] = lower_weight[(m - j + 1) & (upper - 1)];
    out.upper_weight[m] = upper_weight[(j + 1) & -upper];
  }
}

template <typename state_t, typename scalar_t>
NL_CLONES double scan_block(const Walk<state_t, scalar_t>& walk, int64_t begin, int64_t i, int64_t i_end, const Carry<state_t>& below,
                            const Carry<state_t>& above) {
  Merged x;
  x.size = std::min(kBlock, walk.size() - begin), x.lowers = i_end - i, x.uppers = x.size - x.lowers;
  const int64_t n = x.size;
  merge(walk, i, begin - i, x);
  x.gap[0] = gap_of(below.place, placed(x.place[0])), x.gap[n] = gap_of(above.place, -placed(x.place[n - 1]));
#pragma omp simd
  for (int64_t m = 1; m < n; ++m) x.gap[m] = gap_of(placed(x.place[m - 1]), placed(x.place[m]));
#pragma omp simd
  for (int64_t m = 0; m <= n; ++m) x.decay[m] = state_t::decay(x.gap[m], walk.rate);
  Trail<state_t> up, down;
  up.value = walk.value, up.potential = down.potential = walk.potential, down.value = nullptr;
  state_t low = below.state, high = above.state;
  if (walk.potential == nullptr) {
    for (int64_t m = 0; m < n; ++m) {
      low.shift(x.gap[m], x.decay[m]), low.insert(x.lower_weight[m]);
      up.note(m, low);
    }
  } else {
    for (int64_t m = 0; m < n; ++m) {
      low.shift(x.gap[m], x.decay[m]), low.insert(x.lower_weight[m]);
      up.note(m, low);
      const int64_t k = n - 1 - m;
      high.shift(x.gap[k + 1], x.decay[k + 1]), high.insert(x.upper_weight[k]);
      down.note(k, high);
    }
  }
  double total = 0;
  if (walk.value != nullptr) {
    const double* value = up.values(n);
#pragma omp simd reduction(+ : total)
    for (int64_t m = 0; m < n; ++m) total += x.upper_weight[m] != 0 ? x.upper_weight[m] * value[m] : 0.0;
  }
  if (walk.potential == nullptr) return total;
  const double *const up_found = up.potentials(n), *const down_found = down.potentials(n);
  const int64_t j = begin - i;
  double* const p = walk.lower.element.potential + i;
  const int64_t apart = walk.upper.element.potential + j - p;  // in one array
#pragma omp simd
  for (int64_t m = 0; m < n; ++m) {
    const int64_t k = x.before[m], upper = x.before[m + 1] - k;
    x.place[m] = m - k + (-upper & (apart + 2 * k - m));
    x.gap[m] = upper ? up_found[m] : down_found[m];
  }
  for (int64_t m = 0; m < n; ++m) p[x.place[m]] += x.gap[m];
  return total;
}

template <typename state_t, typename scalar_t>
double scan(const Walk<state_t, scalar_t>& walk) {
  const std::vector<int64_t> cut = cuts_of(walk);
  const int64_t blocks = static_cast<int64_t>(cut.size()) - 1;
  std::vector<Carry<state_t>> below(cut.size()), above(cut.size());  // of the blocks before the block, and after it
  std::vector<double> total(cut.size());
  const bool both = walk.potential != nullptr;
  const auto upper_cut = [&](int64_t b) { return std::min(b * kBlock, walk.size()) - cut[b]; };
  const auto any_lower = [&](int64_t b) { return cut[b] < cut[b + 1]; };
  const auto any_upper = [&](int64_t b) { return both && upper_cut(b) < upper_cut(b + 1); };
  parallel_for(0, blocks - 1, kBlocks, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      if (any_lower(b)) gather(walk.lower, true, cut[b], cut[b + 1], walk.rate, &below[b + 1]);
      if (any_upper(b + 1)) gather(walk.upper, false, upper_cut(b + 1), upper_cut(b + 2), walk.rate, &above[b]);
    }
  });
  for (int64_t b = 0; b < blocks - 1; ++b) any_lower(b) ? below[b + 1].prepend(below[b], walk.rate) : void(below[b + 1] = below[b]);
  for (int64_t b = blocks - 1; b > 0; --b) any_upper(b) ? above[b - 1].prepend(above[b], walk.rate) : void(above[b - 1] = above[b]);
  parallel_for(0, blocks, kBlocks, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) total[b] = scan_block(walk, b * kBlock, cut[b], cut[b + 1], below[b], above[b]);
  });
  double sum = 0;
  for (const double part : total) sum += part;
  return sum;
}

// every pair by itself
template <typename state_t, typename scalar_t>
NL_CLONES double compare(const Walk<state_t, scalar_t>& given) {
  const Walk<state_t, scalar_t> walk = given;
  const Elements<scalar_t>&p = walk.lower.element, &q = walk.upper.element;
  double total = 0;
  for (int64_t j = 0; j < q.size; ++j) {
    double row = 0;  // a sum of sums: the rounding of a total of all pairs would grow with their number
    const double b = walk.upper.place(j), c = q.weight(j);
    for (int64_t i = 0; i < p.size && walk.lower_first(i, j); ++i) {
      const double gap = gap_of(walk.lower.place(i), b), decay = state_t::decay(gap, walk.rate), d = p.weight(i);
      state_t of_lower, of_upper;
      of_lower.gather(gap, decay, d);
      if (walk.value != nullptr && c != 0) row += c * of_lower.query(walk.value);
      if (walk.potential == nullptr) continue;
      of_upper.gather(gap, decay, c);
      q.potential[j] += of_lower.query(walk.potential), p.potential[i] += of_upper.query(walk.potential);
    }
    total += row;
  }
  return total;
}

}  // namespace nearlinear

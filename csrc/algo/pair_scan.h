// sums over pairs after a sort, by Thrust: the GPU form of csrc/cpu/pair_scan.cpp, which its tests run on the host.
//
// Steps, all on one stream, none waits for a result: keys in the order of the scores, stably sorted with their positions, and once more by
// label and group; for every knot and direction a walk; what pairs at an infinite distance give; the rules of NaN. A walk merges the
// elements of both labels by binary searches into tiles, one thread each: the state of a tile's sources, a running combination of these,
// the tile again with what it begins with. Everything has a fixed order, so that float64 gives the same bits each time.
#pragma once
#include <thrust/binary_search.h>
#include <thrust/sort.h>

#include <cmath>
#include <limits>

#include "pair_scan_launch.h"
#include "tiles.h"

namespace nearlinear::algo {

// A segment is a zone of a group: scores of -infinity, finite ones, +infinity, NaN. Only elements of one segment meet in a walk.
constexpr int64_t kZones = 4;
constexpr int64_t kNoSegment = std::numeric_limits<int64_t>::min();

// sorted by label, group and score: *negatives of them, then the positives
struct SortedPairs {
  int64_t *position, *segment;
  double *place, *coefficient;  // the score; 0 if it is not finite
  double *potential, *share;    // sums of an element, null if not wanted
  int64_t* negatives;
  int64_t count;
};

// the elements of one label in the direction of a walk: segments and places ascend, and so do the positions of ties
struct PairLine {
  const int64_t *position, *segment;
  const double *place, *coefficient;
  int64_t size, first, step;
  double offset;

  NL_HD int64_t at(int64_t i) const { return first + i * step; }
  NL_HD double place_of(int64_t i) const { return static_cast<double>(step) * place[at(i)] + offset; }
};

template <typename state_t>
struct PairWalk {
  SortedPairs sorted;
  PairStep step;
  double rate;
  bool ascending;

  NL_HD PairLine line(bool positive) const {
    const int64_t negatives = *sorted.negatives, size = positive ? sorted.count - negatives : negatives;
    const int64_t first = (positive ? negatives : 0) + (ascending ? 0 : size - 1), direction = ascending ? 1 : -1;
    const double offset = positive ? 0.0 : static_cast<double>(direction) * step.knot;
    return {sorted.position, sorted.segment, sorted.place, sorted.coefficient, size, first, direction, offset};
  }
  // low: positives below negatives, so that they are the sources on the way up
  NL_HD PairLine sources() const { return line(step.low == ascending); }
  NL_HD PairLine queries() const { return line(step.low != ascending); }

  NL_HD static bool source_first(const PairLine& source, int64_t s, const PairLine& query, int64_t q) {
    const int64_t i = source.at(s), j = query.at(q), g = source.step * source.segment[i], h = query.step * query.segment[j];
    if (g != h) return g < h;
    const double a = source.place_of(s), b = query.place_of(q);
    return a < b || (state_t::kOrdered && a == b && source.step * source.position[i] < query.step * query.position[j]);
  }
  NL_HD void answer(const state_t& state, int64_t i) const {
    if (sorted.potential != nullptr) sorted.potential[i] += state.query(step.potential);
    if (sorted.share == nullptr || !ascending) return;
    const double c = sorted.coefficient[i];
    if (c != 0) sorted.share[i] += c * state.query(step.value);
  }
};

// the state of a stretch of sources, of those in its last segment
template <typename state_t>
struct Stretch {
  Carry<state_t> carry;
  int64_t segment = kNoSegment;

  NL_HD void insert(const PairLine& source, int64_t s, double rate) {
    const int64_t i = source.at(s);
    if (source.segment[i] != segment) *this = {Carry<state_t>{}, source.segment[i]};
    carry.insert(source.place_of(s), source.coefficient[i], rate);
  }
  NL_HD void prepend(const Stretch& before, double rate) {
    if (segment == kNoSegment) {
      *this = before;
    } else if (segment == before.segment) {
      carry.prepend(before.carry, rate);
    }
  }
};

// how many sources are among the first `rank` of the merged elements
template <typename state_t>
NL_HD int64_t sources_before(const PairWalk<state_t>& walk, int64_t rank) {
  const PairLine source = walk.sources(), query = walk.queries();
  int64_t low = rank > query.size ? rank - query.size : 0, high = rank < source.size ? rank : source.size;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (walk.source_first(source, middle, query, rank - middle - 1)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// every stretch after all those before it, in place
template <typename policy_t, typename state_t>
void running_states(policy_t&& policy, Stretch<state_t>* x, int64_t n, double rate, Arena& arena) {
  const int64_t tiles = tiles_of(n);
  if (tiles == 0) return;
  auto* last = arena.array<Stretch<state_t>>(static_cast<size_t>(tiles));
  each(policy, tiles, [=] NL_HD(int64_t t) {
    Stretch<state_t> sum;
    for (int64_t i = t * kTile; i < n && i < (t + 1) * kTile; ++i) {
      Stretch<state_t> next = x[i];
      next.prepend(sum, rate);
      x[i] = sum = next;
    }
    last[t] = sum;
  });
  if (tiles == 1) return;
  running_states(policy, last, tiles, rate, arena);
  each(policy, n - kTile, [=] NL_HD(int64_t i) { x[i + kTile].prepend(last[i / kTile], rate); });
}

template <typename state_t, typename policy_t>
void scan_walk(policy_t&& policy, Arena& arena, const PairWalk<state_t> walk) {
  const int64_t n = walk.sorted.count, tiles = tiles_of(n);
  char* mark = arena.mark();
  int64_t* begin = arena.array<int64_t>(static_cast<size_t>(tiles) + 1);
  auto* state = arena.array<Stretch<state_t>>(static_cast<size_t>(tiles));
  each(policy, tiles + 1, [=] NL_HD(int64_t t) { begin[t] = sources_before(walk, t * kTile < n ? t * kTile : n); });
  each(policy, tiles, [=] NL_HD(int64_t t) {
    const PairLine source = walk.sources();
    Stretch<state_t> stretch;
    for (int64_t s = begin[t]; s < begin[t + 1]; ++s) stretch.insert(source, s, walk.rate);
    state[t] = stretch;
  });
  running_states(policy, state, tiles, walk.rate, arena);
  each(policy, tiles, [=] NL_HD(int64_t t) {
    const PairLine source = walk.sources(), query = walk.queries();
    Stretch<state_t> stretch;
    if (t > 0) stretch = state[t - 1];
    const int64_t end = (t + 1) * kTile < n ? (t + 1) * kTile : n;
    int64_t s = begin[t];
    for (int64_t q = t * kTile - s; q < end - begin[t + 1]; ++q) {
      for (; s < begin[t + 1] && walk.source_first(source, s, query, q); ++s) stretch.insert(source, s, walk.rate);
      const int64_t i = query.at(q);
      if (query.segment[i] != stretch.segment) continue;
      stretch.carry.move(query.place_of(q), walk.rate);
      walk.answer(stretch.carry.state, i);
    }
  });
  arena.release(mark);
}

// every pair by itself, one thread per query
template <typename state_t, typename policy_t>
void compare_walk(policy_t&& policy, const PairWalk<state_t> walk) {
  each(policy, walk.sorted.count, [=] NL_HD(int64_t q) {
    const PairLine source = walk.sources(), query = walk.queries();
    if (q >= query.size) return;
    const int64_t i = query.at(q), segment = query.segment[i];
    int64_t low = 0, high = source.size;  // the first source of the segment
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (source.step * source.segment[source.at(middle)] < source.step * segment) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    for (; low < source.size && walk.source_first(source, low, query, q); ++low) {
      Carry<state_t> one;
      one.insert(source.place_of(low), source.coefficient[source.at(low)], walk.rate);
      one.move(query.place_of(q), walk.rate);
      walk.answer(one.state, i);
    }
  });
}

// sum of c, and number of c that are not 0, of every segment and label
struct SegmentSums {
  const double *mass, *number;
  int64_t segments;

  NL_HD double mass_of(bool positive, int64_t segment) const { return mass[(positive ? segments : 0) + segment]; }
  NL_HD double number_of(bool positive, int64_t segment) const { return number[(positive ? segments : 0) + segment]; }
  NL_HD bool any(bool positive, int64_t group) const {
    double sum = 0;
    for (int64_t z = 0; z < kZones; ++z) sum += number_of(positive, kZones * group + z);
    return sum > 0;
  }
  NL_HD bool poisoned(int64_t group) const {
    return number_of(false, kZones * group + kZones - 1) + number_of(true, kZones * group + kZones - 1) > 0;
  }
};

// k of a pair of zones, without what walks add
NL_HD inline double far_value(const PairLimits& k, int64_t positive_zone, int64_t negative_zone) {
  return positive_zone == negative_zone ? k.constant : positive_zone < negative_zone ? k.low : k.high;
}

// sums of x over the elements of every line, which run together; heads begin the lines
template <typename policy_t, typename F>
void sums_at_ends(policy_t&& policy, Arena& arena, const SortedPairs& sorted, int64_t* line, uint8_t* head, double* x, F line_of,
                  int64_t lines, double* out) {
  const int64_t n = sorted.count;
  char* mark = arena.mark();
  each(policy, n, [=] NL_HD(int64_t i) { line[i] = line_of(i); });
  each(policy, n, [=] NL_HD(int64_t i) { head[i] = i == 0 || line[i] != line[i - 1]; });
  if (n > 0) running_sum(policy, x, head, n, arena);
  each(policy, lines, [=] NL_HD(int64_t k) { out[k] = 0; });
  each(policy, n, [=] NL_HD(int64_t i) {
    if (i + 1 == n || head[i + 1]) out[line[i]] = x[i];
  });
  arena.release(mark);
}

template <typename state_t, typename policy_t>
void walks(policy_t&& policy, Arena& arena, const PairPlan& plan, bool direct, const SortedPairs& sorted) {
  for (const PairStep& step : plan.steps) {
    for (const bool ascending : {true, false}) {
      if (!ascending && sorted.potential == nullptr) continue;
      const PairWalk<state_t> walk{sorted, step, plan.rate, ascending};
      if (direct) {
        compare_walk<state_t>(policy, walk);
      } else {
        scan_walk<state_t>(policy, arena, walk);
      }
    }
  }
}

// positions of the samples by label, then group, then score, and the line (label and group) of each in that order
template <typename policy_t, typename scalar_t>
void sort_lines(policy_t&& policy, Arena& arena, PairSamples<scalar_t> samples, int64_t* position, int64_t* line) {
  using key_t = decltype(ordered_key(scalar_t{}));
  const int64_t n = samples.count;
  char* mark = arena.mark();
  key_t* key = arena.array<key_t>(static_cast<size_t>(n));
  each(policy, n, [=] NL_HD(int64_t i) { key[i] = ordered_key(samples.score[i]), position[i] = i; });
  thrust::stable_sort_by_key(policy, key, key + n, position);
  arena.release(mark);
  each(policy, n, [=] NL_HD(int64_t i) { line[i] = samples.line_of(position[i]); });
  thrust::stable_sort_by_key(policy, line, line + n, position);
  arena.release(mark);
}

// of the pairs of which one is infinite, alone or against the other infinity; the pairs at finite distances are the walks'
template <typename policy_t>
void far_potential(policy_t&& policy, const SortedPairs& sorted, const SegmentSums& sums, PairLimits slope, double* sum, double* share) {
  const int64_t *segment = sorted.segment, *negatives = sorted.negatives;
  each(policy, sorted.count, [=] NL_HD(int64_t i) {
    const bool positive = i >= *negatives;
    const int64_t group = segment[i] / kZones, zone = segment[i] % kZones;
    sum[i] = share[i] = 0;
    for (int64_t z = 0; z + 1 < kZones; ++z) {
      const double k = positive ? far_value(slope, zone, z) : far_value(slope, z, zone), m = sums.mass_of(!positive, kZones * group + z);
      if (k != 0 && m != 0) sum[i] += k * m;
    }
  });
}

template <typename policy_t, typename scalar_t>
void write_potential(policy_t&& policy, const SortedPairs& sorted, const SegmentSums& sums, int64_t groups, const double* sum,
                     scalar_t* potential) {
  const int64_t *segment = sorted.segment, *negatives = sorted.negatives, *position = sorted.position;
  each(policy, sorted.count, [=] NL_HD(int64_t i) {
    const bool positive = i >= *negatives;
    const int64_t group = segment[i] / kZones;
    const bool alone = group == groups || !sums.any(!positive, group);
    const bool nan = segment[i] % kZones == kZones - 1 || sums.poisoned(group);
    potential[position[i]] = alone ? scalar_t(0) : nan ? static_cast<scalar_t>(NAN) : static_cast<scalar_t>(sum[i]);
  });
}

// lines: the walks' shares of each line
template <typename policy_t>
void write_total(policy_t&& policy, const SegmentSums& sums, PairLimits value, int64_t groups, const double* lines, double* total) {
  each(policy, groups, [=] NL_HD(int64_t g) {
    double found = lines[g] + lines[groups + 1 + g];
    for (int64_t a = 0; a + 1 < kZones; ++a) {
      for (int64_t b = 0; b + 1 < kZones; ++b) {
        const double k = far_value(value, a, b), p = sums.mass_of(true, kZones * g + a), q = sums.mass_of(false, kZones * g + b);
        if (k != 0 && p != 0 && q != 0) found += k * p * q;
      }
    }
    const bool pairs = sums.any(true, g) && sums.any(false, g);
    total[g] = !pairs ? 0.0 : sums.poisoned(g) ? static_cast<double>(NAN) : found;
  });
}

template <typename policy_t, typename scalar_t>
void pair_scan(policy_t&& policy, Arena& arena, const PairPlan& plan, bool direct, PairSamples<scalar_t> samples, double* total,
               scalar_t* potential) {
  const int64_t n = samples.count, groups = samples.groups, segments = kZones * (groups + 1);
  const size_t size = static_cast<size_t>(n);
  int64_t *position = arena.array<int64_t>(size), *line = arena.array<int64_t>(size), *negatives = arena.array<int64_t>(1);
  sort_lines(policy, arena, samples, position, line);
  int64_t* segment = arena.array<int64_t>(size);
  double *place = arena.array<double>(size), *coefficient = arena.array<double>(size), *sum = arena.array<double>(size);
  double* share = arena.array<double>(size);
  uint8_t* head = arena.array<uint8_t>(size);
  double *mass = arena.array<double>(static_cast<size_t>(2 * segments)), *number = arena.array<double>(static_cast<size_t>(2 * segments));
  each(policy, 1, [=] NL_HD(int64_t) { *negatives = 0; });
  each(policy, n, [=] NL_HD(int64_t i) {
    const int64_t at = position[i];
    const bool positive = line[i] > groups;
    const double x = static_cast<double>(samples.score[at]);
    const bool finite = x - x == 0;
    segment[i] = kZones * (line[i] - (positive ? groups + 1 : 0)) + (finite ? 1 : x < 0 ? 0 : x > 0 ? 2 : 3);
    place[i] = finite ? x : 0.0;
    coefficient[i] = sum[i] = samples.coefficient == nullptr ? 1.0 : static_cast<double>(samples.coefficient[at]);
    share[i] = coefficient[i] != 0 ? 1.0 : 0.0;
    if (!positive && (i + 1 == n || line[i + 1] > groups)) *negatives = i + 1;
  });
  const SortedPairs sorted{position,  segment, place, coefficient, potential == nullptr ? nullptr : sum, total == nullptr ? nullptr : share,
                           negatives, n};
  const auto segment_line = [=] NL_HD(int64_t i) { return segment[i] + (i < *negatives ? 0 : segments); };
  sums_at_ends(policy, arena, sorted, line, head, sum, segment_line, 2 * segments, mass);
  sums_at_ends(policy, arena, sorted, line, head, share, segment_line, 2 * segments, number);
  const SegmentSums sums{mass, number, segments};
  far_potential(policy, sorted, sums, plan.potential, sum, share);
  dispatch_state(plan, [&](auto state) { walks<decltype(state)>(policy, arena, plan, direct, sorted); });
  if (potential != nullptr) write_potential(policy, sorted, sums, groups, sum, potential);
  if (total == nullptr) return;
  const auto group_line = [=] NL_HD(int64_t i) { return segment[i] / kZones + (i < *negatives ? 0 : groups + 1); };
  double* lines = arena.array<double>(static_cast<size_t>(2 * (groups + 1)));
  sums_at_ends(policy, arena, sorted, line, head, share, group_line, 2 * (groups + 1), lines);
  write_total(policy, sums, plan.value, groups, lines, total);
}

}  // namespace nearlinear::algo

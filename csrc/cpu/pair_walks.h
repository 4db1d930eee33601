// walks over the two sorted labels of a group (functors/pair_scan.h): from below and from above, all pieces of a long one, or every pair.
#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <vector>

#include "../common/simd.h"
#include "../functors/pair_scan.h"
#include "sorted_segments.h"

namespace nearlinear {

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

}  // namespace nearlinear

// the sorted elements of a group's label, their places on the line of the scores.
#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "../common/simd.h"
#include "../functors/ordered_key.h"
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

constexpr int64_t kBlock = 512, kBlocks = kPiece / kBlock;  // elements of a block, blocks of a piece

// elements of a label, moved by a knot
template <typename scalar_t>
struct Line {
  Elements<scalar_t> element;
  double offset;

  NL_INLINE double place(int64_t i) const { return element.score(i) + offset + 0.0; }  // -0.0 becomes 0.0
  // ordered places and weights of a block at most; each loop is simple enough for vectors
  NL_INLINE void load(int64_t begin, int64_t n, int64_t* __restrict to, double* __restrict weight) const {
    typename Elements<scalar_t>::key_t key[kBlock];
    for (int64_t i = 0; i < n; ++i) key[i] = element.record[begin + i].key;
    const double shift = offset;
    if (element.flat) {
      std::fill_n(to, n, ordered(shift + 0.0));
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) to[i] = ordered(static_cast<double>(number_of<scalar_t>(key[i])) + shift + 0.0);
    }
    if (element.coefficient == nullptr) {
      std::fill_n(weight, n, 1.0);
    } else {
      const scalar_t* c = element.coefficient + begin;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) weight[i] = static_cast<double>(c[i]);
    }
  }
};

}  // namespace nearlinear

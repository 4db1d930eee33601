// what csrc/cuda/pair_scan.cu and csrc/algo/pair_scan.cu meet at: plain pointers and sizes, neither torch nor CCCL.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../functors/pair_scan.h"

namespace nearlinear::algo {

template <typename scalar_t>
struct PairSamples {
  const scalar_t* score;
  const bool* positive;
  const scalar_t* coefficient;  // null: 1
  const int64_t* group;         // null: 0; ids outside [0, groups) count nowhere
  int64_t count, groups;

  // lines of elements: the negatives of every group and of no group, then the positives
  NL_HD int64_t line_of(int64_t i) const {
    const int64_t g = group == nullptr ? 0 : group[i];
    return (positive[i] ? groups + 1 : 0) + (g < 0 || g >= groups ? groups : g);
  }
};

// Bytes of the arena: a key, a position, a segment, a place, a coefficient, two sums and a head per element, the states of the tiles, mass
// and number of every segment of two labels. The copies while keys are sorted use the place of what comes later.
template <typename key_t>
size_t pair_workspace(int64_t n, int64_t groups) {
  const size_t fixed = (size_t{4} << 20) + 1024 * 256, tile = sizeof(Carry<LogisticState<24>>) + 3 * sizeof(int64_t);
  const size_t element = sizeof(key_t) + 7 * sizeof(int64_t) + 1;
  return static_cast<size_t>(n) * element + static_cast<size_t>(n / 127 + 1024) * tile +
         static_cast<size_t>(groups + 1) * 18 * sizeof(double) + fixed;
}

// memory: pair_workspace<key_t>(count, groups) bytes on the device of the samples; null total or potential: not wanted
template <typename scalar_t>
void launch_pair_scan(const PairPlan& plan, bool direct, PairSamples<scalar_t> samples, double* total, scalar_t* potential, char* memory,
                      size_t bytes, void* stream);

}  // namespace nearlinear::algo

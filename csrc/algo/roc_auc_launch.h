// what csrc/cuda/roc_auc.cu and csrc/algo/roc_auc.cu meet at: plain pointers and sizes, neither torch nor CCCL.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../functors/ordered_key.h"

namespace nearlinear::algo {

// group ids outside [0, groups), and elements of weight 0, come last and count nowhere
template <typename scalar_t>
struct Samples {
  const scalar_t* score;
  const bool* positive;
  const double* weight;  // null: 1
  const int64_t* group;  // null: 0
  int64_t count, groups;

  NL_HD int64_t group_of(int64_t i) const {
    if (weight != nullptr && weight[i] == 0) return groups;
    const int64_t g = group == nullptr ? 0 : group[i];
    return g < 0 || g >= groups ? groups : g;
  }
};

// columns of scores; a class outside [0, classes) or a weight of 0 counts nowhere
template <typename scalar_t>
struct ClassSamples {
  const scalar_t* score;
  int64_t row, column;  // strides of score
  const int64_t* target;
  const double* weight;  // null: 1
  int64_t count, classes;

  NL_HD double weight_of(int64_t i) const { return weight == nullptr ? 1.0 : weight[i]; }
  NL_HD int64_t class_of(int64_t i) const {
    const int64_t c = target[i];
    return c < 0 || c >= classes || weight_of(i) == 0 ? classes : c;
  }
};

// Bytes of the arena: a key, a position and a group id; two heads, four sums and the share of U; 1 for what running_sum keeps of each tile.
// The copies of keys and positions while they are sorted, 16 bytes, use the place of the sums.
template <typename key_t, typename T>
size_t workspace(int64_t n, int64_t groups) {
  const size_t fixed = (size_t{4} << 20) + 1024 * 256;  // histograms of the radix sort, roundings to 256 bytes
  const size_t element = sizeof(key_t) + 2 * sizeof(int64_t) + 2 + 5 * sizeof(T) + 1;
  return static_cast<size_t>(n) * element + static_cast<size_t>(groups) * sizeof(int64_t) + fixed;
}

// memory: workspace<key_t, T>(count, groups or classes) bytes on the device of the samples
template <typename T, typename scalar_t>
void launch_roc_auc(Samples<scalar_t> samples, double max_fpr, T* out, char* memory, size_t bytes, void* stream);

template <typename scalar_t>
void launch_roc_auc_classes(ClassSamples<scalar_t> samples, double* sums, double* mass, char* memory, size_t bytes, void* stream);

}  // namespace nearlinear::algo

// work by tiles of a fixed size, whose results have the same bits each time.
#pragma once
#include <thrust/for_each.h>
#include <thrust/iterator/counting_iterator.h>

#include <cstdint>

#include "../common/exec.h"
#include "../functors/ordered_key.h"

namespace nearlinear::algo {

template <typename policy_t, typename F>
void each(policy_t&& policy, int64_t n, F f) {
  thrust::for_each_n(policy, thrust::counting_iterator<int64_t>(0), n, f);
}

constexpr int64_t kTile = 128;
inline int64_t tiles_of(int64_t n) { return (n + kTile - 1) / kTile; }

// running sums of x in place; x begins anew where head is set
template <typename policy_t, typename T>
void running_sum(policy_t&& policy, T* x, const uint8_t* head, int64_t n, Arena& arena) {
  const int64_t tiles = tiles_of(n);
  T* total = arena.array<T>(static_cast<size_t>(tiles));
  uint8_t* broken = arena.array<uint8_t>(static_cast<size_t>(tiles));
  each(policy, tiles, [=] NL_HD(int64_t t) {
    T sum = 0;
    uint8_t any = 0;
    for (int64_t i = t * kTile; i < n && i < (t + 1) * kTile; ++i) {
      sum = head[i] ? x[i] : sum + x[i];
      any |= head[i];
      x[i] = sum;
    }
    total[t] = sum, broken[t] = any;
  });
  if (tiles == 1) return;
  running_sum(policy, total, broken, tiles, arena);
  each(policy, tiles - 1, [=] NL_HD(int64_t t) {
    const T carry = total[t];
    for (int64_t i = (t + 1) * kTile; i < n && i < (t + 2) * kTile && !head[i]; ++i) x[i] += carry;
  });
}

}  // namespace nearlinear::algo

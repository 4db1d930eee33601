// the first half of Betti matching on a GPU: pictures become forests of basins and a short sorted list of edges between them.
//
// Most merges of a sweep over edges join a single cell to what is beside it and give no bar. They are read off the picture, without a sort:
// a pixel hooks on the smallest of its edges if that has the pixel's value, a top cell on the largest of its edges, which always has the
// top cell's value. A pixel's hook is in the minimum spanning tree and a top cell's in the maximum one of the dual, so what hooks together
// is one basin, and only the critical edges, on which nothing hooks, are sorted: fewer than there are pixels.
#pragma once
#include <thrust/scan.h>
#include <thrust/sort.h>

#include <cuda/atomic>
#include <type_traits>

#include "betti_matching_launch.h"
#include "tiles.h"

namespace nearlinear::algo {

constexpr uint32_t kNoCell = ~uint32_t{0};

template <typename T>
NL_HD cuda::atomic_ref<T, cuda::thread_scope_device> shared(T& x) {
  return cuda::atomic_ref<T, cuda::thread_scope_device>(x);
}

// results do not depend on the order; most calls end at the load
template <typename T>
NL_HD void lower(T& x, T value) {
  if (value < shared(x).load(cuda::memory_order_relaxed)) shared(x).fetch_min(value, cuda::memory_order_relaxed);
}

// Hooks of a picture: 0 none; of a pixel 1 up, 2 left, 3 down, 4 right; of a top cell 1 bottom, 2 right, 3 top: in the order of the
// edges' ids, of top cells backwards; the left edge comes last, and where it has the value, so does one of the others.
struct BettiHooks {
  Cubical<2> grid;
  const uint8_t* hook;  // of a slot

  NL_HD uint32_t of_pixel(uint32_t p) const { return hook[p] & 15u; }
  NL_HD uint32_t of_top(uint32_t p) const { return hook[p] >> 4; }
  NL_HD uint32_t pixel_across(uint32_t p) const {
    const uint32_t h = of_pixel(p);
    return h == 0 ? p : h == 1 ? p - grid.stride[0] : h == 2 ? p - 1 : h == 3 ? p + grid.stride[0] : p + 1;
  }
  NL_HD uint32_t pixel_edge(uint32_t p) const {
    const uint32_t h = of_pixel(p), u = pixel_across(p);
    return 2 * (u < p ? u : p) + (h % 2 == 0);
  }
  NL_HD uint32_t top_edge(uint32_t p) const {
    const uint32_t h = of_top(p);
    return h == 1 ? 2 * (p + grid.stride[0]) + 1 : h == 2 ? 2 * (p + 1) : 2 * p + 1;
  }
  NL_HD uint32_t top_across(uint32_t p) const {
    const uint32_t h = of_top(p), x = p / grid.side[1], y = p % grid.side[1];
    if (h == 0) return p;
    if (h == 1) return x + 2 < grid.side[0] ? p + grid.stride[0] : grid.outside();
    if (h == 2) return y + 2 < grid.side[1] ? p + 1 : grid.outside();
    return x > 0 ? p - grid.stride[0] : grid.outside();
  }
  // of two cells that hook on each other the first pixel and the last top cell is the root
  NL_HD uint32_t pixel_parent(uint32_t p) const {
    const uint32_t u = pixel_across(p);
    return pixel_across(u) == p && p < u ? p : u;
  }
  NL_HD uint32_t top_parent(uint32_t p) const {
    const uint32_t u = top_across(p);
    return u != grid.outside() && top_across(u) == p && u < p ? p : u;
  }
  // bits: which edges of the pixel no cell hooks on
  NL_HD uint32_t critical(uint32_t p) const {
    const uint32_t x = p / grid.side[1], y = p % grid.side[1], row = grid.stride[0];
    const bool down = x + 1 < grid.side[0] && of_pixel(p) != 3 && of_pixel(p + row) != 1 && !(y > 0 && of_top(p - 1) == 2);
    const bool right =
        y + 1 < grid.side[1] && of_pixel(p) != 4 && of_pixel(p + 1) != 2 && of_top(p) != 3 && !(x > 0 && of_top(p - row) == 1);
    return (down ? 1u : 0u) | (right ? 2u : 0u);
  }
};

NL_HD inline uint8_t hooks_at(const Cubical<2>& grid, const uint32_t* key, uint32_t p) {
  uint32_t x[2];
  grid.coordinates(p, x);
  const uint32_t row = grid.stride[0], own = key[p];
  const bool below = grid.has_next(x, 0), beside = grid.has_next(x, 1);
  uint32_t pixel = 0, top = 0;
  if (x[0] > 0 && key[p - row] <= own) {
    pixel = 1;
  } else if (x[1] > 0 && key[p - 1] <= own) {
    pixel = 2;
  } else if (below && key[p + row] <= own) {
    pixel = 3;
  } else if (beside && key[p + 1] <= own) {
    pixel = 4;
  }
  if (below && beside) {
    const uint32_t largest = grid.value(key, p, Cubical<2>::all_axes);
    const uint32_t last = key[p + row + 1];
    if (last == largest || key[p + row] == largest) {
      top = 1;
    } else {
      top = key[p + 1] == largest ? 2 : 3;
    }
  }
  return static_cast<uint8_t>(pixel | top << 4);
}

// roots of all nodes at once: every store is an ancestor, so the root that is found does not depend on what other threads did
NL_HD inline uint32_t shared_root(uint32_t* parent, uint32_t x) {
  uint32_t up = shared(parent[x]).load(cuda::memory_order_relaxed);
  while (up != x) {
    const uint32_t next = shared(parent[up]).load(cuda::memory_order_relaxed);
    if (next != up) shared(parent[x]).store(next, cuda::memory_order_relaxed);
    x = up, up = next;
  }
  return x;
}

template <typename scalar_t>
NL_HD void note_nan(const BettiImages<scalar_t>& images, const BettiWork& w, uint32_t side, uint32_t k, uint32_t p) {
  const scalar_t x = images.value(side, int64_t{k} * w.grid.pixels + p);
  if (x == x) return;
  lower(w.nan[k], uint64_t{side} * w.grid.pixels + p);
  lower(w.nan[w.instances], (uint64_t{2} * k + side) * w.grid.pixels + p);
}

// values as integers in the order of the filtration; float64: the rank among all values of the call
template <typename policy_t, typename scalar_t>
void make_keys(policy_t&& policy, Arena& arena, BettiImages<scalar_t> images, BettiWork w) {
  const int64_t pixels = w.grid.pixels, side = pixels * w.instances, total = images.sides() * side;
  const auto place = [=] NL_HD(int64_t j) {
    const uint32_t i = static_cast<uint32_t>(j / side), k = static_cast<uint32_t>(j % side / pixels);
    return w.at(w.slot(k, i)) + j % pixels;
  };
  each(policy, w.instances + 1, [=] NL_HD(int64_t k) { w.nan[k] = ~uint64_t{0}; });
  each(policy, total, [=] NL_HD(int64_t j) {
    note_nan(images, w, static_cast<uint32_t>(j / side), static_cast<uint32_t>(j % side / pixels), static_cast<uint32_t>(j % pixels));
  });
  if constexpr (std::is_same_v<scalar_t, double>) {
    char* mark = arena.mark();
    uint64_t* wide = arena.array<uint64_t>(static_cast<size_t>(total));
    uint32_t *from = arena.array<uint32_t>(static_cast<size_t>(total)), *rank = arena.array<uint32_t>(static_cast<size_t>(total));
    each(policy, total, [=] NL_HD(int64_t j) { wide[j] = images.key(j / side, j % side), from[j] = static_cast<uint32_t>(j); });
    thrust::stable_sort_by_key(policy, wide, wide + total, from);
    each(policy, total, [=] NL_HD(int64_t j) { rank[j] = j + 1 < total && wide[j] != wide[j + 1]; });
    thrust::exclusive_scan(policy, rank, rank + total, rank);
    each(policy, total, [=] NL_HD(int64_t j) { w.key[place(from[j])] = rank[j]; });
    arena.release(mark);
  } else {
    each(policy, total, [=] NL_HD(int64_t j) { w.key[place(j)] = images.key(j / side, j % side); });
  }
  if (w.images == 1) return;
  each(policy, side, [=] NL_HD(int64_t j) {
    const uint32_t k = static_cast<uint32_t>(j / pixels);
    const int64_t p = j % pixels;
    const uint32_t a = w.key[w.at(w.slot(k, 0)) + p], b = w.key[w.at(w.slot(k, 1)) + p];
    w.key[w.at(w.slot(k, 2)) + p] = a < b ? a : b;
  });
}

template <typename policy_t>
void make_basins(policy_t&& policy, BettiWork w) {
  const int64_t all = w.at(w.slot(w.instances, 0));
  each(policy, all, [=] NL_HD(int64_t j) {
    const uint32_t p = static_cast<uint32_t>(j % w.nodes);
    const uint32_t* key = w.key + (j - p);
    const bool outside = p == w.grid.outside();
    w.hook[j] = outside ? 0 : hooks_at(w.grid, key, p);
    w.top[j] = outside ? kNoCell : w.hook[j] >> 4 ? w.grid.value(key, p, Cubical<2>::all_axes) : 0;
  });
  each(policy, all, [=] NL_HD(int64_t j) {
    const uint32_t p = static_cast<uint32_t>(j % w.nodes);
    const BettiHooks hooks{w.grid, w.hook + (j - p)};
    w.label[j] = hooks.pixel_parent(p), w.label[all + j] = hooks.top_parent(p);
  });
  each(policy, 2 * all, [=] NL_HD(int64_t j) {
    const uint32_t p = static_cast<uint32_t>(j % w.nodes);
    if (w.options.wants(j >= all)) shared(w.label[j]).store(shared_root(w.label + (j - p), p), cuda::memory_order_relaxed);
  });
}

// The critical edges of all slots in one list, by slot, value and id: they are written in the order of slots and ids, and the sort is
// stable. How many there are is not known here, so that the list is sorted with what is left empty.
template <typename policy_t>
void sort_edges(policy_t&& policy, Arena& arena, BettiWork w) {
  const int64_t slots = w.slot(w.instances, 0), all = w.at(slots), most = slots * w.grid.pixels;
  char* mark = arena.mark();
  uint32_t* place = arena.array<uint32_t>(static_cast<size_t>(all));
  const auto flags = [=] NL_HD(int64_t j) {
    const uint32_t p = static_cast<uint32_t>(j % w.nodes);
    return p == w.grid.outside() ? 0u : BettiHooks{w.grid, w.hook + (j - p)}.critical(p);
  };
  each(policy, most, [=] NL_HD(int64_t j) { w.edge_value[j] = ~uint64_t{0}; });
  each(policy, all, [=] NL_HD(int64_t j) { place[j] = (flags(j) + 1) / 2; });
  thrust::exclusive_scan(policy, place, place + all, place);
  each(policy, all, [=] NL_HD(int64_t j) {
    const uint32_t p = static_cast<uint32_t>(j % w.nodes), found = flags(j);
    const uint32_t* key = w.key + (j - p);
    uint32_t to = place[j];
    for (uint32_t t = 0; t < 2; ++t) {
      if ((found >> t & 1) == 0) continue;
      w.edge[to] = 2 * p + t;
      w.edge_value[to++] = static_cast<uint64_t>(j / w.nodes) << 32 | w.grid.value(key, p, 1u << t);
    }
  });
  arena.release(mark);
  thrust::stable_sort_by_key(policy, w.edge_value, w.edge_value + most, w.edge);
  arena.release(mark);
  each(policy, slots + 1, [=] NL_HD(int64_t s) {
    int64_t low = 0, high = most;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (w.edge_value[middle] < static_cast<uint64_t>(s) << 32) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    w.begin[s] = static_cast<uint32_t>(low);
  });
}

}  // namespace nearlinear::algo

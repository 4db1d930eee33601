// Betti matching of pictures by Thrust: the GPU form of csrc/cpu/betti_matching.cpp, which its tests run on the host.
//
// Steps, all on one stream, none waits for a result: values become integers in the order of the filtration; basins and their critical edges
// (betti_basins.h); sweeps, one thread for each tree, and the matching by table look-ups (betti_forest.h). Then rows by running counts, or
// the loss: terms cell by cell, added in tiles of a fixed order; the gradient of a pixel from the bars it is an end of, as itself,
// on its four edges and as a top cell, so that nothing is added by atomics.
#pragma once
#include <cmath>

#include "betti_forest.h"

namespace nearlinear::algo {

// bars of the cells of an instance
template <typename scalar_t>
struct BettiBars {
  BettiImages<scalar_t> images;
  BettiWork w;

  NL_HD uint32_t edge(uint32_t dim, uint32_t side, uint32_t k, uint32_t cell) const { return w.bar[w.dim_at(dim, w.slot(k, side)) + cell]; }
  NL_HD double value(uint32_t side, uint32_t k, uint32_t pixel) const {
    return static_cast<double>(images.value(side, int64_t{k} * w.grid.pixels + pixel));
  }
  NL_HD uint32_t edge_pixel(uint32_t side, uint32_t k, uint32_t edge) const {
    return w.grid.critical_pixel(w.key + w.at(w.slot(k, side)), edge / 2, 1u << edge % 2);
  }
  // The critical pixel of a top cell that dies in a bar is its first: another corner with its value would be on the border, or also in a
  // later top cell, so that the cell would meet the outside, or one that is older, at that value.
  NL_HD uint32_t birth(uint32_t dim, uint32_t side, uint32_t k, uint32_t cell) const {
    return dim == 0 ? cell : edge_pixel(side, k, edge(dim, side, k, cell));
  }
  NL_HD uint32_t death(uint32_t dim, uint32_t side, uint32_t k, uint32_t cell) const {
    return dim == 0 ? edge_pixel(side, k, edge(dim, side, k, cell)) : cell;
  }
  // a cell at the last value of the filtration, if it is infinite, never enters: bars that would die there are none
  NL_HD bool any(uint32_t dim, uint32_t side, uint32_t k, uint32_t cell) const {
    if (!w.options.wants(dim) || edge(dim, side, k, cell) == kNoCell) return false;
    const double last = images.superlevel ? -INFINITY : INFINITY;
    return value(side, k, death(dim, side, k, cell)) != last;
  }
  // of a bar; kNoCell: unmatched
  NL_HD uint32_t partner(uint32_t dim, uint32_t side, uint32_t k, uint32_t cell) const {
    const uint32_t other = w.partner[w.side_at(dim, side, k) + cell];
    return other != kNoCell && any(dim, 1 - side, k, other) ? other : kNoCell;
  }
};

template <typename scalar_t>
BettiWork betti_work(Arena& arena, const BettiImages<scalar_t>& images, const BettiOptions& options) {
  const int64_t count = images.instances, kinds = images.pair ? 3 : 1, nodes = images.pixels() + 1;
  const size_t all = static_cast<size_t>(count * kinds * nodes), sides = static_cast<size_t>(kinds == 1 ? 0 : 4 * count * nodes);
  BettiWork w{Cubical<2>({images.rows, images.columns}), static_cast<uint32_t>(count), static_cast<uint32_t>(kinds),
              static_cast<uint32_t>(nodes), options};
  w.nan = arena.array<uint64_t>(static_cast<size_t>(count) + 1);
  w.edge_value = arena.array<uint64_t>(all);
  w.key = arena.array<uint32_t>(all), w.top = arena.array<uint32_t>(all);
  w.label = arena.array<uint32_t>(2 * all);
  w.edge = arena.array<uint32_t>(all), w.begin = arena.array<uint32_t>(static_cast<size_t>(count * kinds) + 1);
  w.hook = arena.array<uint8_t>(all);
  w.bar = arena.array<uint32_t>(2 * all);
  w.image = arena.array<uint32_t>(sides), w.partner = arena.array<uint32_t>(sides);
  return w;
}

// the bars of all images, and their partners
template <typename policy_t, typename scalar_t>
BettiWork betti_bars(policy_t&& policy, Arena& arena, BettiImages<scalar_t> images, BettiOptions options) {
  const BettiWork w = betti_work(arena, images, options);
  char* mark = arena.mark();
  make_keys(policy, arena, images, w);
  make_basins(policy, w);
  sort_edges(policy, arena, w);
  const size_t sides = w.images == 1 ? 0 : static_cast<size_t>(w.side_at(2, 0, 0));
  const BettiCarried carried{arena.array<uint64_t>(sides), arena.array<uint32_t>(sides), arena.array<uint32_t>(sides)};
  if (w.images > 1) carry_along(policy, w, carried);
  sweep_trees(policy, w, carried);
  if (w.images > 1) match_bars(policy, w);
  arena.release(mark);
  return w;
}

template <typename policy_t, typename scalar_t>
BettiWork betti_matching(policy_t&& policy, Arena& arena, BettiImages<scalar_t> images, BettiOptions options, int64_t* offsets) {
  BettiWork w = betti_bars(policy, arena, images, options);
  const int64_t pixels = w.grid.pixels, dims = options.dims, cells = int64_t{w.instances} * dims * pixels;
  BettiCounts* count = w.count = arena.array<BettiCounts>(static_cast<size_t>(cells));
  const BettiBars<scalar_t> bars{images, w};
  const bool pair = w.images == 3;
  each(policy, cells, [=] NL_HD(int64_t j) {
    const uint32_t p = static_cast<uint32_t>(j % pixels), dim = static_cast<uint32_t>(j / pixels % dims);
    const uint32_t k = static_cast<uint32_t>(j / pixels / dims);
    BettiCounts one{0, 0, 0};
    if (bars.any(dim, 0, k, p)) (pair && bars.partner(dim, 0, k, p) != kNoCell ? one.matched : one.input) = 1;
    if (pair && bars.any(dim, 1, k, p)) one.target = bars.partner(dim, 1, k, p) == kNoCell;
    count[j] = one;
  });
  char* mark = arena.mark();
  thrust::inclusive_scan(policy, count, count + cells, count, [] NL_HD(BettiCounts a, BettiCounts b) { return a + b; });
  arena.release(mark);
  each(policy, w.instances * dims + 1, [=] NL_HD(int64_t j) {
    const BettiCounts before = j == 0 ? BettiCounts{0, 0, 0} : count[j * pixels - 1];
    if (pair) {
      offsets[3 * j] = before.matched, offsets[3 * j + 1] = before.input, offsets[3 * j + 2] = before.target;
    } else {
      offsets[j] = before.input;
    }
  });
  return w;
}

// in three passes, so that a thread writes one row: the matched and unmatched bars of the input, what they are matched with, the others
template <typename policy_t, typename scalar_t>
void betti_rows(policy_t&& policy, BettiImages<scalar_t> images, BettiWork w, int64_t* matched, int64_t* input, int64_t* target) {
  const int64_t pixels = w.grid.pixels, dims = w.options.dims, cells = int64_t{w.instances} * dims * pixels;
  const BettiBars<scalar_t> bars{images, w};
  for (const int pass : {0, 1, 2}) {
    if (pass > 0 && w.images == 1) return;
    each(policy, cells, [=] NL_HD(int64_t j) {
      const uint32_t dim = static_cast<uint32_t>(j / pixels % dims), k = static_cast<uint32_t>(j / pixels / dims), side = pass > 0;
      uint32_t cell = static_cast<uint32_t>(j % pixels);
      const BettiCounts until = w.count[j], before = j == 0 ? BettiCounts{0, 0, 0} : w.count[j - 1];
      int64_t* to = nullptr;
      if (pass < 2 && until.matched > before.matched) {
        to = matched + int64_t{4} * before.matched + 2 * pass;
        if (pass == 1) cell = w.partner[w.side_at(dim, 0, k) + cell];
      } else if (pass == 0 && until.input > before.input) {
        to = input + int64_t{2} * before.input;
      } else if (pass == 2 && until.target > before.target) {
        to = target + int64_t{2} * before.target;
      }
      if (to == nullptr) return;
      to[0] = bars.birth(dim, side, k, cell), to[1] = bars.death(dim, side, k, cell);
    });
  }
}

}  // namespace nearlinear::algo

// the loss of a Betti matching and its gradients, by Thrust: a part of betti_matching.h.
#pragma once
#include "betti_matching.h"

namespace nearlinear::algo {

template <typename scalar_t>
struct BettiGradient {
  BettiBars<scalar_t> bars;
  BettiLoss loss;
  uint32_t* owner;  // [2, instances, 2 nodes] of an edge at which a bar of a side begins or ends: twice its cell, plus its dimension
  uint32_t* first;  // [instances, 2] where the essential bars begin

  NL_HD uint32_t* owners(uint32_t side, uint32_t k) const { return owner + (side * int64_t{bars.w.instances} + k) * 2 * bars.w.nodes; }

  // terms that the cell gives as the input's, and as the target's where that is alone
  NL_HD double term(uint32_t dim, uint32_t k, uint32_t cell) const {
    const BettiWeights w = loss.weights(dim);
    double sum = 0;
    for (uint32_t side = 0; side < 2; ++side) {
      if (!bars.any(dim, side, k, cell)) continue;
      const double b = bars.value(side, k, bars.birth(dim, side, k, cell)), d = bars.value(side, k, bars.death(dim, side, k, cell));
      const uint32_t other = bars.partner(dim, side, k, cell);
      if (other == kNoCell) {
        if (counts(side, w, b, d)) sum += loss.terms.unmatched(b, d, side == 0 ? w.input : w.target);
      } else if (side == 0 && w.matched != 0) {
        const double b2 = bars.value(1, k, bars.birth(dim, 1, k, other)), d2 = bars.value(1, k, bars.death(dim, 1, k, other));
        sum += BettiTerms::matched(b, b2, d, d2, w.matched);
      }
    }
    return sum;
  }
  NL_HD bool counts(uint32_t side, const BettiWeights& w, double b, double d) const {
    return side == 0 ? w.input != 0 && loss.terms.counts(b, d) : w.target != 0;
  }
  // on the pixel of birth or of death of a bar
  NL_HD double slope(uint32_t dim, uint32_t side, uint32_t k, uint32_t cell, bool at_birth) const {
    if (!bars.any(dim, side, k, cell)) return 0;
    const BettiWeights w = loss.weights(dim);
    const double b = bars.value(side, k, bars.birth(dim, side, k, cell)), d = bars.value(side, k, bars.death(dim, side, k, cell));
    const uint32_t other = bars.partner(dim, side, k, cell);
    if (other == kNoCell) {
      if (!counts(side, w, b, d)) return 0;
      const double weight = side == 0 ? w.input : w.target;
      return at_birth ? loss.terms.birth_slope(b, d, weight) : loss.terms.death_slope(b, d, weight);
    }
    if (w.matched == 0) return 0;
    const uint32_t there = at_birth ? bars.birth(dim, 1 - side, k, other) : bars.death(dim, 1 - side, k, other);
    return BettiTerms::matched_slope(at_birth ? b : d, bars.value(1 - side, k, there), w.matched);
  }
  // of a pixel: as itself, on its four edges and as a top cell
  NL_HD double at(uint32_t side, uint32_t k, uint32_t p) const {
    const Cubical<2>& grid = bars.w.grid;
    uint32_t x[2];
    grid.coordinates(p, x);
    double sum = slope(0, side, k, p, true);
    NL_UNROLL for (uint32_t t = 0; t < 2; ++t) {
      for (uint32_t before = 0; before < 2; ++before) {
        if (before ? x[t] == 0 : !grid.has_next(x, static_cast<int>(t))) continue;
        const uint32_t edge = 2 * (p - before * grid.stride[t]) + t, bar = owners(side, k)[edge];
        if (bar != kNoCell && bars.edge_pixel(side, k, edge) == p) sum += slope(bar % 2, side, k, bar / 2, bar % 2 == 1);
      }
    }
    return sum + slope(1, side, k, p, false) + essential(side, k, p);
  }
  NL_HD double essential(uint32_t side, uint32_t k, uint32_t p) const {
    if (!wants_first() || first[2 * k + side] != p) return 0;
    return BettiTerms::matched_slope(bars.value(side, k, p), bars.value(1 - side, k, first[2 * k + 1 - side]), loss.low.matched);
  }
  NL_HD double essential_term(uint32_t k) const {
    if (!wants_first()) return 0;
    const double gap = BettiTerms::apart(bars.value(0, k, first[2 * k]), bars.value(1, k, first[2 * k + 1]));
    return 2 * loss.low.matched * gap * gap;
  }
  NL_HD bool wants_first() const { return loss.essential && loss.low.matched != 0; }
};

// sums of each of `rows` rows of n numbers, tile by tile; they are overwritten
template <typename policy_t>
double* sum_rows(policy_t&& policy, Arena& arena, double* x, int64_t rows, int64_t n) {
  while (n > 1) {
    const int64_t tiles = tiles_of(n);
    double* sum = arena.array<double>(static_cast<size_t>(rows * tiles));
    each(policy, rows * tiles, [=] NL_HD(int64_t j) {
      const int64_t begin = j % tiles * kTile, end = begin + kTile < n ? begin + kTile : n;
      double total = 0;
      for (int64_t i = begin; i < end; ++i) total += x[j / tiles * n + i];
      sum[j] = total;
    });
    x = sum, n = tiles;
  }
  return x;
}

template <typename policy_t, typename scalar_t>
void betti_loss(policy_t&& policy, Arena& arena, BettiImages<scalar_t> images, BettiOptions options, BettiLoss loss, scalar_t* out,
                scalar_t* d_input, scalar_t* d_target) {
  const BettiWork w = betti_bars(policy, arena, images, options);
  const int64_t pixels = w.grid.pixels, dims = options.dims, cells = dims * pixels, nodes = int64_t{w.instances} * w.nodes;
  uint32_t *owner = arena.array<uint32_t>(static_cast<size_t>(4 * nodes)), *first = arena.array<uint32_t>(size_t{2} * w.instances);
  const BettiGradient<scalar_t> gradient{{images, w}, loss, owner, first};
  each(policy, 4 * nodes, [=] NL_HD(int64_t j) { owner[j] = kNoCell; });
  each(policy, 2 * nodes, [=] NL_HD(int64_t j) {
    const uint32_t p = static_cast<uint32_t>(j % w.nodes), k = static_cast<uint32_t>(j % nodes / w.nodes), side = j >= nodes;
    for (uint32_t dim = 0; dim < 2; ++dim) {
      const uint32_t edge = w.bar[w.dim_at(dim, w.slot(k, side)) + p];
      if (edge != kNoCell) gradient.owners(side, k)[edge] = 2 * p + dim;
    }
    // the one pixel that no merge ended
    if (gradient.wants_first() && p < pixels && w.label[w.at(w.slot(k, side)) + p] == p) first[2 * k + side] = p;
  });
  for (uint32_t side = 0; side < 2; ++side) {
    scalar_t* to = side == 0 ? d_input : d_target;
    if (to == nullptr) continue;
    each(policy, w.instances * pixels, [=] NL_HD(int64_t j) {
      const uint32_t k = static_cast<uint32_t>(j / pixels);
      to[j] = w.nan[k] != ~uint64_t{0} ? scalar_t(0) : static_cast<scalar_t>(gradient.at(side, k, static_cast<uint32_t>(j % pixels)));
    });
  }
  double* term = arena.array<double>(static_cast<size_t>(w.instances * cells));
  each(policy, w.instances * cells, [=] NL_HD(int64_t j) {
    const uint32_t k = static_cast<uint32_t>(j / cells);
    term[j] = gradient.term(static_cast<uint32_t>(j % cells / pixels), k, static_cast<uint32_t>(j % pixels));
  });
  const double* sum = sum_rows(policy, arena, term, w.instances, cells);
  each(policy, w.instances, [=] NL_HD(int64_t k) {
    const double total = sum[k] + gradient.essential_term(static_cast<uint32_t>(k));
    out[k] = w.nan[k] != ~uint64_t{0} ? static_cast<scalar_t>(NAN) : static_cast<scalar_t>(total);
  });
}

}  // namespace nearlinear::algo

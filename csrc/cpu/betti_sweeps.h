// persistence pairs of the lowest and the highest dimension by union-find, and their matching through the smaller of two images.
//
// Image X of f, g, h = min(f, g), payload J: an image pair has its birth in the payload f or g and its death in h.
// Top dimension: facets in descending order join top cells (and the outside, which never dies); where two components meet, the one whose
//   largest cell is smaller dies with it, and the facet is the birth of a bar. A sweep in the order of f that carries the largest cells in
//   the order of h gives the pairs of f and of its image in h at once.
// Dimension 0: edges in ascending order join pixels; the component whose smallest pixel is larger dies. A sweep in the order of h that
//   carries the smallest pixels of f and of g gives all pairs of both images.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "../functors/cubical.h"
#include "sorted_segments.h"

namespace nearlinear::betti {

constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();

struct Bar {
  uint32_t birth, death;  // cells
};

// Of one homology dimension. Bars are in the order of their rows: by pixel of birth in dimension 0, by dying top cell in the highest,
// by edge of birth in dimension 1 of volumes.
struct Matching {
  std::vector<Bar> input, target;
  std::vector<uint32_t> partner;  // of each input bar: a target bar, or kNone
};

using Cells = std::vector<Indexed<uint32_t>>;  // (value, id), ascending

inline void sort_cells(Cells& cells) {
  Cells spare(cells.size());
  radix_sort(cells.data(), spare.data(), static_cast<int64_t>(cells.size()), 0, cells.data());
}

template <int D>
Cells sorted_edges(const Cubical<D>& grid, const uint32_t* key) {
  Cells edges;
  edges.reserve(size_t{D} * grid.pixels);
  for_pixels(grid, [&](uint32_t p, const uint32_t (&x)[D]) {
    for (int t = 0; t < D; ++t)
      if (grid.has_next(x, t)) edges.push_back({std::max(key[p], key[p + grid.stride[t]]), D * p + static_cast<uint32_t>(t)});
  });
  sort_cells(edges);
  return edges;
}

template <int D>
Cells sorted_facets(const Cubical<D>& grid, const uint32_t* key) {
  Cells facets;
  facets.reserve(size_t{D} * grid.pixels);
  for_pixels(grid, [&](uint32_t p, const uint32_t (&x)[D]) {
    for (int t = 0; t < D; ++t)
      if (grid.has_facet(x, grid.normal(t))) facets.push_back({grid.value(key, p, grid.facet_axes(t)), D * p + static_cast<uint32_t>(t)});
  });
  sort_cells(facets);
  return facets;
}

class Forest {
 public:
  explicit Forest(uint32_t nodes) : parent_(nodes) { std::iota(parent_.begin(), parent_.end(), 0u); }
  uint32_t find(uint32_t x) {
    while (parent_[x] != x) x = parent_[x] = parent_[parent_[x]];
    return x;
  }
  void join(uint32_t child, uint32_t root) { parent_[child] = root; }

 private:
  std::vector<uint32_t> parent_;
};

// Bars and image pairs of one sweep over the facets of an image. own and pay: values of the top cells in the image and in h.
struct DualSweep {
  std::vector<Bar> bars;               // in the order of the sweep
  std::vector<uint32_t> bar_of_death;  // of h's dying top cell: its bar, if the image pair has one
  Cells rest;                          // facets that joined nothing, ascending
};

template <int D>
DualSweep dual_sweep(const Cubical<D>& grid, const uint32_t* own, const uint32_t* pay, Cells facets, bool positive) {
  DualSweep result;
  if (pay != nullptr) result.bar_of_death.assign(grid.pixels, kNone);
  const uint32_t outside = grid.outside();
  Forest forest(outside + 1);
  std::vector<uint32_t> most(outside + 1);  // largest cell of a component in the order of h; its root is the one in its own order
  std::iota(most.begin(), most.end(), 0u);
  const auto below = [outside](const uint32_t* value, uint32_t a, uint32_t b) {
    if (a == outside || b == outside) return b == outside;
    return value[a] < value[b] || (value[a] == value[b] && a < b);
  };
  size_t kept = facets.size();
  for (size_t k = facets.size(); k-- > 0;) {
    const Indexed<uint32_t> facet = facets[k];
    const uint32_t p = facet.index / D;
    const int axis = grid.normal(static_cast<int>(facet.index % D));
    uint32_t x[D];
    grid.coordinates(p, x);
    uint32_t dead = forest.find(grid.has_next(x, axis) ? p : outside);
    uint32_t root = forest.find(x[axis] > 0 ? p - grid.stride[axis] : outside);
    if (dead == root) {
      facets[--kept] = facet;
      continue;
    }
    if (below(own, root, dead)) std::swap(dead, root);
    forest.join(dead, root);
    uint32_t dead_pay = most[dead];
    if (pay != nullptr) {
      if (below(pay, most[root], dead_pay)) std::swap(most[root], dead_pay);
    }
    if (facet.key == own[dead]) continue;
    if (pay != nullptr && (!positive || facet.key < pay[dead_pay]))
      result.bar_of_death[dead_pay] = static_cast<uint32_t>(result.bars.size());
    result.bars.push_back({facet.index, dead});
  }
  facets.erase(facets.begin(), facets.begin() + static_cast<std::ptrdiff_t>(kept));
  result.rest = std::move(facets);
  return result;
}

// calls merge(edge, dead, root) where two components meet; roots are the smallest pixels
template <int D, typename F>
void primal_sweep(const Cubical<D>& grid, const uint32_t* key, const Cells& edges, F&& merge) {
  Forest forest(grid.pixels);
  for (const Indexed<uint32_t> edge : edges) {
    const uint32_t p = edge.index / D;
    uint32_t dead = forest.find(p), root = forest.find(p + grid.stride[edge.index % D]);
    if (dead == root) continue;
    if (key[root] > key[dead] || (key[root] == key[dead] && root > dead)) std::swap(dead, root);
    forest.join(dead, root);
    merge(edge, dead, root);
  }
}

// (death cell, position of a bar) of the bars, in the order of their rows
template <typename cell_t>
std::vector<uint32_t> order_of(const std::vector<Bar>& bars, cell_t cell) {
  std::vector<uint32_t> order(bars.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return cell(bars[a]) < cell(bars[b]); });
  return order;
}

template <typename cell_t>
void sort_rows(Matching& m, cell_t cell) {
  const auto reorder = [&](std::vector<Bar>& bars, const std::vector<uint32_t>& order) {
    std::vector<Bar> sorted(bars.size());
    for (size_t i = 0; i < bars.size(); ++i) sorted[i] = bars[order[i]];
    bars = std::move(sorted);
  };
  const std::vector<uint32_t> input = order_of(m.input, cell), target = order_of(m.target, cell);
  std::vector<uint32_t> place(target.size()), partner(input.size());
  for (size_t j = 0; j < target.size(); ++j) place[target[j]] = static_cast<uint32_t>(j);
  for (size_t i = 0; i < input.size(); ++i) {
    const uint32_t j = m.partner.empty() ? kNone : m.partner[input[i]];
    partner[i] = j == kNone ? kNone : place[j];
  }
  reorder(m.input, input), reorder(m.target, target);
  m.partner = std::move(partner);
}

}  // namespace nearlinear::betti

// the second half of Betti matching on a GPU: sweeps over the critical edges, and what they carry.
//
// One thread sweeps a tree: pixels by ascending edges in dimension 0, top cells by descending ones in dimension 1. The trees of all
// instances run at once, six for a pair of pictures. Where two components meet, the one dies whose root is younger: pixels of small value
// are old, top cells of large value, and the outside is the oldest. Carried along, for the image pairs: in dimension 0 by the smaller
// picture h the oldest pixel in the orders of both sides, in dimension 1 by each side the oldest top cell in the order of h.
// A component carries the oldest of the cells that have entered, and a cell enters at the edge it hooks on. Those that enter before the
// first critical edge of their basin are reduced beforehand; later ones that are older wait in a list, in any order, at the next critical
// edge. Only pairs whose birth is not before their death need that: with "positive" whole basins are reduced, and no lists are made.
#pragma once
#include "betti_basins.h"

namespace nearlinear::algo {

// [2, 2, instances, nodes] by dimension and side. Where the first edge of a basin is in the sweep is kept in BettiWork::image meanwhile.
struct BettiCarried {
  uint64_t* oldest;       // of a root, the age of what it carries
  uint32_t *next, *head;  // lists of cells, by the place of the edge in the sweep
};

// smaller is older; pixels ascend by (value, id), top cells descend, so that the outside is the oldest
NL_HD inline uint64_t age_of(uint32_t dim, uint32_t value, uint32_t cell) {
  const uint64_t key = static_cast<uint64_t>(value) << 32 | cell;
  return dim == 0 ? key : ~key;
}
NL_HD inline uint32_t cell_of(uint32_t dim, uint64_t age) { return static_cast<uint32_t>(dim == 0 ? age : ~age); }
NL_HD inline uint32_t value_of(uint32_t dim, uint64_t age) { return static_cast<uint32_t>((dim == 0 ? age : ~age) >> 32); }

// a slot's edges in the order of a sweep
struct BettiTree {
  const BettiWork& w;
  uint32_t dim;
  int64_t slot;

  NL_HD uint32_t size() const { return w.begin[slot + 1] - w.begin[slot]; }
  NL_HD uint32_t at(uint32_t place) const { return dim == 0 ? w.begin[slot] + place : w.begin[slot + 1] - 1 - place; }
  NL_HD uint32_t place_of(uint32_t at) const { return dim == 0 ? at - w.begin[slot] : w.begin[slot + 1] - 1 - at; }
  NL_HD uint32_t* parent() const { return w.label + w.dim_at(dim, slot); }
  NL_HD uint64_t age(uint32_t cell) const { return age_of(dim, (dim == 0 ? w.key : w.top)[w.at(slot) + cell], cell); }
  // when the edge comes: (value, id) ascending, or descending
  NL_HD uint64_t time(uint32_t place) const {
    const uint32_t j = at(place);
    return age_of(dim, static_cast<uint32_t>(w.edge_value[j]), w.edge[j]);
  }
  // the cells that an edge is between; of top cells one may be the outside
  NL_HD void ends(uint32_t edge, uint32_t (&end)[2]) const {
    const uint32_t p = edge / 2, row = w.grid.stride[0], outside = w.grid.outside();
    const bool along = edge % 2 == 1;  // the row
    if (dim == 0) {
      end[0] = p, end[1] = p + (along ? 1 : row);
    } else if (along) {
      end[0] = p + row < outside ? p : outside, end[1] = p >= row ? p - row : outside;
    } else {
      const uint32_t y = p % row;
      end[0] = y + 1 < row ? p : outside, end[1] = y > 0 ? p - 1 : outside;
    }
  }
  NL_HD uint32_t root(uint32_t x) const {
    uint32_t *to = parent(), up = to[x];
    while (up != x) {
      const uint32_t next = to[up];
      if (next != up) to[x] = next;
      x = up, up = next;
    }
    return x;
  }
};

// what a side carries along in a dimension
struct BettiCarry {
  const BettiCarried& c;
  BettiTree tree;
  const uint32_t* value;  // of the cells, in the picture whose order counts
  int64_t at;             // BettiWork::side_at

  NL_HD BettiCarry(const BettiWork& w, const BettiCarried& carried, uint32_t dim, uint32_t side, uint32_t k)
      : c(carried),
        tree{w, dim, w.slot(k, dim == 0 ? 2 : side)},
        value((dim == 0 ? w.key : w.top) + w.at(w.slot(k, dim == 0 ? side : 2))),
        at(w.side_at(dim, side, k)) {}
  NL_HD uint64_t age(uint32_t cell) const { return age_of(tree.dim, value[cell], cell); }
  // of a root, the place of its first edge; in dimension 0 both sides are carried along one sweep
  NL_HD uint32_t& first(uint32_t root) const {
    const BettiWork& w = tree.w;
    return w.image[(tree.dim == 0 ? w.side_at(0, 0, static_cast<uint32_t>(tree.slot / w.images)) : at) + root];
  }
  // of a cell that is no root of a basin
  NL_HD uint64_t entry(uint32_t cell) const {
    const BettiHooks hooks{tree.w.grid, tree.w.hook + tree.w.at(tree.slot)};
    return age_of(tree.dim, value_of(tree.dim, tree.age(cell)), tree.dim == 0 ? hooks.pixel_edge(cell) : hooks.top_edge(cell));
  }
  NL_HD bool enters_early(uint32_t cell, uint32_t basin) const {
    return tree.w.options.positive || cell == basin || first(basin) == kNoCell || entry(cell) < tree.time(first(basin));
  }
  // into the list of the first edge after its entry; where there is none the cell is carried nowhere
  NL_HD void wait(uint32_t cell, uint32_t basin) const {
    const uint64_t enters = entry(cell);
    uint32_t low = first(basin), high = tree.size();
    while (low < high) {
      const uint32_t middle = low + (high - low) / 2;
      if (tree.time(middle) < enters) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    if (low < tree.size()) c.next[at + cell] = shared(c.head[at + low]).exchange(cell, cuda::memory_order_relaxed);
  }
  // the cells that enter before the edge
  NL_HD void enter(uint32_t place) const {
    for (uint32_t cell = c.head[at + place]; cell != kNoCell; cell = c.next[at + cell]) {
      uint64_t& kept = c.oldest[at + tree.root(cell)];
      const uint64_t own = age(cell);
      if (own < kept) kept = own;
    }
  }
  NL_HD uint64_t carried(uint32_t root) const { return c.oldest[at + root]; }
  // of two components that meet, the older of what they carry goes on; the other is paired with the bar, if the merge gives one
  NL_HD void merge(uint32_t dead, uint32_t root, uint64_t of_dead, uint64_t of_root, uint32_t edge_value, bool lives) const {
    const uint64_t lost = of_dead < of_root ? of_root : of_dead;
    if (of_dead < of_root) c.oldest[at + root] = of_dead;
    const uint32_t other = value_of(tree.dim, lost), cell = cell_of(tree.dim, lost);
    if (!lives || (tree.w.options.positive && !(tree.dim == 0 ? other < edge_value : edge_value < other))) return;
    tree.w.image[at + (tree.dim == 0 ? dead : cell)] = tree.dim == 0 ? cell : dead;
  }
};

// a pixel, or a top cell and the outside
NL_HD inline bool is_cell(const BettiTree& tree, uint32_t p) {
  if (tree.dim == 0) return p < tree.w.grid.pixels;
  return p == tree.w.grid.outside() || tree.w.hook[tree.w.at(tree.slot) + p] >> 4 != 0;
}

template <typename policy_t>
void find_first_edges(policy_t&& policy, BettiWork w, BettiCarried c, uint32_t dim, uint32_t side) {
  each(policy, w.slot(w.instances, 0) * w.grid.pixels, [=] NL_HD(int64_t j) {
    if (w.edge_value[j] == ~uint64_t{0}) return;
    const int64_t slot = static_cast<int64_t>(w.edge_value[j] >> 32);
    const BettiCarry carry(w, c, dim, side, static_cast<uint32_t>(slot / w.images));
    if (slot != carry.tree.slot) return;
    uint32_t end[2];
    carry.tree.ends(w.edge[j], end);
    for (const uint32_t x : end) lower(carry.first(carry.tree.parent()[x]), carry.tree.place_of(static_cast<uint32_t>(j)));
  });
}

template <typename policy_t>
void reduce_basins(policy_t&& policy, BettiWork w, BettiCarried c, uint32_t dim, uint32_t side) {
  const int64_t cells = int64_t{w.instances} * w.nodes;
  each(policy, cells, [=] NL_HD(int64_t j) {
    const uint32_t p = static_cast<uint32_t>(j % w.nodes);
    const BettiCarry carry(w, c, dim, side, static_cast<uint32_t>(j / w.nodes));
    const uint32_t basin = carry.tree.parent()[p];
    if (is_cell(carry.tree, p) && carry.enters_early(p, basin)) lower(c.oldest[carry.at + basin], carry.age(p));
  });
  if (w.options.positive) return;
  each(policy, cells, [=] NL_HD(int64_t j) {
    const uint32_t p = static_cast<uint32_t>(j % w.nodes);
    const BettiCarry carry(w, c, dim, side, static_cast<uint32_t>(j / w.nodes));
    const uint32_t basin = carry.tree.parent()[p];
    if (is_cell(carry.tree, p) && carry.age(p) < c.oldest[carry.at + basin]) carry.wait(p, basin);  // those that enter early are not older
  });
}

template <typename policy_t>
void carry_along(policy_t&& policy, BettiWork w, BettiCarried c) {
  each(policy, w.side_at(2, 0, 0), [=] NL_HD(int64_t j) { c.oldest[j] = ~uint64_t{0}, c.head[j] = w.image[j] = kNoCell; });
  for (uint32_t dim = 0; dim < 2; ++dim) {
    if (!w.options.wants(dim)) continue;
    for (uint32_t side = 0; side < 2; ++side) {
      if (!w.options.positive && (dim == 1 || side == 0)) find_first_edges(policy, w, c, dim, side);
      reduce_basins(policy, w, c, dim, side);
    }
  }
}

// one tree, and what up to two sides carry along it
struct BettiSweep {
  BettiTree tree;
  BettiCarry first, second;
  bool any, both;

  NL_HD BettiSweep(const BettiWork& w, const BettiCarried& c, uint32_t dim, uint32_t image, uint32_t k)
      : tree{w, dim, w.slot(k, image)},
        first(w, c, dim, dim == 0 ? 0 : image, k),
        second(w, c, dim, 1, k),
        any(w.images > 1 && (dim == 0) == (image == 2)),
        both(any && dim == 0) {}

  // x, y: cells that are connected to the ends of the edge. A merge gives a bar if the cell that dies does not have the edge's value.
  NL_HD void join(uint32_t place, uint32_t x, uint32_t y) const {
    if (any) first.enter(place);
    if (both) second.enter(place);
    x = tree.root(x), y = tree.root(y);
    if (x == y) return;
    // all loads are under way at once
    const uint64_t age_x = tree.age(x), age_y = tree.age(y);
    const uint64_t first_x = any ? first.carried(x) : 0, first_y = any ? first.carried(y) : 0;
    const uint64_t second_x = both ? second.carried(x) : 0, second_y = both ? second.carried(y) : 0;
    const bool older = age_x < age_y;
    const uint32_t dead = older ? y : x, root = older ? x : y, at = tree.at(place), value = static_cast<uint32_t>(tree.w.edge_value[at]);
    const bool lives = value != value_of(tree.dim, older ? age_y : age_x);
    tree.parent()[dead] = root;
    if (lives) tree.w.bar[tree.w.dim_at(tree.dim, tree.slot) + dead] = tree.w.edge[at];
    if (any) first.merge(dead, root, older ? first_y : first_x, older ? first_x : first_y, value, lives);
    if (both) second.merge(dead, root, older ? second_y : second_x, older ? second_x : second_y, value, lives);
  }
  // Loads depend on loads: those of the next three edges are under way while one is joined, each a step further. Nodes that are no
  // longer roots are as good as roots, only further away.
  NL_HD void run() const {
    const uint32_t size = tree.size();
    const uint32_t* parent = tree.parent();
    const auto edge = [&](uint32_t place) { return tree.w.edge[tree.at(place < size ? place : size - 1)]; };
    if (size == 0) return;
    uint32_t near[2], next[2], far[2], last = edge(2);
    tree.ends(edge(0), near), tree.ends(edge(1), next);
    for (uint32_t place = 0; place < size; ++place) {
      tree.ends(last, far);
      last = edge(place + 3);
      far[0] = parent[far[0]], far[1] = parent[far[1]];
      next[0] = parent[next[0]], next[1] = parent[next[1]];
      join(place, near[0], near[1]);
      near[0] = next[0], near[1] = next[1];
      next[0] = far[0], next[1] = far[1];
    }
  }
};

constexpr int64_t kBlock = 512;  // elements of a block of Thrust: one tree to a block, since its loads depend on each other

template <typename policy_t>
void sweep_trees(policy_t&& policy, BettiWork w, BettiCarried c) {
  const int64_t trees = w.slot(w.instances, 0) * 2;
  each(policy, w.dim_at(2, 0), [=] NL_HD(int64_t j) { w.bar[j] = kNoCell; });
  each(policy, w.images == 1 ? 0 : w.side_at(2, 0, 0), [=] NL_HD(int64_t j) { w.image[j] = w.partner[j] = kNoCell; });
  each(policy, trees * kBlock, [=] NL_HD(int64_t j) {
    if (j % kBlock != 0) return;
    const uint32_t tree = static_cast<uint32_t>(j / kBlock), dim = tree % 2, image = tree / 2 % w.images;
    if (w.options.wants(dim)) BettiSweep(w, c, dim, image, tree / 2 / w.images).run();
  });
}

template <typename policy_t>
void match_bars(policy_t&& policy, BettiWork w) {
  const int64_t cells = int64_t{w.instances} * w.nodes;
  each(policy, 2 * cells, [=] NL_HD(int64_t j) {
    const uint32_t dim = static_cast<uint32_t>(j / cells), k = static_cast<uint32_t>(j % cells / w.nodes);
    const uint32_t p = static_cast<uint32_t>(j % w.nodes);
    const uint32_t a = w.image[w.side_at(dim, 0, k) + p], b = w.image[w.side_at(dim, 1, k) + p];
    if (w.bar[w.dim_at(dim, w.slot(k, 2)) + p] == kNoCell || a == kNoCell || b == kNoCell) return;
    if (w.bar[w.dim_at(dim, w.slot(k, 0)) + a] == kNoCell || w.bar[w.dim_at(dim, w.slot(k, 1)) + b] == kNoCell) return;
    w.partner[w.side_at(dim, 0, k) + a] = b, w.partner[w.side_at(dim, 1, k) + b] = a;
  });
}

}  // namespace nearlinear::algo

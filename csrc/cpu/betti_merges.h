// components of the pixels of a volume, joined by edges in ascending order, or of its cubes and what lies beyond the border, joined by
// faces in descending order: where two meet, the one whose oldest cell is the younger dies.
//
// Most nodes die at once: a pixel comes in by its smallest edge where that has the pixel's value, as a cube does by its largest face,
// which always has the cube's. Such hooks show in the neighbours, without any order of all cells, and make trees ("basins"); only links
// between two basins are sorted, and joined by union-find. Components may also carry their oldest node in the orders of other images
// ("payloads"). A hook is taken where the node that hangs on it is the younger in these orders too: then it changes no payload, whenever
// it comes in.
#pragma once
#include <numeric>

#include "../common/interrupt.h"
#include "betti_field.h"

namespace nearlinear::betti {

// two components meet at a link, and values of link and dead differ. dead, payload: the oldest nodes of the one that dies
struct Merge {
  uint32_t value, link, dead;
  std::array<uint32_t, 2> payload;
};

// what sweeps need, used again by the next
struct MergeScratch {
  std::vector<uint8_t> code;
  std::vector<uint32_t> up, roots, oldest, parent;
  std::array<std::vector<uint32_t>, 2> carried;
  Values label;
  Valued links, spare;
};

template <bool kDual>
class Merges {
 public:
  using Payloads = std::array<const Values*, 2>;  // null: none

  // nodes: values of pixels (cubes); links: of edges (faces). Links that join something leave the field.
  Merges(const Grid3& grid, const Values& nodes, Values& links, Payloads payloads, MergeScratch& scratch)
      : grid_(grid), nodes_(nodes), value_(nodes[0]), links_(links), payloads_(payloads), s_(scratch) {
    for (int k = 0; k < 6; ++k) hooks_[static_cast<size_t>(k)] = hook(k);
  }

  std::vector<Merge> run(Work& work) {
    make_basins();
    list_links();
    std::vector<Merge> merges;
    s_.parent.resize(s_.roots.size());
    std::iota(s_.parent.begin(), s_.parent.end(), 0u);
    for (size_t i = 0; i < 2; ++i)
      if (payloads_[i] != nullptr) s_.carried[i] = s_.roots;
    size_t left = s_.roots.size() - 1;
    const size_t n = s_.links.size();
    for (size_t k = 0; k < n && left > 0; ++k) {
      if (k % (1u << 16) == 0 && work.poll()) break;
      left -= join(s_.links[kDual ? n - 1 - k : k], merges);
    }
    return merges;
  }

 private:
  static constexpr uint32_t kNoLink = kDual ? kGone : 0;
  // from a node to a neighbour by a link, which is named by the pixel of one of both
  struct Hook {
    int type;
    std::ptrdiff_t link, node;
  };
  // in the order in which equal links are tried: edges ascending, faces descending
  Hook hook(int k) const {
    const int t = k < 3 ? k : kDual ? 5 - k : k - 3;
    const std::ptrdiff_t step = grid_.stride[t];
    if (kDual) return k < 3 ? Hook{t, step, step} : Hook{t, 0, -step};
    return k < 3 ? Hook{t, -step, -step} : Hook{t, 0, step};
  }
  static bool older(const uint32_t* value, uint32_t a, uint32_t b) {
    if (value[a] != value[b]) return kDual ? value[a] > value[b] : value[a] < value[b];
    return kDual ? a > b : a < b;
  }
  // basins of the two ends of a link
  uint32_t here(uint32_t p) const { return s_.label[0][p]; }
  uint32_t there(uint32_t p, uint32_t type) const {
    const std::ptrdiff_t step = grid_.stride[type];
    return s_.label[0][static_cast<std::ptrdiff_t>(p) + (kDual ? -step : step)];
  }

  NL_CLONES static void first_hook(const std::array<const uint32_t*, 6>& link, const uint32_t* node, uint32_t n, uint8_t* __restrict out) {
    for (uint32_t i = 0; i < n; ++i) {
      uint32_t k = 6;
      for (uint32_t h = 6; h-- > 0;) k = link[h][i] == node[i] ? h : k;
      out[i] = static_cast<uint8_t>(k);
    }
  }

  void make_basins() {
    const uint32_t n = grid_.pixels;
    std::array<const uint32_t*, 6> link;
    for (size_t k = 0; k < 6; ++k) link[k] = links_[hooks_[k].type] + hooks_[k].link;
    s_.code.resize(n), s_.up.resize(n);
    first_hook(link, value_, n, s_.code.data());
    for (uint32_t p = 0; p < n; ++p) s_.up[p] = hooked(p);
    s_.roots.clear(), s_.oldest.clear();
    s_.label.reset(grid_, 1, 0);
    if (kDual) s_.roots.push_back(grid_.outside()), s_.oldest.push_back(grid_.outside());
    for (uint32_t p = 0; p < n; ++p) s_.label[0][p] = kDual && value_[p] == 0 ? 0 : kGone;
    for (uint32_t p = 0; p < n; ++p)
      if (s_.label[0][p] == kGone) label(p);
  }

  // the node that p hangs on, or p. Two that hang on each other do so by one link: the older one is the root.
  uint32_t hooked(uint32_t p) {
    if (s_.code[p] == 6 || (kDual && value_[p] == 0)) return p;
    const Hook h = hooks_[s_.code[p]];
    uint32_t other = static_cast<uint32_t>(static_cast<std::ptrdiff_t>(p) + h.node);
    if (kDual && value_[static_cast<std::ptrdiff_t>(p) + h.node] == 0) {
      other = grid_.outside();
    } else {
      const Hook back = hooks_[std::min<uint8_t>(s_.code[other], 5)];
      if (s_.code[other] != 6 && back.type == h.type && back.node == -h.node && older(value_, p, other)) return p;
      for (const Values* pay : payloads_)
        if (pay != nullptr && !older((*pay)[0], other, p)) return p;
    }
    links_[h.type][static_cast<std::ptrdiff_t>(p) + h.link] = kNoLink;
    return other;
  }

  // labels p and all above it that have no label yet
  void label(uint32_t p) {
    uint32_t* const label = s_.label[0];
    uint32_t root = p;
    while (label[root] == kGone && s_.up[root] != root) root = s_.up[root];
    if (label[root] == kGone) {
      label[root] = static_cast<uint32_t>(s_.roots.size());
      s_.roots.push_back(root), s_.oldest.push_back(root);
    }
    const uint32_t basin = label[root];
    for (uint32_t q = p; q != root; q = s_.up[q]) {
      label[q] = basin;
      if (older(value_, q, s_.oldest[basin])) s_.oldest[basin] = q;  // on plateaus
    }
  }

  // links between basins, ascending
  void list_links() {
    s_.links.resize(3 * size_t{grid_.pixels});
    Indexed<uint32_t>* to = s_.links.data();
    const uint32_t* const links[3] = {links_[0], links_[1], links_[2]};
    for (uint32_t p = 0; p < grid_.pixels; ++p)
      for (uint32_t t = 0; t < 3; ++t) {
        *to = {links[t][p], 4 * p + t};
        to += (links[t][p] != kNoLink) & (here(p) != there(p, t));
      }
    s_.links.resize(static_cast<size_t>(to - s_.links.data()));
    sort_by_value(s_.links, s_.spare);
  }

  uint32_t find(uint32_t x) {
    uint32_t* const parent = s_.parent.data();
    while (parent[x] != x) x = parent[x] = parent[parent[x]];
    return x;
  }

  // whether the ends of the link were apart
  bool join(Indexed<uint32_t> link, std::vector<Merge>& merges) {
    const uint32_t p = link.index >> 2, type = link.index & 3;
    uint32_t dead = find(here(p)), kept = find(there(p, type));
    if (dead == kept) return false;
    if (older(value_, s_.oldest[dead], s_.oldest[kept])) std::swap(dead, kept);
    s_.parent[dead] = kept;
    links_.at(link.index) = kNoLink;
    Merge merge{link.key, link.index, s_.oldest[dead], {}};
    for (size_t i = 0; i < 2; ++i) {
      if (payloads_[i] == nullptr) continue;
      merge.payload[i] = s_.carried[i][dead];
      if (older((*payloads_[i])[0], merge.payload[i], s_.carried[i][kept])) std::swap(merge.payload[i], s_.carried[i][kept]);
    }
    if (value_[merge.dead] != link.key) merges.push_back(merge);
    return true;
  }

  const Grid3 grid_;
  const Values& nodes_;
  const uint32_t* const value_;
  Values& links_;
  const Payloads payloads_;
  MergeScratch& s_;  // label: basin of each node, 0 beyond the border; roots, oldest: a node of each basin
  std::array<Hook, 6> hooks_;
};

}  // namespace nearlinear::betti

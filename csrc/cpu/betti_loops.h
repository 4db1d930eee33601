// persistence pairs of dimension 1 of volumes by reduction of the boundary matrix over Z / 2: columns are faces, rows edges.
//
// Rows in the order of one image and columns in that of the same or another give the pairs of the image, or those of its image in the
// other. Faces that join two components of cubes would reduce to nothing, edges that join two of pixels are never the largest of a cycle:
// neither is a column or a row ("clearing"), so that every column gets a row and every row a column.
// 1. A face and an edge are a pair whatever else happens where the edge is the face's largest and the face the edge's smallest: their
//    neighbours show it. Nothing of them is sorted or stored. The others, a fiftieth to a third of all, are "lone".
// 2. The boundary of every lone face in lone edges: an edge that has a partner stands for the three other edges of that face, which are
//    smaller. These walks stay near the face, so faces are taken as they lie in memory. Three or four edges are left.
// 3. These short columns are reduced in the order of the faces; the tables are those of the lone cells only.
#pragma once
#include <functional>

#include "../common/interrupt.h"
#include "betti_column.h"
#include "betti_field.h"

namespace nearlinear::betti {

// of an image, without the cleared cells
struct LoopOrder {
  const Values &edges, &faces;
  const Field<uint8_t>&largest_edge, &smallest_face;
};

class LoopReduction {
 public:
  // work: of `share` units a run
  LoopReduction(const Grid3& grid, Work& work, int64_t share);

  // rows and columns: images that give their orders. If only trivial pairs are asked for, both are one image, and faces whose edge has a
  // smaller value than they are left alone: their columns are never reduced to the end.
  void run(const LoopOrder& rows, const LoopOrder& columns, bool only_trivial) {
    find_partners(rows, columns);
    list_lone(rows, columns);
    place_edges(rows.edges);
    expand(rows.edges, columns.faces, only_trivial);
    if (!work_.stopped()) reduce(columns.faces);
  }

  // the face that is the death of an edge
  uint32_t face_of(uint32_t edge) const {
    const uint8_t k = partner_.at(edge);
    if (k == kLone) return lone_faces_[columns_[position_.at(edge)].number];
    const Near face = faces_[edge & 3][k];
    return (edge & ~3u) + static_cast<uint32_t>(4 * face.offset + face.type);
  }
  // edges without a partner near them, as they lie; all others are born with their face
  const std::vector<uint32_t>& lone_edges() const { return lone_edges_; }
  // calls f(face) for faces that have no edge
  template <typename F>
  void for_alone(F&& f) const {
    std::vector<uint8_t> paired(lone_faces_.size(), 0);
    for (const Column& c : columns_)
      if (c.size != 0) paired[c.number] = 1;
    for (size_t i = 0; i < paired.size(); ++i)
      if (paired[i] == 0) f(lone_faces_[i]);
  }

 private:
  static constexpr uint8_t kLone = 4, kCleared = 5;
  // entries of a column in the pool, its largest first; number of its face. size 0: none
  struct Column {
    uint32_t begin, size, number;
  };
  // from one cell to another: how far values are, and names
  struct Step {
    std::ptrdiff_t place;
    uint32_t name;
  };
  Step step(int from, int to, std::ptrdiff_t offset) const {
    return {static_cast<std::ptrdiff_t>(partner_.plane()) * (to - from) + offset, static_cast<uint32_t>(4 * offset + to - from)};
  }

  void find_partners(const LoopOrder& rows, const LoopOrder& columns);
  void list_lone(const LoopOrder& rows, const LoopOrder& columns);
  void place_edges(const Values& edges);
  void expand(const Values& edges, const Values& faces, bool only_trivial);
  void close(size_t found);
  void reduce(const Values& faces);
  void sort(const std::vector<uint32_t>& cells, const Values& values) {
    order_.resize(cells.size());
    for (uint32_t i = 0; i < cells.size(); ++i) order_[i] = {values.at(cells[i]), i};
    sort_by_value(order_, spare_);
  }
  // whether to leave
  bool poll(size_t done, size_t all, int half) {
    if (done % 4096 != 0) return false;
    const int64_t now =
        share_ / 2 * half + static_cast<int64_t>(static_cast<double>(done) / static_cast<double>(all) * static_cast<double>(share_ / 2));
    work_.add(now - added_), added_ = now;
    return work_.poll();
  }

  const Grid3 grid_;
  Work& work_;
  const int64_t share_;
  int64_t added_ = 0;
  std::array<Four, 3> edges_, faces_;  // of each face, of each edge
  std::array<std::array<Step, 4>, 3> from_face_;
  std::array<std::array<std::array<Step, 3>, 4>, 3> from_edge_;
  Field<uint8_t> partner_;  // of each edge: its number among the faces of the edge, kLone or kCleared
  Values position_;         // of each lone edge among all in order
  std::vector<uint8_t> flags_;
  std::vector<uint32_t> lone_edges_, lone_faces_, begin_, pool_, found_ = std::vector<uint32_t>(64);
  std::vector<uint64_t> heap_;
  std::vector<Column> columns_, next_;  // columns_: of each position
  Valued order_, spare_;
};

inline LoopReduction::LoopReduction(const Grid3& grid, Work& work, int64_t share) : grid_(grid), work_(work), share_(share) {
  partner_.reset(grid, 3, kCleared), position_.reset(grid, 3, 0);
  for (int t = 0; t < 3; ++t)
    edges_[static_cast<size_t>(t)] = edges_of_face(grid, t), faces_[static_cast<size_t>(t)] = faces_of_edge(grid, t);
  for (int t = 0; t < 3; ++t)
    for (size_t k = 0; k < 4; ++k) {
      const size_t type = static_cast<size_t>(t);
      const Near edge = edges_[type][k], face = faces_[type][k];
      from_face_[type][k] = step(t, edge.type, edge.offset);
      size_t j = 0;
      for (const Near other : edges_[static_cast<size_t>(face.type)])
        if (other.type != t || other.offset != -face.offset) from_edge_[type][k][j++] = step(t, other.type, face.offset + other.offset);
    }
}

namespace loops {
NL_CLONES inline void set_lone(const uint32_t* edge, uint8_t lone, uint8_t cleared, uint32_t n, uint8_t* __restrict out) {
  for (uint32_t i = 0; i < n; ++i) out[i] = edge[i] != 0 ? lone : cleared;
}
// where both numbers are as given
NL_CLONES inline void set_partner(const uint8_t* a, uint8_t k, const uint8_t* b, uint8_t m, uint8_t lone, uint32_t n,
                                  uint8_t* __restrict out) {
  for (uint32_t i = 0; i < n; ++i) out[i] = (a[i] == k) & (b[i] == m) & (out[i] == lone) ? k : out[i];
}
NL_CLONES inline void drop_flag(const uint8_t* a, uint8_t k, const uint8_t* b, uint8_t m, uint8_t bit, uint32_t n,
                                uint8_t* __restrict out) {
  for (uint32_t i = 0; i < n; ++i) out[i] = (a[i] == k) & (b[i] == m) ? out[i] & static_cast<uint8_t>(~bit) : out[i];
}
template <typename T>
NL_CLONES void set_flag(const T* in, T value, bool equal, uint8_t bit, uint32_t n, uint8_t* __restrict out) {
  for (uint32_t i = 0; i < n; ++i) out[i] |= (in[i] == value) == equal ? bit : 0;
}
}  // namespace loops

inline void LoopReduction::find_partners(const LoopOrder& rows, const LoopOrder& columns) {
  for (int t = 0; t < 3; ++t) {
    loops::set_lone(rows.edges[t], kLone, kCleared, grid_.pixels, partner_[t]);
    for (uint8_t k = 0; k < 4; ++k) {
      const Near face = faces_[static_cast<size_t>(t)][k];
      loops::set_partner(columns.smallest_face[t], k, rows.largest_edge[face.type] + face.offset,
                         number_of(edges_[static_cast<size_t>(face.type)], t, -face.offset), kLone, grid_.pixels, partner_[t]);
    }
  }
}

inline void LoopReduction::list_lone(const LoopOrder& rows, const LoopOrder& columns) {
  const uint32_t n = grid_.pixels;
  const auto list = [&](std::vector<uint32_t>& cells) {
    cells.resize(3 * size_t{n});
    uint32_t* to = cells.data();
    for (uint32_t p = 0; p < n; ++p)
      for (uint32_t t = 0; t < 3; ++t) *to = 4 * p + t, to += flags_[p] >> t & 1;
    cells.resize(static_cast<size_t>(to - cells.data()));
  };
  const auto bit = [](int t) { return static_cast<uint8_t>(1 << t); };
  flags_.assign(n, 0);
  for (int t = 0; t < 3; ++t) loops::set_flag<uint8_t>(partner_[t], kLone, true, bit(t), n, flags_.data());
  list(lone_edges_);
  flags_.assign(n, 0);
  for (int t = 0; t < 3; ++t) {
    loops::set_flag<uint32_t>(columns.faces[t], kGone, false, bit(t), n, flags_.data());
    for (uint8_t m = 0; m < 4; ++m) {
      const Near edge = edges_[static_cast<size_t>(t)][m];
      const uint8_t k = number_of(faces_[static_cast<size_t>(edge.type)], t, -edge.offset);
      loops::drop_flag(rows.largest_edge[t], m, partner_[edge.type] + edge.offset, k, bit(t), n, flags_.data());
    }
  }
  list(lone_faces_);
}

inline void LoopReduction::place_edges(const Values& edges) {
  sort(lone_edges_, edges);
  for (uint32_t r = 0; r < order_.size(); ++r) position_.at(lone_edges_[order_[r].index]) = r;
}

inline void LoopReduction::expand(const Values& edges, const Values& faces, bool only_trivial) {
  const uint32_t* const value = edges[0];
  const uint8_t* const partner = partner_[0];
  const size_t plane = partner_.plane();
  uint32_t floor = 0, found = 0;  // edges up to the floor are left out
  WorkingColumn column(heap_);
  const auto open = [&](uint32_t cell, const auto& steps) __attribute__((always_inline)) {
    column.make_room(4);
    if (found + 4 > found_.size()) found_.resize(2 * found_.size());
    uint32_t* const lone = found_.data();
    const size_t at = (cell & 3) * plane + (cell >> 2);
    for (const Step& s : steps) {
      const size_t i = at + static_cast<size_t>(s.place);
      const uint32_t edge = cell + s.name;
      const bool counts = value[i] > floor, is_lone = partner[i] == kLone;
      lone[found] = edge, found += counts & is_lone;
      column.put(uint64_t{value[i]} << 32 | edge, counts & !is_lone);
    }
  };
  const size_t n = lone_faces_.size();
  begin_.resize(n + 1), pool_.clear();
  for (size_t k = 0; k < n; ++k) {
    if (poll(k, n, 0)) return;
    const uint32_t face = lone_faces_[k];
    if (only_trivial) floor = faces.at(face) - 1;
    begin_[k] = static_cast<uint32_t>(pool_.size()), found = 0;
    open(face, from_face_[face & 3]);
    while (const uint64_t top = column.pop()) {
      const uint32_t edge = static_cast<uint32_t>(top);
      open(edge, from_edge_[edge & 3][partner[(edge & 3) * plane + (edge >> 2)]]);
    }
    close(found);
  }
  begin_[n] = static_cast<uint32_t>(pool_.size());
}

// puts the positions of the edges that were found an odd number of times into the pool, the largest first
inline void LoopReduction::close(size_t found) {
  uint32_t* const x = found_.data();
  for (size_t i = 0; i < found; ++i) x[i] = position_.at(x[i]);
  if (found > 16) {
    std::sort(x, x + found, std::greater<>());
  } else {
    for (size_t i = 1, j; i < found; ++i) {
      const uint32_t moved = x[i];
      for (j = i; j > 0 && x[j - 1] < moved; --j) x[j] = x[j - 1];
      x[j] = moved;
    }
  }
  for (size_t i = 0; i < found; ++i) {
    if (i + 1 < found && x[i] == x[i + 1]) {
      ++i;
    } else {
      pool_.push_back(x[i]);
    }
  }
}

inline void LoopReduction::reduce(const Values& faces) {
  sort(lone_faces_, faces);
  const size_t n = order_.size();
  next_.resize(n);
  for (size_t k = 0; k < n; ++k) {
    const uint32_t i = order_[k].index;
    next_[k] = {begin_[i], begin_[i + 1] - begin_[i], i};
  }
  columns_.assign(lone_edges_.size(), {0, 0, 0});
  WorkingColumn column(heap_);
  const auto add = [&](const Column& c, uint32_t from) __attribute__((always_inline)) {
    for (uint32_t i = from; i < c.size; ++i) {
      const uint32_t row = pool_[c.begin + i];
      __builtin_prefetch(&columns_[row]);
      column.flip(uint64_t{row} + 1);
    }
  };
  for (size_t k = 0; k < n; ++k) {
    if (poll(k, n, 1)) return;
    if (k + 16 < n) __builtin_prefetch(pool_.data() + next_[k + 16].begin);
    if (k + 8 < n && next_[k + 8].size != 0) __builtin_prefetch(&columns_[pool_[next_[k + 8].begin]]);
    Column c = next_[k];
    if (c.size == 0) continue;
    if (columns_[pool_[c.begin]].size != 0) {
      add(c, 0);
      uint64_t top = column.pop();
      for (; top != 0 && columns_[top - 1].size != 0; top = column.pop()) add(columns_[top - 1], 1);
      if (top == 0) continue;
      c.begin = static_cast<uint32_t>(pool_.size());
      for (; top != 0; top = column.pop()) pool_.push_back(static_cast<uint32_t>(top - 1));
      c.size = static_cast<uint32_t>(pool_.size()) - c.begin;
    }
    columns_[pool_[c.begin]] = c;
  }
}

}  // namespace nearlinear::betti

// persistence pairs of dimension 1 of volumes by reduction of the boundary matrix over Z / 2: columns are faces, rows edges.
#pragma once
#include <array>
#include <bit>
#include <memory>

#include "betti_sweeps.h"

namespace nearlinear::betti {

// one value for each of the three types of cells at every pixel, and a rim around them that a neighbour beyond the border falls into
template <typename T>
class Field {
 public:
  Field() = default;
  Field(uint32_t pixels, uint32_t rim, T fill) : rim_(rim), step_(size_t{pixels} + 2 * rim), data_(3 * step_, fill) {}
  T* operator[](int type) { return data_.data() + static_cast<size_t>(type) * step_ + rim_; }
  const T* operator[](int type) const { return data_.data() + static_cast<size_t>(type) * step_ + rim_; }

 private:
  size_t rim_ = 0, step_ = 0;
  std::vector<T> data_;
};

// the edges of a face: ascending ids
struct FaceEdge {
  int axis;        // of the edge
  int shift;       // axis along which it is moved from the face's pixel, or -1
  uint8_t coface;  // number of the face among those of the edge
};
constexpr FaceEdge kFaceEdges[3][4] = {{{1, -1, 2}, {2, -1, 2}, {1, 2, 1}, {2, 1, 1}},
                                       {{0, -1, 2}, {2, -1, 3}, {0, 2, 1}, {2, 0, 0}},
                                       {{0, -1, 3}, {1, -1, 3}, {0, 1, 0}, {1, 0, 0}}};

// set of row positions with a largest element: a bit for each, and levels of bits that say which words below are not zero
class WorkingColumn {
 public:
  explicit WorkingColumn(size_t rows) {
    do {
      rows = rows / 64 + 1;
      levels_.emplace_back(rows, 0);
    } while (rows > 1);
  }
  void flip(uint32_t row) {
    for (auto& level : levels_) {
      uint64_t& word = level[row >> 6];
      const uint64_t before = word;
      word ^= uint64_t{1} << (row & 63);
      row >>= 6;
      if (before != 0 && word != 0) return;
    }
  }
  uint32_t top() const {
    uint32_t at = 0;
    for (size_t k = levels_.size(); k-- > 0;) at = at * 64 + 63 - static_cast<uint32_t>(std::countl_zero(levels_[k][at]));
    return at;
  }
  bool empty() const { return levels_.back()[0] == 0; }

 private:
  std::vector<std::vector<uint64_t>> levels_;
};

struct Counts {
  size_t columns = 0, notapp = 0, stored = 0, adds = 0, flips = 0, entries = 0;
};
inline Counts counts;

class Reduction {
 public:
  Reduction(const Cubical<3>& grid, const uint32_t* position, size_t rows)
      : grid_(grid), position_(position), owner_(rows, kNone), column_(rows) {}

  void own(uint32_t row, uint32_t face) { owner_[row] = face; }

  // face of which a row is the birth, or kNone
  uint32_t face_of(uint32_t row) const {
    const uint32_t o = owner_[row];
    return o == kNone || o < kStored ? o : stored_[o - kStored].face;
  }
  void add_column(uint32_t face) {
    uint32_t edge[4], top = 0;
    bool any = false;
    const int m = rows_of(face, edge);
    for (int i = 0; i < m; ++i) top = std::max(top, edge[i]), any = true;
    if (!any) return;
    if (owner_[top] == kNone) {
      owner_[top] = face;
      return;
    }
    for (int i = 0; i < m; ++i) column_.flip(edge[i]);
    counts.flips += m;
    while (owner_[top] != kNone) {
      ++counts.adds;
      add(owner_[top], top);
      if (column_.empty()) return;
      top = column_.top();
    }
    store(face, top);
  }

 private:
  static constexpr uint32_t kStored = 1u << 31;
  struct Stored {
    uint32_t face;
    size_t begin, end;
  };
  int rows_of(uint32_t face, uint32_t (&edge)[4]) const {
    const uint32_t p = face / 3, normal = face % 3, b1 = normal == 0 ? 1 : 0, b2 = normal == 2 ? 1 : 2;
    const uint32_t all[4] = {position_[3 * p + b1], position_[3 * p + b2], position_[3 * (p + grid_.stride[b2]) + b1],
                             position_[3 * (p + grid_.stride[b1]) + b2]};
    int m = 0;
    for (int i = 0; i < 4; ++i) edge[m] = all[i], m += all[i] != kNone;
    return m;
  }
  void add(uint32_t owner, uint32_t top) {
    if (owner < kStored) {
      uint32_t edge[4];
      const int m = rows_of(owner, edge);
      for (int i = 0; i < m; ++i) column_.flip(edge[i]);
      counts.flips += m;
      return;
    }
    const Stored& s = stored_[owner - kStored];
    column_.flip(top);
    for (size_t i = s.begin; i < s.end; ++i) column_.flip(pool_[i]);
    counts.flips += s.end - s.begin;
  }
  void store(uint32_t face, uint32_t top) {
    const size_t begin = pool_.size();
    owner_[top] = kStored + static_cast<uint32_t>(stored_.size());
    column_.flip(top);
    while (!column_.empty()) {
      const uint32_t row = column_.top();
      pool_.push_back(row), column_.flip(row);
    }
    counts.stored++, counts.entries += pool_.size() - begin;
    stored_.push_back({face, begin, pool_.size()});
  }

  const Cubical<3> grid_;
  const uint32_t* position_;
  std::vector<uint32_t> owner_, pool_;
  std::vector<Stored> stored_;
  WorkingColumn column_;
};

}  // namespace nearlinear::betti

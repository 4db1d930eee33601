// values of the cells of a volume, and what a cell's neighbours show without any order of all cells.
//
// A field holds a value for each pixel and type. Cells that do not exist, or no longer matter, hold a value that no comparison picks: 0
// where the largest is looked for (edges, cubes), the largest number where the smallest is (faces); so no loop looks for the border.
// Values are keys + 1; cells are named 4 * pixel + type, which is their order among equal values.
#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "../common/simd.h"
#include "../functors/cubical.h"
#include "sorted_segments.h"

namespace nearlinear::betti {

using Grid3 = Cubical<3>;
constexpr uint32_t kGone = std::numeric_limits<uint32_t>::max();

// planes of a value for each pixel, with a rim at both ends as wide as the largest stride
template <typename T>
class Field {
 public:
  void reset(const Grid3& grid, int types, T fill) {
    rim_ = grid.stride[0], plane_ = size_t{grid.pixels} + 2 * rim_;
    data_.assign(static_cast<size_t>(types) * plane_, fill);
  }
  T* operator[](int type) { return data_.data() + static_cast<size_t>(type) * plane_ + rim_; }
  const T* operator[](int type) const { return data_.data() + static_cast<size_t>(type) * plane_ + rim_; }
  T& at(uint32_t cell) { return data_[(cell & 3) * plane_ + rim_ + (cell >> 2)]; }
  const T& at(uint32_t cell) const { return data_[(cell & 3) * plane_ + rim_ + (cell >> 2)]; }
  size_t plane() const { return plane_; }

 private:
  size_t rim_ = 0, plane_ = 0;
  std::vector<T> data_;
};
using Values = Field<uint32_t>;

// (value, cell), or (value, number of a cell)
using Valued = std::vector<Indexed<uint32_t>>;

// by value, equal ones as they lie; 11 bits a pass, and none for digits that all share
inline void sort_by_value(Valued& list, Valued& spare) {
  constexpr uint32_t bits = 11, digits = 3, places = 1u << bits;
  std::array<std::array<uint32_t, places>, digits> next{};
  for (const auto& r : list)
    for (uint32_t d = 0; d < digits; ++d) ++next[d][r.key >> (bits * d) & (places - 1)];
  spare.resize(list.size());
  for (uint32_t d = 0; d < digits; ++d) {
    uint32_t begin = 0, largest = 0;
    for (uint32_t& n : next[d]) largest = std::max(largest, n), begin += std::exchange(n, begin);
    if (largest == list.size()) continue;
    for (const auto& r : list) spare[next[d][r.key >> (bits * d) & (places - 1)]++] = r;
    list.swap(spare);
  }
}

// the two axes that are not `axis`, ascending
constexpr int first_other(int axis) { return axis == 0 ? 1 : 0; }
constexpr int second_other(int axis) { return axis == 2 ? 1 : 2; }

// a cell near another one: its type, and how far its pixel is
struct Near {
  int type;
  std::ptrdiff_t offset;
};
using Four = std::array<Near, 4>;

// the four edges of a face and the four faces of an edge: ascending
inline Four edges_of_face(const Grid3& grid, int normal) {
  const int a = first_other(normal), b = second_other(normal);
  return {{{a, 0}, {b, 0}, {a, grid.stride[b]}, {b, grid.stride[a]}}};
}
inline Four faces_of_edge(const Grid3& grid, int axis) {
  const int a = first_other(axis), b = second_other(axis);
  return {{{b, -std::ptrdiff_t{grid.stride[a]}}, {a, -std::ptrdiff_t{grid.stride[b]}}, {a, 0}, {b, 0}}};
}
inline uint8_t number_of(const Four& cells, int type, std::ptrdiff_t offset) {
  uint8_t k = 0;
  while (cells[k].type != type || cells[k].offset != offset) ++k;
  return k;
}

NL_CLONES inline void larger(const uint32_t* a, const uint32_t* b, uint32_t n, uint32_t* __restrict out) {
  for (uint32_t i = 0; i < n; ++i) out[i] = std::max(a[i], b[i]);
}

// out = larger of a value and the one a step along `axis` away, where cells that span `axes` exist
inline void larger_along(const Grid3& grid, const uint32_t* in, int axis, unsigned axes, uint32_t* out) {
  const uint32_t n0 = grid.side[0] - (axes & 1), n1 = grid.side[1] - (axes >> 1 & 1), n2 = grid.side[2] - (axes >> 2 & 1);
  for (uint32_t x = 0; x < n0; ++x)
    for (uint32_t y = 0; y < n1; ++y) {
      const uint32_t p = x * grid.stride[0] + y * grid.stride[1];
      larger(in + p, in + p + grid.stride[axis], n2, out + p);
    }
}

// Values of all cells; what lies beyond the border counts as the largest cube.
struct CellValues {
  Values pixels, edges, faces, cubes;

  template <typename key_t>
  CellValues(const Grid3& grid, key_t key) {
    pixels.reset(grid, 1, 0), edges.reset(grid, 3, 0), faces.reset(grid, 3, kGone), cubes.reset(grid, 1, 0);
    for (uint32_t p = 0; p < grid.pixels; ++p) pixels[0][p] = key(p) + 1;
    for (int t = 0; t < 3; ++t) larger_along(grid, pixels[0], t, 1u << t, edges[t]);
    for (int t = 0; t < 3; ++t) larger_along(grid, edges[first_other(t)], second_other(t), 7u & ~(1u << t), faces[t]);
    larger_along(grid, faces[0], 0, 7u, cubes[0]);
    cubes[0][grid.outside()] = kGone;
  }
};

// the number of the largest edge of each face among its four, and of the smallest face of each edge
NL_CLONES inline void last_largest(const std::array<const uint32_t*, 4>& v, uint32_t n, uint8_t* __restrict out) {
  const uint32_t *a = v[0], *b = v[1], *c = v[2], *d = v[3];
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t low = b[i] >= a[i] ? 1 : 0, high = d[i] >= c[i] ? 3 : 2;
    out[i] = static_cast<uint8_t>(std::max(c[i], d[i]) >= std::max(a[i], b[i]) ? high : low);
  }
}
NL_CLONES inline void first_smallest(const std::array<const uint32_t*, 4>& v, uint32_t n, uint8_t* __restrict out) {
  const uint32_t *a = v[0], *b = v[1], *c = v[2], *d = v[3];
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t low = a[i] <= b[i] ? 0 : 1, high = c[i] <= d[i] ? 2 : 3;
    out[i] = static_cast<uint8_t>(std::min(a[i], b[i]) <= std::min(c[i], d[i]) ? low : high);
  }
}

template <typename near_t, typename pick_t>
void pick_of_four(const Grid3& grid, const Values& values, near_t near, pick_t pick, Field<uint8_t>& out) {
  out.reset(grid, 3, 0);
  for (int t = 0; t < 3; ++t) {
    std::array<const uint32_t*, 4> v;
    const Four cells = near(grid, t);
    for (size_t k = 0; k < 4; ++k) v[k] = values[cells[k].type] + cells[k].offset;
    pick(v, grid.pixels, out[t]);
  }
}

}  // namespace nearlinear::betti

// basins of a picture: the persistence pairs that a pixel's neighbours show are removed first, and only what is left is sorted and swept.
//
// A pixel joins a smaller one by its smallest edge if that has the pixel's value ("hook": up, left, down, right is the order of such edges
//   when values are equal); a square of four pixels joins a larger one across its largest edge (bottom, right, top; never left). Both are
//   pairs of length zero. Where hooks end is a root; all that end there are its basin. Two cells hooked on each other, equal in value: the
//   root is the first of two pixels, the last of two squares. No longer cycle exists, since keys (value, index) are unique.
// Critical edges: on which nothing hooked. There are basins of pixels + basins of squares (the outside included) - 2 of them, all that the
//   sweeps of betti_trees.h need.
// Cost: one stencil that compiles to vector code, one pass for each kind of basin, n reads; a radix sort of the critical edges.
#pragma once
#include <array>
#include <cstring>

#include "../common/simd.h"
#include "../functors/cubical.h"
#include "betti_bars.h"
#include "betti_cells.h"
#include "sorted_segments.h"

namespace nearlinear::betti {

constexpr uint32_t kBeyond = ~uint32_t{0};  // value outside the picture; no key has it

// One byte for each pixel: bit 0: the edge down is critical; bit 1: the edge to the right; bits 2 to 4: hook of the pixel; bits 5 and 6: of
// the square whose first corner it is
enum PixelHook : uint32_t { kRoot, kUp, kLeft, kDown, kRight };
enum SquareHook : uint32_t { kLast, kBottom, kAside, kTop };  // kLast: root
inline uint32_t pixel_hook(uint8_t code) { return code >> 2 & 7u; }
inline uint32_t square_hook(uint8_t code) { return code >> 5; }

// v: the pixel; u, l, d, r: up, left, down, right of it; ur, dl, dr: diagonals
NL_INLINE uint32_t hook_code(uint32_t u, uint32_t ur, uint32_t l, uint32_t v, uint32_t r, uint32_t dl, uint32_t d, uint32_t dr) {
  const uint32_t up = u <= v, left = (up ^ 1) & (l <= v), down = ((up | left) ^ 1) & (d <= v), right = ((up | left | down) ^ 1) & (r <= v);
  // equal neighbours below hook up; equal ones to the right hook left unless their upper neighbour comes first
  const uint32_t mutual = (down & (d == v)) | (right & (r == v) & (ur > r));
  const uint32_t hook = (mutual - 1) & (up * kUp | left * kLeft | down * 3u | right * kRight);
  const uint32_t low = d > dr ? d : dr, high = v > r ? v : r, above = u > ur ? u : ur, before = dl > d ? dl : d;
  const uint32_t bottom = low >= high, aside = (bottom ^ 1) & (r >= v), top = (bottom ^ 1) & (v > r);
  const uint32_t square = bottom * kBottom | aside * kAside | (top & (v < above)) * 3u;
  const uint32_t right_free = (right | ((ur > r) & (v <= r)) | (high >= above) | top) ^ 1;
  const uint32_t down_free = (down | (v <= d) | ((v > before) & (v >= l))) ^ 1;
  return down_free | right_free << 1 | hook << 2 | square << 5;
}

// bytes in a loop of their own: together with the packing, the first one runs out of registers (measured: twice the time)
NL_CLONES inline void hook_row(const uint32_t* __restrict up, const uint32_t* __restrict row, const uint32_t* __restrict down, int64_t n,
                               uint32_t* __restrict wide, uint8_t* __restrict code) {
#pragma omp simd
  for (int64_t y = 1; y < n - 1; ++y)
    wide[y] = hook_code(up[y], up[y + 1], row[y - 1], row[y], row[y + 1], down[y - 1], down[y], down[y + 1]);
#pragma omp simd
  for (int64_t y = 1; y < n - 1; ++y) code[y] = static_cast<uint8_t>(wide[y]);
}

// largest corner of the squares whose upper row this is
NL_CLONES inline void square_row(const uint32_t* __restrict row, const uint32_t* __restrict down, int64_t n, uint32_t* __restrict value) {
#pragma omp simd
  for (int64_t y = 0; y < n; ++y) {
    const uint32_t a = row[y] > row[y + 1] ? row[y] : row[y + 1], b = down[y] > down[y + 1] ? down[y] : down[y + 1];
    value[y] = a > b ? a : b;
  }
}

inline uint32_t square_value(const uint32_t* key, uint32_t p, uint32_t width) {
  return std::max(std::max(key[p], key[p + 1]), std::max(key[p + width], key[p + width + 1]));
}

// hooks and critical edges of a picture; codes are followed by zeros up to a whole word
inline void make_codes(const Cubical<2>& grid, const uint32_t* key, Buffer<uint32_t>& row, Buffer<uint8_t>& codes) {
  const uint32_t rows = grid.side[0], n = grid.side[1];
  uint8_t* code = codes.room(grid.pixels + 8);
  uint32_t *outside = row.room(size_t{2} * n), *wide = outside + n;
  std::fill_n(outside, n, kBeyond);
  std::fill_n(code + grid.pixels, 8, uint8_t{0});
  for (uint32_t x = 0; x < rows; ++x, key += n, code += n) {
    const uint32_t *up = x > 0 ? key - n : outside, *down = x + 1 < rows ? key + n : outside;
    hook_row(up, key, down, n, wide, code);
    for (uint32_t y = 0; y < n; y += std::max(n - 1, 1u)) {
      const bool first = y == 0, last = y + 1 == n;
      code[y] = static_cast<uint8_t>(hook_code(up[y], last ? kBeyond : up[y + 1], first ? kBeyond : key[y - 1], key[y],
                                               last ? kBeyond : key[y + 1], first ? kBeyond : down[y - 1], down[y],
                                               last ? kBeyond : down[y + 1]));
    }
  }
}

// Basin of every cell: its number with kFound, or a cell further along its hooks. Basins are numbered in the order of the pass that finds
// them: by root, ascending for pixels, descending for squares; of squares, 0 is the outside.
constexpr uint32_t kFound = uint32_t{1} << 31;

struct Basins {
  Buffer<uint32_t> labels;
  Buffer<uint64_t> key;  // of the roots in the order of the sweep: (value, index), complemented for squares
  uint64_t flip = 0;     // all ones where they are complemented
  uint32_t shift = 0;    // cells before the first one are outside
  uint32_t count = 0;

  // chains shrink on the way: near-linear in all
  uint32_t of(uint32_t cell) {
    uint32_t* label = labels.data();
    uint32_t at = cell + shift, next = label[at];
    while (!(next & kFound)) {
      const uint32_t after = label[next];
      label[at] = after, at = next, next = after;
    }
    return next & ~kFound;
  }
  // the same, and shows it in `found`
  uint32_t settle(uint32_t cell) {
    const uint32_t basin = of(cell);
    labels[cell + shift] = basin | kFound;
    return basin;
  }
  uint32_t found(uint32_t cell) const { return labels[cell + shift] & ~kFound; }

  uint32_t root(uint32_t basin) const { return index_of(key[basin] ^ flip); }
};

// what a label is: that of the row before, of the cell before, a cell further on, or a new basin; masks, since hooks look random
struct Follow {
  uint32_t row, side, ahead, fresh;
};
constexpr uint32_t kYes = ~uint32_t{0};
constexpr Follow kFollowPixel[8] = {{0, 0, 0, kYes}, {kYes, 0, 0, 0}, {0, kYes, 0, 0}, {0, 0, kYes, 0}, {0, 0, kYes, 0}};
constexpr Follow kFollowSquare[4] = {{0, 0, 0, kYes}, {kYes, 0, 0, 0}, {0, kYes, 0, 0}, {0, 0, kYes, 0}};

inline void find_pixel_basins(const Cubical<2>& grid, const uint32_t* key, const uint8_t* code, Basins& basins) {
  const uint32_t n = grid.side[1], steps[8] = {0, 0, 0, n, 1};
  uint32_t* label = basins.labels.room(grid.pixels);
  uint64_t* root = basins.key.room(grid.pixels / 2 + 2);
  uint32_t count = 0;
  for (uint32_t p = 0; p < grid.pixels;) {
    const uint32_t *above = p > 0 ? label + p - n : label, end = p + n;
    for (uint32_t left = 0; p < end; ++p, ++above) {
      const uint32_t hook = pixel_hook(code[p]);
      const Follow follow = kFollowPixel[hook];
      left = (left & follow.side) | (*above & follow.row) | ((p + steps[hook]) & follow.ahead) | ((kFound | count) & follow.fresh);
      label[p] = left;
      root[count] = pack(key[p], p);
      count += follow.fresh & 1;
    }
  }
  basins.count = count;
}

inline void find_square_basins(const Cubical<2>& grid, const uint32_t* key, const uint8_t* code, Basins& basins) {
  const uint32_t n = grid.side[1];
  uint32_t* label = basins.labels.room(grid.pixels + n) + n;
  uint64_t* root = basins.key.room(grid.pixels / 2 + 2);
  std::fill_n(label - n, n, kFound);
  std::fill_n(label + grid.pixels - n, n, kFound);
  root[0] = 0;
  uint32_t count = 1;
  for (uint32_t x = grid.side[0] - 1; x-- > 0;) {
    uint32_t p = x * n + n - 1, right = kFound;
    label[p] = kFound;
    while (p-- > x * n) {
      const Follow follow = kFollowSquare[square_hook(code[p])];  // the square above is cell p, counted with those outside
      right = (right & follow.side) | (label[p + n] & follow.row) | (p & follow.ahead) | ((kFound | count) & follow.fresh);
      label[p] = right;
      root[count] = ~pack(key[p], p);  // of a root, the first corner is the largest
      count += follow.fresh & 1;
    }
  }
  basins.count = count, basins.shift = n, basins.flip = ~uint64_t{0};
}

// the edge that a cell hooked on, as (value, id); not for roots
inline uint64_t pixel_entry(const uint32_t* key, uint8_t code, uint32_t p, uint32_t n) {
  const uint32_t ids[] = {0, 2 * (p - n), 2 * (p - 1) + 1, 2 * p, 2 * p + 1};
  return pack(key[p], ids[pixel_hook(code)]);
}
inline uint64_t square_entry(const uint32_t* key, uint8_t code, uint32_t p, uint32_t n) {
  const uint32_t ids[] = {0, 2 * (p + n) + 1, 2 * (p + 1), 2 * p + 1};
  return pack(square_value(key, p, n), ids[square_hook(code)]);
}

struct Critical {
  uint32_t id, pixel[2], square[2];  // basins at its ends and on its sides
};

// the critical edges of a picture, in order
class CriticalEdges {
 public:
  size_t size = 0;
  // (value, position in `edges`), sorted
  Indexed<uint32_t>* order = nullptr;
  Buffer<Critical> edges;

  // pixels, squares: null where they are not wanted
  void find(const Cubical<2>& grid, const uint32_t* key, const uint8_t* code, Basins* pixels, Basins* squares) {
    const uint32_t n = grid.side[1];
    const size_t most = count(code, grid.pixels);
    Critical* edge = edges.room(most);
    Indexed<uint32_t>*record = records_.room(most), *spare = spare_.room(most);
    size = 0;
    for (uint32_t first = 0; first < grid.pixels; first += 8) {
      for (uint64_t flags = flags_at(code + first); flags != 0; flags &= flags - 1) {
        const uint32_t bit = static_cast<uint32_t>(std::countr_zero(flags)), p = first + bit / 8, across = bit & 1;
        const uint32_t q = p + (across ? 1 : n), before = across ? n : 1;
        record[size] = {std::max(key[p], key[q]), static_cast<uint32_t>(size)};
        edge[size].id = 2 * p + across;
        if (pixels != nullptr) edge[size].pixel[0] = pixels->of(p), edge[size].pixel[1] = pixels->of(q);
        if (squares != nullptr) edge[size].square[0] = squares->of(p - before), edge[size].square[1] = squares->of(p);
        ++size;
      }
    }
    order = sort_records(record, spare, size);
  }

 private:
  // of eight pixels
  static uint64_t flags_at(const uint8_t* code) {
    uint64_t flags;
    std::memcpy(&flags, code, 8);
    return flags & 0x0303030303030303u;
  }
  static size_t count(const uint8_t* code, uint32_t pixels) {
    size_t sum = 0;
    for (uint32_t first = 0; first < pixels; first += 8) sum += static_cast<size_t>(std::popcount(flags_at(code + first)));
    return sum;
  }
  Buffer<Indexed<uint32_t>> records_, spare_;
};

}  // namespace nearlinear::betti

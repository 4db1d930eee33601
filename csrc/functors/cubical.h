// cells of an image as a cubical complex: pixels are vertices, a cell is its first pixel and the axes that it spans.
//
// A cell has the value of its largest corner. Cells of one dimension are ordered by (value, first pixel, type): edges have the type of
// the axis they span; faces of a volume, of which a pixel has three, that of their normal axis. Ids: D * pixel + type of edges and faces,
// the first pixel of top cells; `outside` is the node beyond the border, the largest of all top cells.
#pragma once
#include <cstdint>

#include "ordered_key.h"

namespace nearlinear {

template <int D>
struct Cubical {
  static_assert(D == 2 || D == 3);
  uint32_t side[D], stride[D], pixels;

  explicit Cubical(const int64_t (&shape)[D]) {
    pixels = 1;
    for (int a = D - 1; a >= 0; --a) side[a] = static_cast<uint32_t>(shape[a]), stride[a] = pixels, pixels *= side[a];
  }

  NL_HD uint32_t outside() const { return pixels; }
  NL_HD void coordinates(uint32_t pixel, uint32_t (&x)[D]) const {
    for (int a = D - 1; a >= 0; --a) x[a] = pixel % side[a], pixel /= side[a];
  }
  NL_HD bool has_next(const uint32_t (&x)[D], int axis) const { return x[axis] + 1 < side[axis]; }

  // calls f(corner) for the corners of the cell at `pixel` that spans the axes whose bits are set, first to last
  template <typename F>
  NL_HD void for_corners(uint32_t pixel, unsigned axes, F&& f) const {
    for (unsigned c = 0; c < (1u << D); ++c) {
      unsigned spanned = 0;
      uint32_t corner = pixel;
      for (int a = 0; a < D; ++a)
        if (c >> (D - 1 - a) & 1) spanned |= 1u << a, corner += stride[a];
      if ((spanned & ~axes) == 0) f(corner);
    }
  }
  template <typename key_t>
  NL_HD key_t value(const key_t* key, uint32_t pixel, unsigned axes) const {
    key_t largest = key[pixel];
    for_corners(pixel, axes, [&](uint32_t corner) { largest = key[corner] > largest ? key[corner] : largest; });
    return largest;
  }
  // the pixel that has the cell's value: the last of equal corners, but of the cubes of a volume the first
  template <typename key_t>
  NL_HD uint32_t critical_pixel(const key_t* key, uint32_t pixel, unsigned axes) const {
    const bool first = D == 3 && axes == all_axes;
    uint32_t best = pixel;
    for_corners(pixel, axes, [&](uint32_t corner) {
      if (key[corner] > key[best] || (!first && key[corner] == key[best])) best = corner;
    });
    return best;
  }

  static constexpr unsigned all_axes = (1u << D) - 1;
};

// the pixel that has the value of a cell of dimension `dim`, given by its id
template <int D, typename key_t>
NL_HD uint32_t critical_pixel_of(const Cubical<D>& grid, const key_t* key, uint32_t cell, int dim) {
  if (dim == 0) return cell;
  if (dim == D) return grid.critical_pixel(key, cell, grid.all_axes);
  const uint32_t pixel = cell / D, type = cell % D;
  if (dim == 1) return key[pixel + grid.stride[type]] >= key[pixel] ? pixel + grid.stride[type] : pixel;
  return grid.critical_pixel(key, pixel, grid.all_axes & ~(1u << type));
}

}  // namespace nearlinear

// persistence pairs of dimension 1 of volumes by reduction of the boundary matrix over Z / 2: columns are faces, rows edges.
//
// Rows in the order of one image and columns in that of the same or another give the pairs of the image, or those of its image in the
// other. Faces that join two components of cubes would reduce to nothing and are not given as columns ("clearing").
#pragma once
#include <algorithm>
#include <iterator>

#include "betti_sweeps.h"

namespace nearlinear::betti {

// position of every edge in the order of an image
inline std::vector<uint32_t> positions(const Cells& edges, size_t ids) {
  std::vector<uint32_t> position(ids, kNone);
  for (size_t i = 0; i < edges.size(); ++i) position[edges[i].index] = static_cast<uint32_t>(i);
  return position;
}

inline void boundary(const Cubical<3>& grid, uint32_t face, const std::vector<uint32_t>& position, std::vector<uint32_t>& column) {
  const uint32_t p = face / 3, normal = face % 3;
  column.clear();
  for (uint32_t a = 0; a < 3; ++a) {
    if (a == normal) continue;
    const uint32_t other = 3 - normal - a;
    column.push_back(position[3 * p + a]);
    column.push_back(position[3 * (p + grid.stride[other]) + a]);
  }
  std::sort(column.begin(), column.end());
}

// face of which each row (a position among the edges) is the birth, or kNone
inline std::vector<uint32_t> reduce(const Cubical<3>& grid, const Cells& faces, const std::vector<uint32_t>& position, size_t rows) {
  std::vector<uint32_t> face_of(rows, kNone), column, sum;
  std::vector<std::vector<uint32_t>> stored(rows);
  for (const Indexed<uint32_t> face : faces) {
    boundary(grid, face.index, position, column);
    while (!column.empty() && face_of[column.back()] != kNone) {
      const std::vector<uint32_t>& other = stored[column.back()];
      sum.clear();
      std::set_symmetric_difference(column.begin(), column.end(), other.begin(), other.end(), std::back_inserter(sum));
      column.swap(sum);
    }
    if (column.empty()) continue;
    face_of[column.back()] = face.index;
    stored[column.back()] = column;
  }
  return face_of;
}

}  // namespace nearlinear::betti

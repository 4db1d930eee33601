// bars as rows of pixels, the form in which the ops give them.
#pragma once
#include "betti_bars.h"

namespace nearlinear::betti {

using Row2 = std::array<uint32_t, 2>;
using Row4 = std::array<uint32_t, 4>;

// rows of one image and dimension: pixels
struct Rows {
  std::vector<Row4> matched;
  std::vector<Row2> input, target;
};

// bars of dimension d as pixels; those that die where no cell enters are none, and their partners stay alone
template <int D>
void to_rows(const Cubical<D>& grid, int d, Keys keys, const Matching& m, uint32_t infinite, Rows& out) {
  const auto row = [&](const uint32_t* key, Bar bar) {
    return Row2{critical_pixel_of(grid, key, bar.birth, d), critical_pixel_of(grid, key, bar.death, d + 1)};
  };
  std::vector<uint8_t> used(m.target.size(), 0);
  out.matched.clear(), out.input.clear(), out.target.clear();
  const size_t pairs = m.input.size() - static_cast<size_t>(std::count(m.partner.begin(), m.partner.end(), kNone));
  out.matched.reserve(pairs), out.input.reserve(m.input.size() - pairs), out.target.reserve(m.target.size() - pairs);
  for (size_t i = 0; i < m.input.size(); ++i) {
    const auto [birth, death] = row(keys.input, m.input[i]);
    const uint32_t j = m.partner[i];
    const bool gone = keys.input[death] == infinite;
    if (j != kNone) {
      const auto [birth2, death2] = row(keys.target, m.target[j]);
      if (!gone && keys.target[death2] != infinite) {
        used[j] = 1;
        out.matched.push_back({birth, death, birth2, death2});
        continue;
      }
    }
    if (!gone) out.input.push_back({birth, death});
  }
  for (size_t j = 0; j < m.target.size(); ++j) {
    if (used[j]) continue;
    const auto [birth, death] = row(keys.target, m.target[j]);
    if (keys.target[death] != infinite) out.target.push_back({birth, death});
  }
}

}  // namespace nearlinear::betti

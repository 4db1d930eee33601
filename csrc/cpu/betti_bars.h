// what the kernels of Betti matching take and give: images as keys, bars as cells.
#pragma once
#include <array>
#include <cstdint>
#include <limits>
#include <vector>

namespace nearlinear::betti {

constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();

// images of one instance in the order of the filtration; target may be null: bars of the input alone
struct Keys {
  const uint32_t *input, *target;
};

struct Bar {
  uint32_t birth, death;  // cells
};

// Of one homology dimension. Bars are in the order of their rows: by pixel of birth in dimension 0, by dying top cell in the highest,
// by edge of birth in dimension 1 of volumes.
struct Matching {
  std::vector<Bar> input, target;
  std::vector<uint32_t> partner;  // of each input bar: a target bar, or kNone
};

template <int D>
using Matchings = std::array<Matching, D>;

}  // namespace nearlinear::betti

// bars of one image, and the Betti matching of two, dimension by dimension.
#pragma once
#include <array>

#include "betti_sweeps.h"

namespace nearlinear::betti {

// images of one instance in the order of the filtration; target may be null: bars of the input alone
struct Keys {
  const uint32_t *input, *target;
};

template <int D>
using Matchings = std::array<Matching, D>;

template <int D>
class Instance {
 public:
  Instance(const Cubical<D>& grid, Keys keys, std::array<bool, D> wanted, bool positive)
      : grid_(grid), positive_(positive), wanted_(wanted) {
    images_[0].key = keys.input, images_[1].key = keys.target;
    if (keys.target != nullptr) {
      smaller_.resize(grid.pixels);
      for (uint32_t p = 0; p < grid.pixels; ++p) smaller_[p] = std::min(keys.input[p], keys.target[p]);
      images_[2].key = smaller_.data();
    }
  }

  void run(Matchings<D>& out) {
    if (wanted_[D - 1]) top_dimension(out[D - 1]);
    if (wanted_[0]) lowest_dimension(out[0]);
  }

 private:
  struct Image {
    const uint32_t* key = nullptr;
    Cells facets, edges;  // facets that joined nothing, edges in order
  };
  bool pair() const { return images_[2].key != nullptr; }

  void top_dimension(Matching& m) {
    std::array<std::vector<uint32_t>, 3> top;
    for (size_t i = 0; i < 3; ++i) {
      if (images_[i].key == nullptr) continue;
      top[i].resize(grid_.pixels);
      for_pixels(grid_, [&](uint32_t p, const uint32_t (&x)[D]) {
        bool cell = true;
        for (int a = 0; a < D; ++a) cell = cell && grid_.has_next(x, a);
        if (cell) top[i][p] = grid_.value(images_[i].key, p, grid_.all_axes);
      });
    }
    std::array<DualSweep, 3> sweeps;
    for (size_t i = 0; i < 3; ++i) {
      if (images_[i].key == nullptr) continue;
      const uint32_t* pay = i < 2 && pair() ? top[2].data() : nullptr;
      sweeps[i] = dual_sweep(grid_, top[i].data(), pay, sorted_facets(grid_, images_[i].key), positive_);
      images_[i].facets = std::move(sweeps[i].rest);
    }
    m.input = std::move(sweeps[0].bars), m.target = std::move(sweeps[1].bars);
    m.partner.assign(m.input.size(), kNone);
    for (const Bar bar : sweeps[2].bars) {
      const uint32_t i = sweeps[0].bar_of_death[bar.death], j = sweeps[1].bar_of_death[bar.death];
      if (i != kNone && j != kNone) m.partner[i] = j;
    }
    sort_rows(m, [](Bar bar) { return bar.death; });
  }

  void lowest_dimension(Matching& m) {
    std::array<std::vector<uint32_t>, 2> bar_of_birth;
    std::array<std::vector<Bar>*, 2> bars{&m.input, &m.target};
    for (size_t i = 0; i < 3; ++i) {
      if (images_[i].key == nullptr) continue;
      // the facets of a picture are its edges: those that joined nothing in the dual make the spanning tree
      images_[i].edges = D == 2 && wanted_[D - 1] ? images_[i].facets : sorted_edges(grid_, images_[i].key);
    }
    for (size_t i = 0; i < 2; ++i) {
      if (images_[i].key == nullptr) continue;
      bar_of_birth[i].assign(grid_.pixels, kNone);
      primal_sweep(grid_, images_[i].key, images_[i].edges, [&](Indexed<uint32_t> edge, uint32_t dead, uint32_t) {
        if (edge.key == images_[i].key[dead]) return;
        bar_of_birth[i][dead] = static_cast<uint32_t>(bars[i]->size());
        bars[i]->push_back({dead, edge.index});
      });
    }
    m.partner.assign(m.input.size(), kNone);
    if (pair()) match_lowest(bar_of_birth, m);
    sort_rows(m, [](Bar bar) { return bar.birth; });
  }

  void match_lowest(const std::array<std::vector<uint32_t>, 2>& bar_of_birth, Matching& m) {
    std::array<std::vector<uint32_t>, 2> least;  // smallest pixel of each component, in the orders of input and target
    for (auto& l : least) {
      l.resize(grid_.pixels);
      std::iota(l.begin(), l.end(), 0u);
    }
    primal_sweep(grid_, images_[2].key, images_[2].edges, [&](Indexed<uint32_t> edge, uint32_t dead, uint32_t root) {
      std::array<uint32_t, 2> bar;
      bool positive = true;
      for (size_t i = 0; i < 2; ++i) {
        const uint32_t* key = images_[i].key;
        uint32_t &kept = least[i][root], lost = least[i][dead];
        if (key[lost] < key[kept] || (key[lost] == key[kept] && lost < kept)) std::swap(kept, lost);
        bar[i] = bar_of_birth[i][lost];
        positive = positive && key[lost] < edge.key;
      }
      if (edge.key == images_[2].key[dead] || bar[0] == kNone || bar[1] == kNone || (positive_ && !positive)) return;
      m.partner[bar[0]] = bar[1];
    });
  }

  const Cubical<D> grid_;
  const bool positive_;
  const std::array<bool, D> wanted_;
  std::array<Image, 3> images_;  // input, target, the smaller of both
  std::vector<uint32_t> smaller_;
};

}  // namespace nearlinear::betti

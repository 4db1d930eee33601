// bars of a picture, and the Betti matching of two, by basins and trees.
//
// Order of work: squares of h, then everything of input and of target, then pixels of h. What is only needed on the way is shared by the
// images, so that a pixel costs about 70 bytes. Basins are numbered by their roots, so tables of basins give the rows in order.
#pragma once
#include "betti_bars.h"
#include "betti_trees.h"

namespace nearlinear::betti {

// works on one image after another and keeps its memory
class Picture {
 public:
  Picture(const Cubical<2>& grid, std::array<bool, 2> wanted, bool positive)
      : grid_(grid), wanted_{wanted[0], wanted[1] && grid.side[0] > 1 && grid.side[1] > 1}, positive_(positive) {}

  void run(Keys keys, Matchings<2>& out) {
    for (Matching& m : out) m.input.clear(), m.target.clear(), m.partner.clear();
    pair_ = keys.target != nullptr;
    key_ = {keys.input, keys.target, smaller_.room(pair_ ? grid_.pixels : 0)};
    if (pair_) {
      smaller_row(keys.input, keys.target, grid_.pixels, smaller_.data());
      find_basins(2);
      if (wanted_[1]) find_squares_of_both();
    }
    for (size_t i = 0; i < (pair_ ? 2 : 1); ++i) {
      find_basins(i);
      if (wanted_[1]) find_squares(i, out[1]);
      if (wanted_[0]) find_pixels(i, out[0]);
    }
    for (Matching& m : out) m.partner.resize(m.input.size(), kNone);
    if (pair_ && wanted_[1]) match_squares(out[1]);
    if (pair_ && wanted_[0]) match_pixels(out[0]);
  }

 private:
  static constexpr std::array<Payload*, 0> kNoPayloads{};
  static bool never(size_t, uint32_t) { return false; }

  Basins& squares(size_t i) { return squares_[i == 2]; }
  std::vector<TreeEdge>& rest(size_t i) { return rest_[i == 2]; }
  const uint8_t* code(size_t i) const { return codes_[i == 2].data(); }

  // basins of image i and the critical edges between them; all edges are left for pixels if there are no squares
  void find_basins(size_t i) {
    make_codes(grid_, key_[i], rows_, codes_[i == 2]);
    find_pixel_basins(grid_, key_[i], code(i), pixels_[i]);
    if (wanted_[1]) find_square_basins(grid_, key_[i], code(i), squares(i));
    if (wanted_[1] && pair_ && i != 2) load_squares(squares(i));
    critical_.find(grid_, key_[i], code(i), pixels_[i], wanted_[1] ? &squares(i) : nullptr);
    std::vector<TreeEdge>& left = rest(i);
    left.resize(critical_.size);
    if (!wanted_[1])
      for (size_t k = 0; k < critical_.size; ++k) left[k] = pixel_edge(k);
  }

  TreeEdge pixel_edge(size_t k) const {
    const Critical& c = critical_.edges[critical_.order[k].index];
    return {critical_.order[k].key, c.id, c.pixel[0], c.pixel[1]};
  }

  // squares from the largest to the smallest; edges that join none are left for the pixels
  template <size_t P>
  void sweep_squares(size_t i, Tree& tree, const std::array<Payload*, P>& payloads) {
    const size_t size = critical_.size;
    std::vector<TreeEdge>& left = rest(i);
    size_t kept = size;
    const auto edge_at = [&](size_t k) {
      const Indexed<uint32_t> record = critical_.order[size - 1 - k];
      const Critical& c = critical_.edges[record.index];
      return TreeEdge{~record.key, ~c.id, c.square[0], c.square[1]};
    };
    const auto keep = [&](size_t k) { left[--kept] = pixel_edge(size - 1 - k); };
    tree.sweep(squares(i), size, edge_at, keep, payloads, positive_, never);
    left.erase(left.begin(), left.begin() + static_cast<std::ptrdiff_t>(kept));
  }
  template <size_t P, typename can_t>
  void sweep_pixels(size_t i, Tree& tree, const std::array<Payload*, P>& payloads, can_t can) {
    const TreeEdge* edges = rest(i).data();
    tree.sweep(pixels_[i], rest(i).size(), [=](size_t k) { return edges[k]; }, [](size_t) {}, payloads, positive_, can);
  }

  void find_squares_of_both() {
    sweep_squares(2, both_, kNoPayloads);
    for (auto& death : image_death_) std::fill_n(death.room(squares(2).count), squares(2).count, kNone);
  }

  // bars of dimension 1 of image i, and the squares of h that meet them
  void find_squares(size_t i, Matching& m) {
    Basins& own = squares(i);
    if (!pair_) {
      sweep_squares(i, tree_, kNoPayloads);
    } else {
      sweep_squares<1>(i, tree_, {&payloads_[0]});
      const uint32_t n = grid_.side[1];
      payloads_[0].resolve(
          own, grid_.pixels - n, [&](uint32_t p) { return ~pack(square_value(key_[2], p, n), p); },
          [&](uint32_t p) { return ~square_entry(key_[i], code(i)[p], p, n); });
    }
    std::vector<Bar>& bars = i == 0 ? m.input : m.target;
    for (uint32_t b = own.count; b-- > 1;) {
      if (tree_.bars[b] == kNone) continue;
      const uint32_t met = pair_ ? payloads_[0].met[b] : kNone, basin = met == kNone ? kNone : squares(2).of_root(met);
      if (basin != kNone) image_death_[i][basin] = static_cast<uint32_t>(bars.size());
      bars.push_back({tree_.bars[b], own.root(b)});
    }
  }

  // largest squares of h in the basins of an image, and which of them hold one that dies in h
  void load_squares(Basins& own) {
    Payload& payload = payloads_[0];
    const uint32_t n = grid_.side[1];
    payload.start(own.count);
    payload.least[0] = 0;
    uint32_t* value = rows_.room(n);
    for (uint32_t first = 0; first + n < grid_.pixels; first += n) {
      square_row(key_[2] + first, key_[2] + first + n, n - 1, value);
      for (uint32_t y = 0; y + 1 < n; ++y) {
        const uint32_t p = first + y, basin = own.settle(p);
        payload.add(basin, ~pack(value[y], p));
      }
    }
    if (positive_) return;
    for (uint32_t b = 1; b < squares(2).count; ++b)
      if (both_.bars[b] != kNone) payload.hope[own.found(squares(2).root(b))] = 1;
  }

  void find_pixels(size_t i, Matching& m) {
    sweep_pixels(i, tree_, kNoPayloads, never);
    const uint32_t basins = pixels_[i].count;
    uint32_t* row = bar_of_birth_[i].room(basins);
    std::vector<Bar>& bars = i == 0 ? m.input : m.target;
    for (uint32_t b = 0; b < basins; ++b) {
      row[b] = tree_.bars[b] == kNone ? kNone : static_cast<uint32_t>(bars.size());
      if (row[b] != kNone) bars.push_back({pixels_[i].root(b), tree_.bars[b]});
    }
  }

  // the bar of image i that is born at a pixel
  uint32_t bar_born(size_t i, uint32_t pixel) const {
    const uint32_t basin = pixel == kNone ? kNone : pixels_[i].of_root(pixel);
    return basin == kNone ? kNone : bar_of_birth_[i][basin];
  }

  void match_squares(Matching& m) const {
    for (uint32_t b = 1; b < squares_[1].count; ++b) {
      const uint32_t i = image_death_[0][b], j = image_death_[1][b];
      if (both_.bars[b] != kNone && i != kNone && j != kNone) m.partner[i] = j;
    }
  }

  void match_pixels(Matching& m) {
    Basins& own = pixels_[2];
    const uint32_t n = grid_.side[1];
    load_pixels(own, m);
    sweep_pixels<2>(2, tree_, {&payloads_[0], &payloads_[1]}, [&](size_t i, uint32_t pixel) { return bar_born(i, pixel) != kNone; });
    for (size_t i = 0; i < 2; ++i)
      payloads_[i].resolve(
          own, grid_.pixels, [&](uint32_t p) { return pack(key_[i][p], p); },
          [&](uint32_t p) { return pixel_entry(key_[2], code(2)[p], p, n); });
    for (uint32_t b = 0; b < own.count; ++b) {
      if (tree_.bars[b] == kNone) continue;
      const uint32_t i = bar_born(0, payloads_[0].met[b]), j = bar_born(1, payloads_[1].met[b]);
      if (i != kNone && j != kNone) m.partner[i] = j;
    }
  }

  void load_pixels(Basins& own, const Matching& m) {
    for (Payload& payload : payloads_) payload.start(own.count);
    for (uint32_t p = grid_.pixels; p-- > 0;) {
      const uint32_t basin = own.settle(p);
      for (size_t i = 0; i < 2; ++i) payloads_[i].add(basin, pack(key_[i][p], p));
    }
    if (positive_) return;
    for (const Bar bar : m.input) payloads_[0].hope[own.found(bar.birth)] = 1;
    for (const Bar bar : m.target) payloads_[1].hope[own.found(bar.birth)] = 1;
  }

  NL_CLONES static void smaller_row(const uint32_t* __restrict f, const uint32_t* __restrict g, int64_t n, uint32_t* __restrict h) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) h[i] = f[i] < g[i] ? f[i] : g[i];
  }

  const Cubical<2> grid_;
  const std::array<bool, 2> wanted_;
  const bool positive_;
  bool pair_ = false;
  std::array<const uint32_t*, 3> key_{};  // of input, target, and h, the smaller of both
  Buffer<uint32_t> smaller_, rows_;
  std::array<Buffer<uint8_t>, 2> codes_;  // this and the next two: of the image at work, of h
  std::array<Basins, 2> squares_;
  std::array<std::vector<TreeEdge>, 2> rest_;
  std::array<Basins, 3> pixels_;
  CriticalEdges critical_;
  std::array<Payload, 2> payloads_;
  Tree tree_, both_;                              // both_: squares of h
  std::array<Buffer<uint32_t>, 2> image_death_;   // of a square of h: the bar that dies in it in the image of h
  std::array<Buffer<uint32_t>, 2> bar_of_birth_;  // of a basin of pixels
};

}  // namespace nearlinear::betti

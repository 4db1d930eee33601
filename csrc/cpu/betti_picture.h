// bars of a picture, and the Betti matching of two, by basins and trees.
//
// Order of work: squares of h, then everything of input and of target, then pixels of h. What is only needed on the way is shared by the
// images, so that a pixel costs 27 (soft prediction) to 76 bytes (noise). Basins are numbered by their roots, so tables of basins give the
// rows in order.
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
      if (wanted_[0]) keep_rest();
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
  static constexpr size_t kAhead = 16;
  static bool never(size_t, uint32_t) { return false; }

  Basins& pixels(size_t i) { return pixels_[i == 2]; }
  const uint8_t* code(size_t i) const { return codes_[i == 2].data(); }

  // basins of image i and the critical edges between them; all edges are left for pixels if there are no squares
  void find_basins(size_t i) {
    make_codes(grid_, key_[i], rows_, codes_[i == 2]);
    if (wanted_[0]) find_pixel_basins(grid_, key_[i], code(i), pixels(i));
    if (wanted_[1]) find_square_basins(grid_, key_[i], code(i), squares_);
    if (wanted_[1] && pair_ && i != 2) load_squares();
    critical_.find(grid_, key_[i], code(i), wanted_[0] ? &pixels(i) : nullptr, wanted_[1] ? &squares_ : nullptr);
    first_ = 0;
  }

  TreeEdge pixel_edge(size_t k) const {
    if (k + kAhead < critical_.size) __builtin_prefetch(&critical_.edges[critical_.order[k + kAhead].index]);
    const Indexed<uint32_t> record = critical_.order[k];
    const Critical& c = critical_.edges[record.index];
    return {record.key, c.id, c.pixel[0], c.pixel[1]};
  }

  // squares from the largest to the smallest; edges that join none are left for the pixels, from first_ on
  template <size_t P>
  void sweep_squares(const std::array<Payload*, P>& payloads) {
    const size_t size = first_ = critical_.size;
    Indexed<uint32_t>* order = critical_.order;
    const auto edge_at = [&](size_t k) {
      if (size > k + kAhead) __builtin_prefetch(&critical_.edges[order[size - 1 - k - kAhead].index]);
      const Indexed<uint32_t> record = order[size - 1 - k];
      const Critical& c = critical_.edges[record.index];
      return TreeEdge{~record.key, ~c.id, c.square[0], c.square[1]};
    };
    tree_.sweep(squares_, size, edge_at, [&](size_t k) { order[--first_] = order[size - 1 - k]; }, payloads, positive_, never);
  }

  // squares of h that die
  void find_squares_of_both() {
    sweep_squares(kNoPayloads);
    dead_.start(grid_.pixels);
    for (uint32_t b = 1; b < squares_.count; ++b)
      if (tree_.bars[b] != kNone) dead_.insert(squares_.root(b));
    const uint32_t count = dead_.number();
    for (std::vector<uint32_t>& bars : bar_of_death_) bars.assign(count, kNone);
  }

  std::vector<Bar>& room_for_bars(std::vector<Bar>& bars, uint32_t basins) const {
    bars.reserve(basins - static_cast<size_t>(std::count(tree_.bars.data(), tree_.bars.data() + basins, kNone)));
    return bars;
  }

  // edges of h for the pixels: they come last
  void keep_rest() {
    rest_.resize(critical_.size - first_);
    for (size_t k = 0; k < rest_.size(); ++k) rest_[k] = pixel_edge(first_ + k);
  }

  // bars of dimension 1 of image i, and the squares of h that meet them
  void find_squares(size_t i, Matching& m) {
    if (!pair_) {
      sweep_squares(kNoPayloads);
    } else {
      sweep_squares<1>({&payloads_[0]});
      const uint32_t n = grid_.side[1];  // the last column is outside, but its corners must be in memory
      payloads_[0].resolve(
          squares_, grid_.pixels - n - 1, [&](uint32_t p) { return ~pack(square_value(key_[2], p, n), p); },
          [&](uint32_t p) { return ~square_entry(key_[i], code(i)[p], p, n); });
    }
    std::vector<Bar>& bars = room_for_bars(i == 0 ? m.input : m.target, squares_.count);
    for (uint32_t b = squares_.count; b-- > 1;) {
      if (tree_.bars[b] == kNone) continue;
      const uint32_t dead = pair_ ? dead_.find(payloads_[0].met[b]) : kNone;
      if (dead != kNone) bar_of_death_[i][dead] = static_cast<uint32_t>(bars.size());
      bars.push_back({tree_.bars[b], squares_.root(b)});
    }
  }

  // largest squares of h in the basins of an image, and which of them hold one that dies in h
  void load_squares() {
    Payload& payload = payloads_[0];
    const uint32_t n = grid_.side[1];
    payload.start(squares_.count);
    payload.least[0] = 0;
    uint32_t* value = rows_.room(n);
    for (uint32_t first = 0; first + n < grid_.pixels; first += n) {
      square_row(key_[2] + first, key_[2] + first + n, n - 1, value);
      for (uint32_t y = 0; y + 1 < n; ++y) {
        const uint32_t p = first + y, basin = squares_.settle(p);
        payload.add(basin, ~pack(value[y], p));
      }
    }
    if (!positive_) dead_.for_each([&](uint32_t p) { payload.hope[squares_.found(p)] = 1; });
  }

  void find_pixels(size_t i, Matching& m) {
    tree_.sweep(
        pixels(i), critical_.size - first_, [this](size_t k) { return pixel_edge(first_ + k); }, [](size_t) {}, kNoPayloads, positive_,
        never);
    const uint32_t basins = pixels(i).count;
    std::vector<Bar>& bars = room_for_bars(i == 0 ? m.input : m.target, basins);
    born_[i].start(grid_.pixels);
    for (uint32_t b = 0; b < basins; ++b) {
      if (tree_.bars[b] == kNone) continue;
      const uint32_t p = pixels(i).root(b);
      bars.push_back({p, tree_.bars[b]}), born_[i].insert(p);
    }
    born_[i].number();
  }

  void match_squares(Matching& m) const {
    for (size_t dead = 0; dead < bar_of_death_[0].size(); ++dead)
      if (bar_of_death_[0][dead] != kNone && bar_of_death_[1][dead] != kNone) m.partner[bar_of_death_[0][dead]] = bar_of_death_[1][dead];
  }

  void match_pixels(Matching& m) {
    Basins& own = pixels(2);
    const uint32_t n = grid_.side[1];
    load_pixels(own, m);
    tree_.sweep<2>(
        own, rest_.size(), [this](size_t k) { return rest_[k]; }, [](size_t) {}, {&payloads_[0], &payloads_[1]}, positive_,
        [this](size_t i, uint32_t pixel) { return born_[i].find(pixel) != kNone; });
    for (size_t i = 0; i < 2; ++i)
      payloads_[i].resolve(
          own, grid_.pixels, [&](uint32_t p) { return pack(key_[i][p], p); },
          [&](uint32_t p) { return pixel_entry(key_[2], code(2)[p], p, n); });
    for (uint32_t b = 0; b < own.count; ++b) {
      if (tree_.bars[b] == kNone) continue;
      const uint32_t i = born_[0].find(payloads_[0].met[b]), j = born_[1].find(payloads_[1].met[b]);
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
  std::array<Buffer<uint8_t>, 2> codes_;  // of the image at work, and of h, whose pixels come last
  std::array<Basins, 2> pixels_;
  Basins squares_;
  CriticalEdges critical_;
  size_t first_ = 0;            // of the critical edges for the pixels
  std::vector<TreeEdge> rest_;  // those of h
  Tree tree_;
  std::array<Payload, 2> payloads_;
  CellSet dead_;                                       // squares with a bar of h
  std::array<std::vector<uint32_t>, 2> bar_of_death_;  // of these: the bar of input and target that dies in it in the image of h
  std::array<CellSet, 2> born_;                        // pixels with a bar of input and of target: numbers are rows
};

}  // namespace nearlinear::betti

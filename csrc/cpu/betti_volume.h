// bars of a volume, and the Betti matching of two: dimensions 0 and 2 by sweeps (betti_merges.h), dimension 1 by reduction
// (betti_loops.h). The parts of the images are independent of each other and run on several threads where there are threads to spare.
#pragma once
#include <memory>

#include "betti_bars.h"
#include "betti_loops.h"
#include "betti_merges.h"

namespace nearlinear::betti {

class Volume {
 public:
  using Wanted = std::array<bool, 3>;
  // units of work that a volume is
  static int64_t work(const Grid3& grid, bool pair, Wanted wanted) {
    const int64_t sweeps = pair ? 3 : 1, reductions = !wanted[1] ? 0 : pair ? 5 : 1;
    return (sweeps + reductions) * grid.pixels;
  }

  // keys of the images; target may be null: bars of the input alone
  Volume(const Grid3& grid, const uint32_t* input, const uint32_t* target, Wanted wanted, bool positive, Work& work)
      : grid_(grid), wanted_(wanted), positive_(positive), work_(work), images_(target != nullptr ? 3 : 1) {
    const auto value = [&](size_t i) {
      images_[i].values = std::make_unique<CellValues>(grid_, [&](uint32_t p) {
        return i == 0 ? input[p] : i == 1 ? target[p] : std::min(input[p], target[p]);
      });
    };
    each_image([&](size_t first, size_t last) {
      for (size_t i = first; i < last; ++i) value(i);
    });
  }

  // leaves early, with nothing of use, if the work is stopped
  void run(std::array<Matching, 3>& out) {
    each_image([&](size_t first, size_t last) {
      MergeScratch scratch;
      for (size_t i = first; i < last && !work_.poll(); ++i) sweep(images_[i], i, scratch);
    });
    if (work_.stopped()) return;
    if (wanted_[0]) match_lowest(out[0]);
    if (wanted_[2]) match_highest(out[2]);
    if (!wanted_[1]) return;
    each_image([&](size_t first, size_t last) {
      LoopReduction reduction(grid_, work_, grid_.pixels);
      for (size_t i = first; i < last && !work_.poll(); ++i) find_loops(images_[i], i, reduction);
    });
    if (!work_.stopped()) match_loops(out[1]);
  }

 private:
  // a bar of dimension 1, and the face that is the death of its birth in h
  struct Loop {
    uint32_t birth, death, death_in_h;
  };
  struct Image {
    std::unique_ptr<CellValues> values;
    Field<uint8_t> largest_edge, smallest_face;
    std::vector<Merge> lowest, highest;
    std::vector<Loop> loops;
    LoopOrder order() const { return {values->edges, values->faces, largest_edge, smallest_face}; }
  };
  bool pair() const { return images_.size() == 3; }
  const CellValues& values(size_t i) const { return *images_[i].values; }

  template <typename F>
  void each_image(F&& f) {
    parallel_for(0, static_cast<int64_t>(images_.size()), 1,
                 [&](int64_t first, int64_t last) { f(static_cast<size_t>(first), static_cast<size_t>(last)); });
  }

  void sweep(Image& image, size_t i, MergeScratch& scratch) {
    CellValues& v = *image.values;
    if (wanted_[0] || wanted_[1]) {
      const Values *f = i == 2 ? &values(0).pixels : nullptr, *g = i == 2 ? &values(1).pixels : nullptr;
      image.lowest = Merges<false>(grid_, v.pixels, v.edges, {f, g}, scratch).run(work_);
    }
    if (wanted_[1] || wanted_[2]) {
      const Values* h = i < 2 && pair() ? &values(2).cubes : nullptr;
      image.highest = Merges<true>(grid_, v.cubes, v.faces, {h, nullptr}, scratch).run(work_);
    }
    if (wanted_[1]) {
      pick_of_four(grid_, v.edges, edges_of_face, last_largest, image.largest_edge);
      pick_of_four(grid_, v.faces, faces_of_edge, first_smallest, image.smallest_face);
    }
    work_.add(grid_.pixels);
  }

  // edges and faces have 3 * pixel + type for a name outside this file
  static uint32_t id(uint32_t cell) { return 3 * (cell >> 2) + (cell & 3); }

  // bars in the order of the nodes that die; bar: the number of each node's
  template <bool kDual>
  void list(const std::vector<Merge>& merges, std::vector<Bar>& bars, std::vector<uint32_t>& bar) const {
    bar.assign(grid_.pixels, kNone);
    for (uint32_t k = 0; k < merges.size(); ++k) bar[merges[k].dead] = k;
    for (uint32_t p = 0; p < grid_.pixels; ++p) {
      if (bar[p] == kNone) continue;
      const uint32_t link = id(merges[bar[p]].link);
      bar[p] = static_cast<uint32_t>(bars.size());
      bars.push_back(kDual ? Bar{link, p} : Bar{p, link});
    }
  }

  void match_lowest(Matching& m) {
    std::array<std::vector<uint32_t>, 2> bar;
    list<false>(images_[0].lowest, m.input, bar[0]);
    m.partner.assign(m.input.size(), kNone);
    if (!pair()) return;
    list<false>(images_[1].lowest, m.target, bar[1]);
    for (const Merge& merge : images_[2].lowest) {
      const auto [f, g] = merge.payload;
      const bool positive = values(0).pixels[0][f] < merge.value && values(1).pixels[0][g] < merge.value;
      if (bar[0][f] != kNone && (positive || !positive_)) m.partner[bar[0][f]] = bar[1][g];
    }
  }

  void match_highest(Matching& m) {
    std::array<std::vector<uint32_t>, 2> bar, of_death_in_h;
    list<true>(images_[0].highest, m.input, bar[0]);
    m.partner.assign(m.input.size(), kNone);
    if (!pair()) return;
    list<true>(images_[1].highest, m.target, bar[1]);
    for (size_t i = 0; i < 2; ++i) {
      of_death_in_h[i].assign(grid_.pixels, kNone);
      for (const Merge& merge : images_[i].highest)
        if (!positive_ || merge.value < values(2).cubes[0][merge.payload[0]]) of_death_in_h[i][merge.payload[0]] = bar[i][merge.dead];
    }
    for (const Merge& merge : images_[2].highest)
      if (const uint32_t i = of_death_in_h[0][merge.dead]; i != kNone) m.partner[i] = of_death_in_h[1][merge.dead];
  }

  void find_loops(Image& image, size_t i, LoopReduction& reduction) {
    const LoopOrder own = image.order();
    reduction.run(own, own, i == 2);
    if (work_.stopped()) return;
    if (i == 2) return reduction.for_alone([&](uint32_t face) { image.loops.push_back({kNone, face, face}); });
    for (const uint32_t edge : reduction.lone_edges())
      if (const uint32_t face = reduction.face_of(edge); own.edges.at(edge) != own.faces.at(face))
        image.loops.push_back({edge, face, kNone});
    if (!pair()) return;
    reduction.run(own, images_[2].order(), false);
    if (work_.stopped()) return;
    for (Loop& loop : image.loops) loop.death_in_h = reduction.face_of(loop.birth);
  }

  void match_loops(Matching& m) {
    std::array<std::vector<Bar>*, 2> bars{&m.input, &m.target};
    for (size_t i = 0; i < std::min<size_t>(images_.size(), 2); ++i)
      for (const Loop& loop : images_[i].loops) bars[i]->push_back({id(loop.birth), id(loop.death)});
    m.partner.assign(m.input.size(), kNone);
    if (!pair()) return;
    constexpr uint32_t kLeft = kNone - 1;  // deaths in h that no bar of the target has
    Values bar;
    bar.reset(grid_, 3, kNone);
    for (const Loop& loop : images_[2].loops) bar.at(loop.death) = kLeft;
    const auto dies_in_h = [&](size_t i, const Loop& loop) {
      return bar.at(loop.death_in_h) != kNone && (!positive_ || values(i).edges.at(loop.birth) < values(2).faces.at(loop.death_in_h));
    };
    for (uint32_t j = 0; j < m.target.size(); ++j)
      if (const Loop& loop = images_[1].loops[j]; dies_in_h(1, loop)) bar.at(loop.death_in_h) = j;
    for (uint32_t i = 0; i < m.input.size(); ++i)
      if (const Loop& loop = images_[0].loops[i]; dies_in_h(0, loop) && bar.at(loop.death_in_h) != kLeft)
        m.partner[i] = bar.at(loop.death_in_h);
  }

  const Grid3 grid_;
  const Wanted wanted_;
  const bool positive_;
  Work& work_;
  std::vector<Image> images_;  // input, target, h: the smaller of both
};

}  // namespace nearlinear::betti

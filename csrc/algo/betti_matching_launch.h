// what csrc/cuda/betti_matching.cu and csrc/algo/betti_matching.cu meet at: plain pointers and sizes, neither torch nor CCCL.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../functors/betti_loss.h"
#include "../functors/cubical.h"

namespace nearlinear::algo {

// pictures [instances, rows, columns]; a signal is a picture with one row
template <typename scalar_t>
struct BettiImages {
  const scalar_t *input, *target;
  bool pair;  // else there is no target: bars of the input alone
  int64_t instances, rows, columns;
  bool superlevel;

  int64_t sides() const { return pair ? 2 : 1; }
  int64_t pixels() const { return rows * columns; }
  NL_HD scalar_t value(int64_t side, int64_t at) const { return (side == 0 ? input : target)[at]; }
  NL_HD auto key(int64_t side, int64_t at) const {
    const auto k = ordered_key(value(side, at));
    return superlevel ? ~k : k;
  }
};

struct BettiOptions {
  int64_t dims;                // of homology: as many as those of the images
  bool wants_low, wants_high;  // the one of components, the one of loops
  bool positive;

  NL_HD bool wants(uint32_t dim) const { return dim == 0 ? wants_low : wants_high; }
};

struct BettiLoss {
  BettiWeights low, high;
  BettiTerms terms;
  bool essential;

  NL_HD BettiWeights weights(uint32_t dim) const { return dim == 0 ? low : high; }
};

// How many rows each table has before and with every cell, cells by image, homology dimension and place.
struct BettiCounts {
  uint32_t matched, input, target;
  NL_HD BettiCounts operator+(const BettiCounts& b) const { return {matched + b.matched, input + b.input, target + b.target}; }
};

// What the sweeps leave. A node is a pixel, which stands for itself, for a top cell and for its two edges, or the outside, the last; an
// image is input, target or the smaller of both; a slot is an image of an instance.
struct BettiWork {
  Cubical<2> grid;
  uint32_t instances, images, nodes;
  BettiOptions options;
  uint64_t* nan;           // [instances + 1] first NaN of an instance, and of all; ~0: none
  uint32_t *key, *top;     // [slots, nodes] values of pixels and of top cells
  uint8_t* hook;           // [slots, nodes] of the pixel, 16 times that of the top cell
  uint32_t* label;         // [2, slots, nodes] by dimension: the basin of each node, then the union-find forest of basins
  uint64_t* edge_value;    // [slots * pixels] slot and value of the critical edges, ascending
  uint32_t *edge, *begin;  // [slots * pixels] their ids; [slots + 1] where those of a slot begin
  uint32_t* bar;           // [2, slots, nodes] by dimension: of the pixel or top cell that dies in a merge its edge, or kNoCell
  uint32_t* image;     // [2, 2, instances, nodes] by dimension and side: of the cell that dies in the smaller, whose bar is paired with it
  uint32_t* partner;   // [2, 2, instances, nodes] of a bar of a side, the bar of the other
  BettiCounts* count;  // [instances, dims, pixels] running counts

  NL_HD int64_t slot(uint32_t k, uint32_t i) const { return static_cast<int64_t>(k) * images + i; }
  NL_HD int64_t at(int64_t slot) const { return slot * nodes; }
  NL_HD int64_t dim_at(uint32_t dim, int64_t slot) const { return (dim * int64_t{instances} * images + slot) * nodes; }
  NL_HD int64_t side_at(uint32_t dim, uint32_t side, uint32_t k) const { return ((2 * dim + side) * int64_t{instances} + k) * nodes; }
};

// Bytes of the arena: for each pixel of an image 17 for its cells, 12 for its critical edges and 8 for its bars; for each pixel of an
// instance of two 32 for images and partners. After them what is carried along a sweep, 64, takes the place of the copies while edges and
// the ranks of float64 are sorted, and that of counts, owners and terms later.
inline size_t betti_workspace(bool pair, int64_t instances, int64_t pixels) {
  const size_t images = pair ? 3 : 1, fixed = (size_t{4} << 20) + 1024 * 256;
  const size_t node = pair ? 3 * 37 + 32 + 64 : 37 + 32;
  return static_cast<size_t>(instances) * (static_cast<size_t>(pixels + 1) * node + 8 + 4 * images) + fixed;
}

// memory: betti_workspace bytes on the device of the images. The bars, their matching and counts; offsets [instances * dims + 1, 3], or
// without a target [instances * dims + 1]. Nothing waits for the device.
template <typename scalar_t>
BettiWork launch_betti_bars(BettiImages<scalar_t> images, BettiOptions options, int64_t* offsets, char* memory, size_t bytes, void* stream);

// the rows, as many as the last offsets; matched and target are null without a target
template <typename scalar_t>
void launch_betti_rows(BettiImages<scalar_t> images, BettiWork work, int64_t* matched, int64_t* input, int64_t* target, void* stream);

// loss [instances]; gradients like the images, null: not wanted
template <typename scalar_t>
void launch_betti_loss(BettiImages<scalar_t> images, BettiOptions options, BettiLoss loss, scalar_t* out, scalar_t* d_input,
                       scalar_t* d_target, char* memory, size_t bytes, void* stream);

}  // namespace nearlinear::algo

// csrc/algo/betti_matching.h on Thrust's host backend, as a library for ctypes: the source that runs on a GPU, executed by
// tests/test_betti_algo.py.
#include "../../csrc/algo/betti_matching.h"

#include <memory>

#include "../../csrc/algo/betti_terms.h"

namespace {

using namespace nearlinear;

struct Memory {
  size_t bytes;
  std::unique_ptr<char[]> data;
  Arena arena;
  template <typename scalar_t>
  explicit Memory(const algo::BettiImages<scalar_t>& images)
      : bytes(algo::betti_workspace(images.pair, images.instances, images.pixels())),
        data(std::make_unique<char[]>(bytes)),
        arena(data.get(), bytes) {}
};

// tables as large as can be; counts of the three and the position of a NaN come back through `found`
template <typename scalar_t>
int64_t bars(const scalar_t* f, const scalar_t* g, bool pair, int64_t n, int64_t rows, int64_t columns, int64_t dims, int64_t wanted,
             bool superlevel, bool positive, int64_t* matched, int64_t* input, int64_t* target, int64_t* offsets, uint64_t* nan) {
  const algo::BettiImages<scalar_t> images{f, g, pair, n, rows, columns, superlevel};
  Memory memory(images);
  const auto policy = on(memory.arena, nullptr);
  const algo::BettiOptions options{dims, (wanted & 1) != 0, (wanted & 2) != 0, positive};
  const algo::BettiWork work = algo::betti_matching(policy, memory.arena, images, options, offsets);
  algo::betti_rows(policy, images, work, matched, input, target);
  *nan = work.nan[n];
  return static_cast<int64_t>(memory.bytes - memory.arena.used());
}

// options: weights [2, 3], min_persistence
template <typename scalar_t>
int64_t loss(const scalar_t* f, const scalar_t* g, int64_t n, int64_t rows, int64_t columns, int64_t dims, const double* options,
             bool superlevel, bool positive, bool push, bool essential, scalar_t* out, scalar_t* d_input, scalar_t* d_target) {
  const algo::BettiImages<scalar_t> images{f, g, true, n, rows, columns, superlevel};
  Memory memory(images);
  const BettiWeights a{options[0], options[1], options[2]}, b{options[3], options[4], options[5]};
  const algo::BettiLoss terms{a, b, {options[6], push, superlevel}, essential};
  algo::betti_loss(on(memory.arena, nullptr), memory.arena, images, {dims, a.any(), dims == 2 && b.any(), positive}, terms, out, d_input,
                   d_target);
  return static_cast<int64_t>(memory.bytes - memory.arena.used());
}

}  // namespace

// they return the bytes of the arena that were never used
#define NL_BETTI(name, scalar_t)                                                                                                          \
  extern "C" int64_t bars_##name(const scalar_t* f, const scalar_t* g, bool pair, int64_t n, int64_t rows, int64_t columns, int64_t dims, \
                                 int64_t wanted, bool superlevel, bool positive, int64_t* matched, int64_t* input, int64_t* target,       \
                                 int64_t* offsets, uint64_t* nan) {                                                                       \
    return bars(f, g, pair, n, rows, columns, dims, wanted, superlevel, positive, matched, input, target, offsets, nan);                  \
  }                                                                                                                                       \
  extern "C" int64_t loss_##name(const scalar_t* f, const scalar_t* g, int64_t n, int64_t rows, int64_t columns, int64_t dims,            \
                                 const double* options, bool superlevel, bool positive, bool push, bool essential, scalar_t* out,         \
                                 scalar_t* d_input, scalar_t* d_target) {                                                                 \
    return loss(f, g, n, rows, columns, dims, options, superlevel, positive, push, essential, out, d_input, d_target);                    \
  }
NL_BETTI(f32, float)
NL_BETTI(f64, double)

// instances of csrc/algo/betti_matching.h for CUDA. Includes CCCL, which takes a minute to compile, and no torch header.
#include "betti_matching.h"

#include "betti_terms.h"

namespace nearlinear::algo {

template <typename scalar_t>
BettiWork launch_betti_bars(BettiImages<scalar_t> images, BettiOptions options, int64_t* offsets, char* memory, size_t bytes,
                            void* stream) {
  Arena arena(memory, bytes);
  return betti_matching(on(arena, static_cast<cudaStream_t>(stream)), arena, images, options, offsets);
}

template <typename scalar_t>
void launch_betti_rows(BettiImages<scalar_t> images, BettiWork work, int64_t* matched, int64_t* input, int64_t* target, void* stream) {
  Arena arena(nullptr, 0);
  betti_rows(on(arena, static_cast<cudaStream_t>(stream)), images, work, matched, input, target);
}

template <typename scalar_t>
void launch_betti_loss(BettiImages<scalar_t> images, BettiOptions options, BettiLoss loss, scalar_t* out, scalar_t* d_input,
                       scalar_t* d_target, char* memory, size_t bytes, void* stream) {
  Arena arena(memory, bytes);
  betti_loss(on(arena, static_cast<cudaStream_t>(stream)), arena, images, options, loss, out, d_input, d_target);
}

template BettiWork launch_betti_bars(BettiImages<float>, BettiOptions, int64_t*, char*, size_t, void*);
template BettiWork launch_betti_bars(BettiImages<double>, BettiOptions, int64_t*, char*, size_t, void*);
template void launch_betti_rows(BettiImages<float>, BettiWork, int64_t*, int64_t*, int64_t*, void*);
template void launch_betti_rows(BettiImages<double>, BettiWork, int64_t*, int64_t*, int64_t*, void*);
template void launch_betti_loss(BettiImages<float>, BettiOptions, BettiLoss, float*, float*, float*, char*, size_t, void*);
template void launch_betti_loss(BettiImages<double>, BettiOptions, BettiLoss, double*, double*, double*, char*, size_t, void*);

}  // namespace nearlinear::algo

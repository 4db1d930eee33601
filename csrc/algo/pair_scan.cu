// instances of csrc/algo/pair_scan.h for CUDA. Includes CCCL, which takes a minute to compile, and no torch header.
#include "pair_scan.h"

namespace nearlinear::algo {

template <typename scalar_t>
void launch_pair_scan(const PairPlan& plan, bool direct, PairSamples<scalar_t> samples, double* total, scalar_t* potential, char* memory,
                      size_t bytes, void* stream) {
  Arena arena(memory, bytes);
  pair_scan(on(arena, static_cast<cudaStream_t>(stream)), arena, plan, direct, samples, total, potential);
}

template void launch_pair_scan(const PairPlan&, bool, PairSamples<float>, double*, float*, char*, size_t, void*);
template void launch_pair_scan(const PairPlan&, bool, PairSamples<double>, double*, double*, char*, size_t, void*);

}  // namespace nearlinear::algo

// instances of csrc/algo/roc_auc.h for CUDA. Includes CCCL, which takes a minute to compile, and no torch header.
#include "roc_auc.h"

namespace nearlinear::algo {

template <typename T, typename scalar_t>
void launch_roc_auc(Samples<scalar_t> samples, double max_fpr, T* out, char* memory, size_t bytes, void* stream) {
  Arena arena(memory, bytes);
  roc_auc(on(arena, static_cast<cudaStream_t>(stream)), arena, samples, max_fpr, out);
}

template <typename scalar_t>
void launch_roc_auc_classes(ClassSamples<scalar_t> samples, double* sums, double* mass, char* memory, size_t bytes, void* stream) {
  Arena arena(memory, bytes);
  roc_auc_classes(on(arena, static_cast<cudaStream_t>(stream)), arena, samples, sums, mass);
}

template void launch_roc_auc(Samples<float>, double, int64_t*, char*, size_t, void*);
template void launch_roc_auc(Samples<double>, double, int64_t*, char*, size_t, void*);
template void launch_roc_auc(Samples<float>, double, double*, char*, size_t, void*);
template void launch_roc_auc(Samples<double>, double, double*, char*, size_t, void*);
template void launch_roc_auc_classes(ClassSamples<float>, double*, double*, char*, size_t, void*);
template void launch_roc_auc_classes(ClassSamples<double>, double*, double*, char*, size_t, void*);

}  // namespace nearlinear::algo

// csrc/algo/roc_auc.h on Thrust's host backend, as a library for ctypes: the source that runs on a GPU, executed by
// tests/test_roc_auc_algo.py.
#include "../../csrc/algo/roc_auc.h"

#include <memory>

namespace {

using namespace nearlinear;

template <typename T, typename scalar_t>
int64_t run(algo::Samples<scalar_t> samples, double max_fpr, T* out) {
  using key_t = decltype(ordered_key(scalar_t{}));
  const size_t bytes = algo::workspace<key_t, T>(samples.count, samples.groups);
  const auto memory = std::make_unique<char[]>(bytes);
  Arena arena(memory.get(), bytes);
  algo::roc_auc(on(arena, nullptr), arena, samples, max_fpr, out);
  return static_cast<int64_t>(bytes - arena.used());
}

template <typename scalar_t>
int64_t run(algo::ClassSamples<scalar_t> samples, double* sums, double* mass) {
  using key_t = decltype(ordered_key(scalar_t{}));
  const size_t bytes = algo::workspace<key_t, double>(samples.count, samples.classes);
  const auto memory = std::make_unique<char[]>(bytes);
  Arena arena(memory.get(), bytes);
  algo::roc_auc_classes(on(arena, nullptr), arena, samples, sums, mass);
  return static_cast<int64_t>(bytes - arena.used());
}

}  // namespace

// they return the bytes of the arena that were never used
extern "C" int64_t counts_f32(const float* s, const bool* y, const int64_t* group, int64_t n, int64_t groups, int64_t* out) {
  return run<int64_t>(algo::Samples<float>{s, y, nullptr, group, n, groups}, 1.0, out);
}
extern "C" int64_t counts_f64(const double* s, const bool* y, const int64_t* group, int64_t n, int64_t groups, int64_t* out) {
  return run<int64_t>(algo::Samples<double>{s, y, nullptr, group, n, groups}, 1.0, out);
}
extern "C" int64_t sums_f32(const float* s, const bool* y, const double* w, const int64_t* group, int64_t n, int64_t groups, double max_fpr,
                            double* out) {
  return run<double>(algo::Samples<float>{s, y, w, group, n, groups}, max_fpr, out);
}
extern "C" int64_t sums_f64(const double* s, const bool* y, const double* w, const int64_t* group, int64_t n, int64_t groups,
                            double max_fpr, double* out) {
  return run<double>(algo::Samples<double>{s, y, w, group, n, groups}, max_fpr, out);
}
extern "C" int64_t classes_f32(const float* s, const int64_t* target, const double* w, int64_t n, int64_t classes, double* sums,
                               double* mass) {
  return run(algo::ClassSamples<float>{s, classes, 1, target, w, n, classes}, sums, mass);
}
extern "C" int64_t classes_f64(const double* s, const int64_t* target, const double* w, int64_t n, int64_t classes, double* sums,
                               double* mass) {
  return run(algo::ClassSamples<double>{s, classes, 1, target, w, n, classes}, sums, mass);
}

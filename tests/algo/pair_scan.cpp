// csrc/algo/pair_scan.h on Thrust's host backend, as a library for ctypes: the source that runs on a GPU, executed by
// tests/test_pair_scan_algo.py.
#include "../../csrc/algo/pair_scan.h"

#include <memory>

namespace {

using namespace nearlinear;

template <typename scalar_t>
int64_t run(const char* family, bool direct, const double* value, int64_t values, const double* slope, int64_t slopes,
            algo::PairSamples<scalar_t> samples, double* total, scalar_t* potential) {
  const std::vector<double> v(value, value + values), u(slope, slope + slopes);
  const PairPlan plan = PairPlanner(family, v, u, "pair_scan").plan();
  const size_t bytes = algo::pair_workspace<decltype(ordered_key(scalar_t{}))>(samples.count, samples.groups);
  const auto memory = std::make_unique<char[]>(bytes);
  Arena arena(memory.get(), bytes);
  algo::pair_scan(on(arena, nullptr), arena, plan, direct, samples, v.empty() ? nullptr : total, u.empty() ? nullptr : potential);
  return static_cast<int64_t>(bytes - arena.used());
}

}  // namespace

// they return the bytes of the arena that were never used
extern "C" int64_t pair_scan_f32(const char* family, bool direct, const double* value, int64_t values, const double* slope, int64_t slopes,
                                 const float* s, const bool* y, const float* c, const int64_t* group, int64_t n, int64_t groups,
                                 double* total, float* potential) {
  return run(family, direct, value, values, slope, slopes, algo::PairSamples<float>{s, y, c, group, n, groups}, total, potential);
}
extern "C" int64_t pair_scan_f64(const char* family, bool direct, const double* value, int64_t values, const double* slope, int64_t slopes,
                                 const double* s, const bool* y, const double* c, const int64_t* group, int64_t n, int64_t groups,
                                 double* total, double* potential) {
  return run(family, direct, value, values, slope, slopes, algo::PairSamples<double>{s, y, c, group, n, groups}, total, potential);
}

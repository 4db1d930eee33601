// distance_tile, CPU.   out[i, j] = dist(input[i], other[j]);   backward adds sum_j grad[i, j] d dist / d input[i] to d_input[i], and for
//                       d_other the same with the two exchanged. pair_distances: the same per batch, with results of its own.
// Shapes: input [R, D], other [C, D], out and grad [R, C], accumulators like their vectors; rows may have any stride, their elements not.
// Algorithm: blocks of 16 vectors (8 in float64) packed [D, 16] meet 32 rows at a time; SIMD runs across the packed vectors, so that no sum
//   crosses lanes, and four rows of sums stay in registers. The backward packs the vectors whose gradient is wanted, reduces a block of
//   pairs anew where the metric needs it, and walks D with 16 x 4 gradients in registers.
// Cost: R C D terms forward; R C D slopes for each gradient, and as many terms where a slope depends on the pair; O(D) scratch a thread, no
//   temporary of the size of out.
// Numerics: sums of at most 32 terms are added in float64, so are the moments of Bray-Curtis; d|x|/dx = 0 at 0; a pair with zero upstream
// adds
//   nothing, whatever its vectors hold; NaN stays in its row and column; run_to_run, the same bits for any number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <memory>
#include <string>
#include <tuple>

#include "../common/dense.h"
#include "../common/dispatch.h"
#include "distance_tiles.h"

namespace nearlinear {
namespace {

using torch::stable::parallel_for;
using torch::stable::Tensor;

// [B, N, D] as B sets of vectors; [N, D] as one
template <typename T>
struct Batch {
  T* data;
  int64_t batch, count, dim, stride_b, stride;
  Vectors<T> operator[](int64_t b) const { return {data + b * stride_b, count, dim, stride}; }
};

template <typename T>
Batch<T> batch_of(const Tensor& t) {
  const int64_t d = t.dim();
  T* data = static_cast<T*>(t.data_ptr());
  return {data, d == 3 ? t.size(0) : 1, t.size(d - 2), t.size(d - 1), d == 3 ? t.stride(0) : 0, t.stride(d - 2)};
}

void check_like(const Tensor& t, const Tensor& input, int64_t rows, int64_t columns, const char* op, const char* argument) {
  check(t.scalar_type() == input.scalar_type(), op, argument, " must have the dtype of input");
  const int64_t d = input.dim();
  const bool fits = t.dim() == d && t.size(d - 2) == rows && t.size(d - 1) == columns && (d == 2 || t.size(0) == input.size(0));
  check(fits, op, argument, " must have shape (", d == 3 ? "B, " : "", rows, ", ", columns, ")");
  check(columns < 2 || t.stride(d - 1) == 1, op, argument, " must be contiguous along its last dimension");
}

void check_vectors(const Tensor& input, const Tensor& other, int64_t dims, const char* op) {
  const char* shape = dims == 3 ? "(B, R, D)" : "(R, D)";
  check(input.dim() == dims, op, "input must have shape ", shape, ", got ", input.dim(), " dimensions");
  check(other.dim() == dims, op, "other must have ", dims, " dimensions, got ", other.dim());
  const ScalarType dtype = input.scalar_type();
  check(dtype == ScalarType::Float || dtype == ScalarType::Double, op, "input must be float32 or float64");
  check(input.size(dims - 1) < (int64_t{1} << 31), op, "vectors must have fewer than 2^31 elements");
  check_like(input, input, input.size(dims - 2), input.size(dims - 1), op, "input");
  check_like(other, input, other.size(dims - 2), input.size(dims - 1), op, "other");
}

// calls f(zero of the dtype, metric functor)
template <typename F>
void dispatch(const Tensor& input, const std::string& metric, const std::vector<double>& params, const char* op, F&& f) {
  std::visit(
      [&](auto m) {
        if (input.scalar_type() == ScalarType::Double) return f(double{}, m);
        f(float{}, m);
      },
      make_metric(metric, params, op));
}

// blocks of work per task: enough to pay for a thread
int64_t block_grain(int64_t pairs, int64_t dim) { return std::max<int64_t>(1, 100000 / std::max<int64_t>(pairs * dim, 1)); }

int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// sum over the coordinates of each vector's moments
template <typename metric_t, typename T>
std::vector<double> moments(metric_t metric, const Vectors<const T>& v) {
  std::vector<double> sums(metric_t::kMoment ? v.count : 0);
  if constexpr (metric_t::kMoment)
    for (int64_t i = 0; i < v.count; ++i)
      for (int64_t k = 0; k < v.dim; ++k) sums[i] += metric.moment(v.row(i)[k]);
  return sums;
}

template <typename T>
void add_moments(const std::vector<double>& rows, int64_t row, int64_t n, const std::vector<double>& packed, int64_t begin,
                 PairBlock<T>* block) {
  const int64_t lanes = std::min<int64_t>(kWidth<T>, packed.size() - begin);
  for (int64_t r = 0; r < n; ++r)
    for (int64_t c = 0; c < kWidth<T>; ++c) block->moment[r][c] = c < lanes ? static_cast<T>(rows[row + r] + packed[begin + c]) : T(0);
}

// classes are packed; a task is one block of them with kStrip rows, which pay for the packing
template <typename metric_t, typename T>
void distances(metric_t metric, const Vectors<const T>& x, const Vectors<const T>& w, const Vectors<T>& out) {
  constexpr int64_t W = kWidth<T>, kStrip = 8 * kRows;
  const int64_t strips = blocks_of(x.count, kStrip), tasks = strips * blocks_of(w.count, W);
  const std::vector<double> x_moments = moments(metric, x), w_moments = moments(metric, w);
  parallel_for(0, tasks, block_grain(kStrip * W, x.dim), [&](int64_t first, int64_t last) {
    const auto packed = std::make_unique_for_overwrite<T[]>(x.dim * W);
    const auto block = std::make_unique<PairBlock<T>>();
    for (int64_t task = first; task < last; ++task) {
      const int64_t j = task / strips * W, strip = task % strips * kStrip, lanes = std::min(W, w.count - j);
      pack(w, j, packed.get());
      for (int64_t i = strip; i < std::min(strip + kStrip, x.count); i += kRows) {
        const int64_t n = std::min(kRows, x.count - i);
        reduce<false>(metric, x.row(i), x.stride, n, packed.get(), x.dim, block.get());
        if constexpr (metric_t::kMoment) add_moments(x_moments, i, n, w_moments, j, block.get());
        for (int64_t r = 0; r < n; ++r) {
          alignas(64) T line[W];
          values(metric, *block, r, line);
          std::copy_n(line, lanes, out.row(i + r) + j);
        }
      }
    }
  });
}

// what a task of the backward keeps: packed vectors and their gradient [D, W], a copy of kRows rows whose stride maps to distinct cache
// sets
template <typename T>
struct Scratch {
  int64_t stride;
  std::unique_ptr<T[]> packed, d_packed, rows;
  PairBlock<T> block{};
  alignas(64) T coefficient[kRows][kWidth<T>], d_moment[kWidth<T>];

  explicit Scratch(int64_t dim)
      : stride(blocks_of(dim, kWidth<T>) * kWidth<T> + kWidth<T>),
        packed(std::make_unique_for_overwrite<T[]>(dim * kWidth<T>)),
        d_packed(std::make_unique_for_overwrite<T[]>(dim * kWidth<T>)),
        rows(std::make_unique_for_overwrite<T[]>(kRows * stride)) {}
};

// d_a += gradient by a of sum g(i, j) dist(a_i, b_j), where g(i, j) lies at i * stride_a + j * stride_b
template <typename metric_t, typename T>
void add_gradient(metric_t metric, const Vectors<T>& d_a, const Vectors<const T>& a, const Vectors<const T>& b, const T* grad,
                  int64_t stride_a, int64_t stride_b) {
  constexpr int64_t W = kWidth<T>;
  const int64_t dim = a.dim;
  const std::vector<double> a_moments = moments(metric, a), b_moments = moments(metric, b);
  parallel_for(0, blocks_of(a.count, W), block_grain(W * b.count, dim), [&](int64_t first, int64_t last) {
    const auto s = std::make_unique<Scratch<T>>(dim);
    for (int64_t begin = first * W; begin < std::min(last * W, a.count); begin += W) {
      const int64_t lanes = std::min(W, a.count - begin);
      pack(a, begin, s->packed.get());
      std::fill_n(s->d_packed.get(), dim * W, T(0));
      std::fill_n(s->d_moment, W, T(0));
      for (int64_t j = 0; j < b.count; j += kRows) {
        const int64_t n = std::min(kRows, b.count - j);
        for (int64_t r = 0; r < n; ++r) {
          std::copy_n(b.row(j + r), dim, s->rows.get() + r * s->stride);
          for (int64_t c = 0; c < W; ++c) s->coefficient[r][c] = c < lanes ? grad[(begin + c) * stride_a + (j + r) * stride_b] : T(0);
        }
        if constexpr (metric_t::kPair) {
          reduce<metric_t::kPlace>(metric, s->rows.get(), s->stride, n, s->packed.get(), dim, &s->block);
          if constexpr (metric_t::kMoment) add_moments(b_moments, j, n, a_moments, begin, &s->block);
          scale_upstream(metric, s->block, n, s->coefficient, s->d_moment);
        }
        if constexpr (metric_t::kPlace) {
          if (dim > 0)
            add_slopes_at_places(metric, s->coefficient, s->rows.get(), s->stride, n, s->packed.get(), s->block, s->d_packed.get());
          continue;
        }
        for (int64_t k = 0, step; k < dim; k += step) {
          step = dim - k < kStep ? 1 : kStep;
          (step == 1 ? add_slopes<1, metric_t, T> : add_slopes<kStep, metric_t, T>)(metric, s->coefficient, s->rows.get(), s->stride, n,
                                                                                    s->packed.get(), k, s->block, s->d_packed.get());
        }
      }
      for (int64_t c = 0; c < lanes; ++c)
        for (int64_t k = 0; k < dim; ++k) {
          const T by_moment = s->d_moment[c] == 0 ? T(0) : s->d_moment[c] * metric.moment_slope(s->packed[k * W + c]);
          d_a.row(begin + c)[k] += s->d_packed[k * W + c] + by_moment;
        }
    }
  });
}

void forward(const Tensor& input, const Tensor& other, const std::string& metric, const std::vector<double>& params, const Tensor& out,
             const char* op) {
  check_like(out, input, input.size(input.dim() - 2), other.size(other.dim() - 2), op, "out");
  dispatch(input, metric, params, op, [&](auto zero, auto m) {
    using T = decltype(zero);
    const auto x = batch_of<const T>(input), w = batch_of<const T>(other);
    const auto y = batch_of<T>(out);
    for (int64_t b = 0; b < x.batch; ++b) distances<decltype(m), T>(m, x[b], w[b], y[b]);
  });
}

void backward(const Tensor& d_input, const Tensor& d_other, const Tensor& grad, const Tensor& input, const Tensor& other,
              const std::string& metric, const std::vector<double>& params, bool wants_input, bool wants_other, const char* op) {
  const int64_t d = input.dim(), rows = input.size(d - 2), classes = other.size(d - 2), dim = input.size(d - 1);
  check_like(grad, input, rows, classes, op, "grad");
  if (wants_input) check_like(d_input, input, rows, dim, op, "d_input");
  if (wants_other) check_like(d_other, input, classes, dim, op, "d_other");
  dispatch(input, metric, params, op, [&](auto zero, auto m) {
    using T = decltype(zero);
    const auto x = batch_of<const T>(input), w = batch_of<const T>(other), g = batch_of<const T>(grad);
    for (int64_t b = 0; b < x.batch; ++b) {
      if (wants_input) add_gradient<decltype(m), T>(m, batch_of<T>(d_input)[b], x[b], w[b], g[b].data, g.stride, 1);
      if (wants_other) add_gradient<decltype(m), T>(m, batch_of<T>(d_other)[b], w[b], x[b], g[b].data, 1, g.stride);
    }
  });
}

void distance_tile_cpu(const Tensor& input, const Tensor& other, const std::string& metric, const std::vector<double>& metric_params,
                       Tensor out) {
  check_vectors(input, other, 2, "distance_tile");
  forward(input, other, metric, metric_params, out, "distance_tile");
}

void distance_tile_backward_cpu(Tensor d_input, Tensor d_other, const Tensor& grad, const Tensor& input, const Tensor& other,
                                const std::string& metric, const std::vector<double>& metric_params, bool wants_input, bool wants_other) {
  check_vectors(input, other, 2, "distance_tile_backward");
  backward(d_input, d_other, grad, input, other, metric, metric_params, wants_input, wants_other, "distance_tile_backward");
}
Tensor pair_distances_cpu(const Tensor& input, const Tensor& other, const std::string& metric, const std::vector<double>& metric_params) {
  const Tensor x = dense(input), w = dense(other);
  check_vectors(x, w, 3, "pair_distances");
  Tensor out = torch::stable::new_empty(input, {input.size(0), input.size(1), other.size(1)});
  forward(x, w, metric, metric_params, out, "pair_distances");
  return out;
}

std::tuple<Tensor, Tensor> pair_distances_backward_cpu(const Tensor& grad, const Tensor& input, const Tensor& other,
                                                       const std::string& metric, const std::vector<double>& metric_params,
                                                       bool wants_input, bool wants_other) {
  auto zeros = [](const Tensor& like, bool wanted) {
    Tensor made =
        torch::stable::new_empty(like, wanted ? std::vector<int64_t>{like.size(0), like.size(1), like.size(2)} : std::vector<int64_t>{0});
    torch::stable::zero_(made);
    return made;
  };
  const Tensor x = dense(input), w = dense(other);
  check_vectors(x, w, 3, "pair_distances_backward");
  const Tensor d_input = zeros(input, wants_input), d_other = zeros(other, wants_other);
  backward(d_input, d_other, dense(grad), x, w, metric, metric_params, wants_input, wants_other, "pair_distances_backward");
  return {d_input, d_other};
}

}  // namespace
}  // namespace nearlinear

STABLE_TORCH_LIBRARY_IMPL(nearlinear, CPU, m) {
  m.impl("distance_tile", TORCH_BOX(&nearlinear::distance_tile_cpu));
  m.impl("distance_tile_backward", TORCH_BOX(&nearlinear::distance_tile_backward_cpu));
  m.impl("pair_distances", TORCH_BOX(&nearlinear::pair_distances_cpu));
  m.impl("pair_distances_backward", TORCH_BOX(&nearlinear::pair_distances_backward_cpu));
}

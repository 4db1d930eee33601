// what the CPU kernels of the row family share: layout of logits, dtype-erased block loads, and reductions over one cache block.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/simd.h"
#include "../functors/cross_entropy.h"

namespace nearlinear {

using torch::stable::Tensor;

// elements per block: 16 KB of float, half of a usual L1 cache
constexpr int64_t kBlock = 4096;

// logits [B, V] or [B, V, P] seen as B * P rows of V classes; strides in elements
struct Logits {
  int64_t batch, classes, pixels, stride_b, stride_v, stride_p;

  Logits(const Tensor& t, const char* op, const char* argument) {
    check(t.dim() == 2 || t.dim() == 3, op, argument, " must have shape (N, V) or (N, V, P), got ", t.dim(), " dimensions");
    batch = t.size(0), classes = t.size(1), pixels = t.dim() == 3 ? t.size(2) : 1;
    stride_b = t.stride(0), stride_v = t.stride(1), stride_p = t.dim() == 3 ? t.stride(2) : 1;
  }
  int64_t rows() const { return batch * pixels; }
  int64_t offset(int64_t row) const { return (row / pixels) * stride_b + (row % pixels) * stride_p; }
};

// a tensor whose element type is known only at run time: one block at a time is read or written as op_t
template <typename op_t>
class Blocks {
 public:
  Blocks(const Tensor& t, const char* op, const char* argument) : data_(static_cast<char*>(t.data_ptr())) {
    dispatch_floating(t.scalar_type(), op, argument, [&](auto zero) {
      using scalar_t = decltype(zero);
      width_ = sizeof(scalar_t);
      direct_ = std::is_same_v<scalar_t, op_t>;
      load_ = [](const char* p, int64_t stride, int64_t n, op_t* out) { simd::load(reinterpret_cast<const scalar_t*>(p), stride, n, out); };
      store_ = [](const op_t* in, int64_t n, int64_t stride, char* p) { simd::store(in, n, stride, reinterpret_cast<scalar_t*>(p)); };
    });
  }
  // the block itself where no conversion is needed, else its copy in scratch
  const op_t* read(int64_t offset, int64_t stride, int64_t n, op_t* scratch) const {
    if (direct_ && stride == 1) return at(offset);
    load(offset, stride, n, scratch);
    return scratch;
  }
  void load(int64_t offset, int64_t stride, int64_t n, op_t* out) const { load_(data_ + offset * width_, stride, n, out); }
  void store(const op_t* in, int64_t n, int64_t offset, int64_t stride) const { store_(in, n, stride, data_ + offset * width_); }
  // where a block may be written in place; null where it needs a conversion
  op_t* writable(int64_t offset, int64_t stride) const { return direct_ && stride == 1 ? at(offset) : nullptr; }
  op_t at_element(int64_t offset) const {
    op_t value;
    load(offset, 1, 1, &value);
    return value;
  }

 private:
  op_t* at(int64_t offset) const { return reinterpret_cast<op_t*>(data_) + offset; }
  char* data_;
  int64_t width_;
  bool direct_;
  void (*load_)(const char*, int64_t, int64_t, op_t*);
  void (*store_)(const op_t*, int64_t, int64_t, char*);
};

template <typename map_t, typename op_t>
NL_CLONES void map_values(map_t map, op_t* __restrict z, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) z[j] = map.value(z[j]);
}

template <typename map_t, typename op_t>
NL_CLONES void times_map_slope(map_t map, const op_t* __restrict a, op_t* __restrict d, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) d[j] *= map.slope(a[j]);
}

// NaN is dropped here; it comes back through sum_exp
template <typename op_t>
NL_CLONES op_t block_max(const op_t* __restrict z, int64_t n) {
  op_t m = -simd::infinity<op_t>;
#pragma omp simd reduction(max : m)
  for (int64_t j = 0; j < n; ++j) m = z[j] > m ? z[j] : m;
  return m;
}

template <typename op_t>
NL_CLONES op_t sum_exp(const op_t* __restrict z, int64_t n, op_t shift) {
  op_t s = 0;
#pragma omp simd reduction(+ : s)
  for (int64_t j = 0; j < n; ++j) s += simd::exp(z[j] - shift);
  return s;
}

// sum_j w_j (shift - z_j)
template <typename op_t>
NL_CLONES op_t sum_deviation(const op_t* __restrict z, const op_t* __restrict w, int64_t n, op_t shift) {
  op_t s = 0;
  if (w == nullptr) {
#pragma omp simd reduction(+ : s)
    for (int64_t j = 0; j < n; ++j) s += shift - z[j];
  } else {
#pragma omp simd reduction(+ : s)
    for (int64_t j = 0; j < n; ++j) s += w[j] * (shift - z[j]);
  }
  return s;
}

// d_j = scale e^{(z_j - lse) - residual}: two subtractions keep the bits of lse that op_t cannot hold next to a large offset
template <typename op_t>
NL_CLONES void scaled_softmax(const op_t* __restrict z, int64_t n, op_t lse, op_t residual, op_t scale, op_t* __restrict d) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) d[j] = scale * simd::exp((z[j] - lse) - residual);
}

// online log-sum-exp over blocks, merged in double
struct OnlineSum {
  double max = -simd::infinity<double>, sum = 0;

  template <typename op_t>
  void add(const op_t* z, int64_t n) {
    const op_t m = block_max(z, n);
    // a block of -inf (or NaN) has no usable maximum: shift by 0, so that -inf gives 0 and NaN stays
    const double s = sum_exp(z, n, m == -simd::infinity<op_t> ? op_t(0) : m);
    if (m > max) {
      sum = sum * std::exp(max - m) + s;
      max = m;
    } else {
      sum += m == -simd::infinity<op_t> ? s : s * std::exp(m - max);
    }
  }
};

// Row statistics from the target logit and the log-sum-exp of the others, through the logit deficit
//   delta = lse' - z_y,  nll = softplus(delta),  lse = z_y + nll = lse' + softplus(-delta)
// lse is returned as a rounded value and the residual that rounding lost.
template <typename op_t>
void row_statistics(double z_y, double other_max, double other_sum, op_t* nll, op_t* lse, op_t* residual) {
  const double infinity = simd::infinity<double>;
  if (std::isnan(z_y) || z_y == infinity || (z_y == -infinity && other_sum == 0)) {
    *nll = *lse = *residual = std::numeric_limits<op_t>::quiet_NaN();
    return;
  }
  const double log_sum = std::log(other_sum), delta = log_sum - (z_y - other_max);
  const double softplus = std::log1p(std::exp(-std::fabs(delta)));
  const double loss = delta > 0 ? delta + softplus : softplus + (std::isnan(delta) ? delta : 0);
  // the larger of z_y and lse' plus a small number, as an exact sum of two doubles
  const double base = delta > 0 ? other_max : z_y, small = delta > 0 ? log_sum + softplus : loss;
  const double high = base + small, part = high - base, low = (base - (high - part)) + (small - part);
  *nll = static_cast<op_t>(loss);
  *lse = static_cast<op_t>(high);
  *residual = std::isfinite(*lse) ? static_cast<op_t>((high - static_cast<double>(*lse)) + low) : op_t(0);
}

// rows per task: enough work to pay for a thread
inline int64_t row_grain(int64_t classes) { return std::max<int64_t>(1, 32768 / std::max<int64_t>(classes, 1)); }

}  // namespace nearlinear

// what the CPU kernels of the row family share: layout of logits, dtype-erased block loads, and reductions over one cache block.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/simd.h"
#include "../functors/cross_entropy.h"

namespace nearlinear {

using torch::stable::Tensor;

// elements per block: 8 KB of float, so that the arrays of a block stay in a usual L1 cache together
constexpr int64_t kBlock = 2048;

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

// NaN is dropped here; it comes back through the sum of exponentials
template <typename op_t>
NL_CLONES op_t block_max(const op_t* __restrict z, int64_t n) {
  op_t m = -simd::infinity<op_t>;
#pragma omp simd reduction(max : m)
  for (int64_t j = 0; j < n; ++j) m = z[j] > m ? z[j] : m;
  return m;
}

// sum_j e^{z_j - shift}, and max_j z_j in the same pass
template <typename op_t>
NL_CLONES op_t sum_exp_max(const op_t* __restrict z, int64_t n, op_t shift, op_t* top) {
  op_t s = 0, m = -simd::infinity<op_t>;
#pragma omp simd reduction(+ : s) reduction(max : m)
  for (int64_t j = 0; j < n; ++j) {
    m = z[j] > m ? z[j] : m;
    s += simd::exp(z[j] - shift);
  }
  *top = m;
  return s;
}

// sum_exp_max, and sum_j w_j (origin - z_j) in the same pass; w is not read unless weighted (a test of w in the loop stops vectorisation)
template <bool weighted, typename op_t>
NL_CLONES op_t sum_exp_max_deviation(const op_t* __restrict z, int64_t n, op_t shift, op_t* top, const op_t* __restrict w, op_t origin,
                                     double* deviation) {
  op_t s = 0, m = -simd::infinity<op_t>, d = 0;
#pragma omp simd reduction(+ : s, d) reduction(max : m)
  for (int64_t j = 0; j < n; ++j) {
    m = z[j] > m ? z[j] : m;
    s += simd::exp(z[j] - shift);
    d += weighted ? w[j] * (origin - z[j]) : origin - z[j];
  }
  *top = m;
  *deviation += d;
  return s;
}

// d_j = total e^{z_j - lse} - spread w_j. total carries e^{-residual}: z_j - lse is exact next to a large common offset, and the bits of
// lse that op_t could not hold there come back as a factor.
template <typename op_t>
NL_CLONES void softmax_gradient(const op_t* __restrict z, int64_t n, op_t lse, op_t total, op_t spread, const op_t* __restrict w,
                                op_t* __restrict d) {
  if (spread == 0) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) d[j] = total * simd::exp(z[j] - lse);
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) d[j] = total * simd::exp(z[j] - lse) - spread * (w == nullptr ? op_t(1) : w[j]);
  }
}

// A tensor whose element type is known only at run time; kernels are compiled once per op_t. Half types go through scratch in the L1
// cache: loops that mix 16-bit storage with exponentials measured slower than a conversion pass of their own.
template <typename op_t>
class Blocks {
 public:
  Blocks(const Tensor& t, const char* op, const char* argument) : data_(static_cast<char*>(t.data_ptr())) {
    dispatch_floating(t.scalar_type(), op, argument, [&](auto zero) {
      using scalar_t = decltype(zero);
      width_ = sizeof(scalar_t);
      is_op_t_ = std::is_same_v<scalar_t, op_t>;
      load_ = [](const char* in, int64_t stride, int64_t n, op_t* out) {
        simd::load(reinterpret_cast<const scalar_t*>(in), stride, n, out);
      };
      store_ = [](const op_t* in, int64_t n, int64_t stride, char* out) { simd::store(in, n, stride, reinterpret_cast<scalar_t*>(out)); };
      if constexpr (simd::is_half<scalar_t> && std::is_same_v<op_t, float>) {
        load_pairs_ = [](const char* in, int64_t n, float* out) { simd::load_pairs(reinterpret_cast<const scalar_t*>(in), n, out); };
        store_pairs_ = [](const float* in, int64_t n, char* out) { simd::store_pairs(in, n, reinterpret_cast<scalar_t*>(out)); };
      }
    });
  }

  void load(int64_t offset, int64_t stride, int64_t n, op_t* out) const { load_(at(offset), stride, n, out); }
  void store(const op_t* in, int64_t n, int64_t offset, int64_t stride) const { store_(in, n, stride, at(offset)); }
  op_t element(int64_t offset) const {
    op_t value;
    load(offset, 1, 1, &value);
    return value;
  }
  // the elements in place where they are contiguous op_t; null where they need a conversion or a gather
  op_t* in_place(int64_t offset, int64_t stride) const { return is_op_t_ && stride == 1 ? reinterpret_cast<op_t*>(at(offset)) : nullptr; }
  const op_t* read(int64_t offset, int64_t stride, int64_t n, op_t* scratch) const {
    if (const op_t* direct = in_place(offset, stride)) return direct;
    load(offset, stride, n, scratch);
    return scratch;
  }

  bool starts_where(const Blocks& other) const { return data_ == other.data_; }

  // whether n contiguous elements can be read and written in the order of simd::load_pairs, which is faster where order is immaterial
  bool pairs(int64_t stride, int64_t n) const { return load_pairs_ != nullptr && stride == 1 && n % 2 == 0; }
  void load_pairs(int64_t offset, int64_t n, op_t* out) const { load_pairs_(at(offset), n, out); }
  void store_pairs(const op_t* in, int64_t n, int64_t offset) const { store_pairs_(in, n, at(offset)); }

 private:
  char* at(int64_t offset) const { return data_ + offset * width_; }

  char* data_;
  int64_t width_;
  bool is_op_t_;
  void (*load_)(const char*, int64_t, int64_t, op_t*);
  void (*store_)(const op_t*, int64_t, int64_t, char*);
  void (*load_pairs_)(const char*, int64_t, op_t*) = nullptr;
  void (*store_pairs_)(const op_t*, int64_t, char*) = nullptr;
};

template <typename map_t, typename op_t>
NL_CLONES void map_values(map_t map, op_t* __restrict z, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) z[j] = map.value(z[j]);
}

template <typename map_t, typename op_t>
NL_CLONES void times_map_slope(map_t map, const op_t* __restrict a, op_t* __restrict d, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) d[j] = d[j] == 0 ? op_t(0) : d[j] * map.slope(a[j]);  // 0 also where a is NaN
}

// Online sum_j e^{z_j - shift} over blocks, merged in double. The shift is the maximum of the first block that has one; later blocks are
// summed with the shift as it stands while their own maximum is found, and only one that exceeds it by 40 makes the sum move: one pass
// per block, and e^40 leaves float its full relative accuracy.
struct OnlineSum {
  double shift = -simd::infinity<double>, sum = 0;

  template <typename op_t>
  void add(const op_t* z, int64_t n) {
    add(z, n, [&](op_t from, op_t* top) { return sum_exp_max(z, n, from, top); });
  }
  // and deviation += sum_j w_j (origin - z_j)
  template <typename op_t>
  void add(const op_t* z, int64_t n, const op_t* w, op_t origin, double* deviation) {
    add(z, n, [&](op_t from, op_t* top) {
      return w == nullptr ? sum_exp_max_deviation<false>(z, n, from, top, w, origin, deviation)
                          : sum_exp_max_deviation<true>(z, n, from, top, w, origin, deviation);
    });
  }

 private:
  template <typename op_t, typename F>
  void add(const op_t* z, int64_t n, F&& sum_from) {
    if (n == 0) return;
    op_t top;
    if (shift == -simd::infinity<double>) shift = block_max(z, n);
    // a block of -inf (or NaN) has no usable maximum: shift by 0, so that -inf gives 0 and NaN stays
    const op_t s = sum_from(shift == -simd::infinity<double> ? op_t(0) : static_cast<op_t>(shift), &top);
    if (top - shift > 40) {
      sum = sum * std::exp(shift - top) + sum_exp_max(z, n, top, &top);
      shift = top;
    } else {
      sum += s;
    }
  }
};

// Row statistics from the target logit z_y and the other classes' sum of e^{z_j - shift}, with nll >= 0 formed without cancellation:
//   top = max(shift, z_y),  nll = (top - z_y) + log1p(rest),  lse = top + log1p(rest)
//   rest = sum e^{shift - z_y} where z_y is the top, else (sum - 1) + e^{z_y - shift}   (a sum with shift on top is at least 1)
// lse comes as a rounded value and the residual that rounding lost (two-sum). Branch-free, so that it vectorises across rows.
// z_y = NaN or +inf, NaN among the others, and a row of -inf give NaN; z_y = -inf next to a finite logit gives nll = +inf.
template <typename op_t>
NL_INLINE void row_statistics(op_t z_y, op_t shift, op_t sum, op_t* nll, op_t* lse, op_t* residual) {
  const bool target_on_top = z_y >= shift;
  const op_t top = target_on_top ? z_y : shift, below = target_on_top ? shift - z_y : z_y - shift;
  const op_t e = simd::exp(below);
  const op_t log_rest = simd::log1p(target_on_top ? sum * e : (sum - 1) + e);
  const op_t loss = (top - z_y) + log_rest;
  const op_t high = top + log_rest, part = high - top, low = (top - (high - part)) + (log_rest - part);
  *nll = loss;
  *lse = loss == loss ? high : loss;
  *residual = high - high == 0 ? low : op_t(0);  // infinite lse: nothing to correct
}

// The same for one row on its own, in double: a row of many classes can pay for it, and the scalar code of a caller that is not
// multi-versioned has no fused multiply-add.
template <typename op_t>
void row_statistics_in_double(double z_y, const OnlineSum& others, op_t* nll, op_t* lse, op_t* residual) {
  double loss, high, low;
  row_statistics(z_y, others.shift, others.sum, &loss, &high, &low);
  *nll = static_cast<op_t>(loss);
  *lse = static_cast<op_t>(high);
  *residual = std::isfinite(*lse) ? static_cast<op_t>((high - *lse) + low) : op_t(0);
}

// rows per task: enough work to pay for a thread
inline int64_t row_grain(int64_t classes) { return std::max<int64_t>(1, 32768 / std::max<int64_t>(classes, 1)); }

// shape of the statistics
inline std::vector<int64_t> row_shape(const Tensor& input) {
  return input.dim() == 3 ? std::vector<int64_t>{input.size(0), input.size(2)} : std::vector<int64_t>{input.size(0)};
}

template <typename F>
void dispatch_opmath(ScalarType dtype, F&& f) {
  if (dtype == ScalarType::Double) return f(double{});
  f(float{});
}

// one value per row, made contiguous in place of the caller's handle
template <typename op_t>
const op_t* row_values(Tensor& values, const Logits& L, const char* op) {
  check(values.numel() == L.rows() && values.scalar_type() == (std::is_same_v<op_t, double> ? ScalarType::Double : ScalarType::Float), op,
        "row statistics and their gradients must have one value per row in the dtype of the statistics");
  values = torch::stable::contiguous(values);
  return values.const_data_ptr<op_t>();
}

template <typename op_t>
void zero_row(const Logits& D, int64_t row, const Blocks<op_t>& d_in) {
  constexpr int64_t kBlockZeros = 256;
  const op_t zeros[kBlockZeros] = {};
  for (int64_t begin = 0; begin < D.classes; begin += kBlockZeros)
    d_in.store(zeros, std::min(kBlockZeros, D.classes - begin), D.offset(row) + begin * D.stride_v, D.stride_v);
}

}  // namespace nearlinear

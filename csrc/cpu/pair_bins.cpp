// binned_moments, CPU.   A[g, y, b, k] = sum of c_i T_k(t_i) over the samples of group g, label y and bin b,  s_i = (b + (t_i + 1) / 2) h,
// binned_values, CPU.    v_i = sum over k of table[g_i, y_i, b_i, k] T_k(t_i): the expansions of a function in every bin, at every score
// Shapes: input [N], any stride; target bool [N]; coefficient [N], of input's dtype; group int64 [N]; A, table [G, 2, bins, terms]; v [N].
// Algorithm: bins and places of a block at a time, then one row of Chebyshev polynomials added to a cell. No sort. The pieces of the input
//   have tables of their own, added in order.
// Cost: N (3 + 2 terms) multiply-adds each; reads 5 N bytes in float32, binned_values writes 4 N. Temporaries: at most 8 bytes per sample.
// Numerics: h is a power of two and its multiples are the edges of the bins, so that b and t carry no rounding of their own; rows in the
//   dtype of the input, sums in float64, -0.0 as 0.0; a coefficient of 0 counts for nothing; NaN or a score outside of the bins makes its
//   [g, y, 0, 0] and its v NaN; run_to_run, for any number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/memory.h"
#include "../common/simd.h"

namespace nearlinear {
namespace {

using torch::stable::parallel_for;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kBlock = 512, kPiece = int64_t{1} << 17;
constexpr int64_t kMostTerms = 32;

template <typename scalar_t>
struct Bins {
  scalar_t inv_width, first, count;
};

// bin of each score, counted from the first, and its place there; -1 for a score in no bin
template <typename scalar_t>
NL_CLONES void places(const scalar_t* __restrict s, int64_t n, Bins<scalar_t> bins, int32_t* __restrict bin, scalar_t* __restrict t) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const scalar_t x = s[i] * bins.inv_width, edge = std::floor(x), b = edge - bins.first;
    const bool inside = b >= 0 && b < bins.count;
    bin[i] = static_cast<int32_t>(inside ? b : scalar_t(-1));  // the cast of a value that no int holds is undefined
    t[i] = inside ? (x - edge) * 2 - 1 : scalar_t(0);
  }
}

// cells from bins: the tables of the channels 2 g + y one after another. Labels as bytes and a mask: a branch on them is a coin toss.
NL_CLONES void cells_of(const uint8_t* __restrict y, const int64_t* __restrict g, int64_t n, int32_t bins, int32_t* __restrict cell) {
  if (g == nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) cell[i] = cell[i] < 0 ? -1 : cell[i] + (-static_cast<int32_t>(y[i]) & bins);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) cell[i] = cell[i] < 0 ? -1 : cell[i] + (2 * static_cast<int32_t>(g[i]) + y[i]) * bins;
  }
}

// rows[i, k] = c_i T_k(t_i). Terms: their number if it is known to the compiler, or 0.
template <int Terms, typename scalar_t>
NL_CLONES void chebyshev_rows(const scalar_t* __restrict t, const scalar_t* __restrict c, int64_t n, int64_t terms_,
                              scalar_t* __restrict rows) {
  const int64_t terms = Terms ? Terms : terms_;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    scalar_t before = c ? c[i] : scalar_t(1), now = before * t[i];
    for (int64_t k = 0; k < terms; ++k) {
      rows[i * terms + k] = before;
      const scalar_t next = 2 * t[i] * now - before;
      before = now, now = next;
    }
  }
}

template <int Terms, typename scalar_t>
NL_CLONES void add_rows(const scalar_t* __restrict rows, const int32_t* __restrict cell, int64_t n, int64_t terms_, double* table) {
  const int64_t terms = Terms ? Terms : terms_;
  for (int64_t i = 0; i < n; ++i) {
    if (cell[i] < 0) continue;
    double* __restrict out = table + cell[i] * terms;
#pragma omp simd
    for (int64_t k = 0; k < terms; ++k) out[k] += static_cast<double>(rows[i * terms + k]);
  }
}

// Clenshaw's recurrence
template <int Terms, typename scalar_t>
NL_CLONES void values(const scalar_t* __restrict table, const int32_t* __restrict cell, const scalar_t* __restrict t, int64_t n,
                      int64_t terms_, scalar_t* __restrict out) {
  const int64_t terms = Terms ? Terms : terms_;
  for (int64_t i = 0; i < n; ++i) {
    const scalar_t* row = table + std::max(cell[i], 0) * terms;
    scalar_t now = 0, after = 0;
    for (int64_t k = terms - 1; k > 0; --k) {
      const scalar_t next = row[k] + 2 * t[i] * now - after;
      after = now, now = next;
    }
    out[i] = cell[i] < 0 ? std::numeric_limits<scalar_t>::quiet_NaN() : row[0] + t[i] * now - after;
  }
}

// calls f with the number of terms as a constant where that pays
template <typename F>
void dispatch_terms(int64_t terms, F&& f) {
  switch (terms) {
    case 4:
      return f(std::integral_constant<int, 4>{});
    case 5:
      return f(std::integral_constant<int, 5>{});
    case 10:
      return f(std::integral_constant<int, 10>{});
    default:
      return f(std::integral_constant<int, 0>{});
  }
}

// the samples, a block of cells at a time
struct Samples {
  Tensor input, target, group;
  const uint8_t* y;
  const int64_t* g;
  int64_t count, groups, bins, terms, stride;
  double inv_width, first;

  Samples(const Tensor& input_, const Tensor& target_, const OptionalTensor& group_, int64_t groups_, double inv_width_, int64_t first_,
          int64_t bins_, int64_t terms_, const char* op)
      : input(input_),
        target(torch::stable::contiguous(target_)),
        group(torch::stable::contiguous(group_.value_or(target_))),
        count(input_.numel()),
        groups(groups_),
        bins(bins_),
        terms(terms_),
        inv_width(inv_width_),
        first(static_cast<double>(first_)) {
    check(input.dim() == 1, op, "input must have shape (N,), got ", input.dim(), " dimensions");
    check(target.dim() == 1 && target.numel() == count && target.scalar_type() == ScalarType::Bool, op,
          "target must be bool of shape (N,)");
    check(groups >= 0 && (group_.has_value() || groups == 1), op, "num_groups must be >= 0, and 1 without group, got ", groups);
    check(bins > 0 && terms > 0 && terms <= kMostTerms, op, "bins must be > 0 and terms in 1 to ", kMostTerms, ", got ", bins, " and ",
          terms);
    check(groups * 2 * bins <= std::numeric_limits<int32_t>::max(), op, "tables of more than 2^31 bins are not supported");
    const int64_t exact = input.scalar_type() == ScalarType::Double ? int64_t{1} << 52 : int64_t{1} << 24;
    check(-exact < first_ && first_ + bins < exact, op, "first_bin must be within +-", exact, ", got ", first_);
    check(!group_.has_value() || (group.scalar_type() == ScalarType::Long && group.numel() == count), op,
          "group must be int64 of shape (N,)");
    y = reinterpret_cast<const uint8_t*>(target.const_data_ptr<bool>());
    g = group_.has_value() ? group.const_data_ptr<int64_t>() : nullptr;
    stride = count > 1 ? input.stride(0) : 1;
    if (g == nullptr) return;
    for (int64_t i = 0; i < count; ++i)
      check(g[i] >= 0 && g[i] < groups, op, "group[", i, "] = ", g[i], " is out of range [0, ", groups, ")");
  }

  int64_t cells() const { return groups * 2 * bins; }
  int64_t channel(int64_t i) const { return 2 * (g ? g[i] : 0) + y[i]; }

  // cells, -1 outside of the bins, and places of n samples from `begin`
  template <typename scalar_t>
  void load(int64_t begin, int64_t n, scalar_t* s, int32_t* cell, scalar_t* t) const {
    simd::load(input.const_data_ptr<scalar_t>() + begin * stride, stride, n, s);
    places(s, n, Bins<scalar_t>{scalar_t(inv_width), scalar_t(first), scalar_t(bins)}, cell, t);
    cells_of(y + begin, g ? g + begin : nullptr, n, static_cast<int32_t>(bins), cell);
  }
};

// one piece of the samples into a table of its own
template <int Terms, typename scalar_t>
void add_piece(const Samples& x, const scalar_t* c, int64_t begin, int64_t end, double* table) {
  alignas(64) int32_t cell[kBlock];
  alignas(64) scalar_t s[kBlock], t[kBlock], rows[kBlock * (Terms ? Terms : kMostTerms)];
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t n = std::min(kBlock, end - first);
    x.load(first, n, s, cell, t);
    chebyshev_rows<Terms>(t, c ? c + first : nullptr, n, x.terms, rows);
    add_rows<Terms>(rows, cell, n, x.terms, table);
    if (*std::min_element(cell, cell + n) >= 0) continue;
    for (int64_t i = 0; i < n; ++i)
      if (cell[i] < 0 && (!c || c[first + i] != 0))
        table[x.channel(first + i) * x.bins * x.terms] = std::numeric_limits<double>::quiet_NaN();
  }
}

template <typename F>
void dispatch_scores(const Tensor& input, const char* op, F&& f) {
  if (input.scalar_type() == ScalarType::Double) return f(double{});
  check(input.scalar_type() == ScalarType::Float, op, "input must be float32 or float64");
  f(float{});
}

Tensor binned_moments_cpu(const Tensor& input, const Tensor& target, const OptionalTensor& coefficient, const OptionalTensor& group,
                          int64_t num_groups, double inv_width, int64_t first_bin, int64_t bins, int64_t terms) {
  const char* op = "binned_moments";
  const Samples x(input, target, group, num_groups, inv_width, first_bin, bins, terms, op);
  const Tensor c = torch::stable::contiguous(coefficient.value_or(input));
  check(c.numel() == x.count && c.scalar_type() == input.scalar_type(), op, "coefficient must have the shape and dtype of input");
  Tensor out = torch::stable::new_zeros(input, {num_groups, 2, bins, terms}, ScalarType::Double);
  const int64_t size = x.cells() * terms, length = std::max(kPiece, size), pieces = (x.count + length - 1) / length;
  const auto tables = std::make_unique<double[]>(static_cast<size_t>(pieces * size));
  dispatch_scores(input, op, [&](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t* data = coefficient.has_value() ? c.const_data_ptr<scalar_t>() : nullptr;
    dispatch_terms(terms, [&](auto constant) {
      parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
        for (int64_t p = first; p < last; ++p)
          add_piece<constant.value>(x, data, p * length, std::min(x.count, (p + 1) * length), tables.get() + p * size);
      });
    });
  });
  double* sum = out.mutable_data_ptr<double>();
  for (int64_t p = 0; p < pieces; ++p)
    for (int64_t i = 0; i < size; ++i) sum[i] += tables[static_cast<size_t>(p * size + i)];
  return out;
}

Tensor binned_values_cpu(const Tensor& input, const Tensor& target, const OptionalTensor& group, const Tensor& table, double inv_width,
                         int64_t first_bin) {
  const char* op = "binned_values";
  check(table.dim() == 4 && table.size(1) == 2 && table.scalar_type() == ScalarType::Double, op,
        "table must be float64 of shape (G, 2, bins, terms)");
  const Samples x(input, target, group, table.size(0), inv_width, first_bin, table.size(2), table.size(3), op);
  Tensor out = torch::stable::new_empty(input, {x.count});
  dispatch_scores(input, op, [&](auto zero) {
    using scalar_t = decltype(zero);
    const Tensor wide = torch::stable::contiguous(table);
    const double* in = wide.const_data_ptr<double>();
    std::vector<scalar_t> own(static_cast<size_t>(x.cells() * x.terms));
    std::transform(in, in + own.size(), own.begin(), [](double v) { return static_cast<scalar_t>(v); });
    scalar_t* v = out.mutable_data_ptr<scalar_t>();
    advise_huge_pages(v, static_cast<size_t>(x.count) * sizeof(scalar_t));
    dispatch_terms(x.terms, [&](auto constant) {
      parallel_for(0, x.count, kBlock * 16, [&](int64_t begin, int64_t end) {
        alignas(64) int32_t cell[kBlock];
        alignas(64) scalar_t s[kBlock], t[kBlock];
        for (int64_t first = begin; first < end; first += kBlock) {
          const int64_t n = std::min(kBlock, end - first);
          x.load(first, n, s, cell, t);
          values<constant.value>(own.data(), cell, t, n, x.terms, v + first);
        }
      });
    });
  });
  return out;
}

}  // namespace
}  // namespace nearlinear

STABLE_TORCH_LIBRARY_IMPL(nearlinear, CPU, m) {
  m.impl("binned_moments", TORCH_BOX(&nearlinear::binned_moments_cpu));
  m.impl("binned_values", TORCH_BOX(&nearlinear::binned_values_cpu));
}

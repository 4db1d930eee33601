// segment_moments, CPU.   count_s = #{i: index_i = s},  sum_s = sum x_i,  square_s = sum x_i^2 (diag) or sum x_i x_i^T (full)
//                         d_input_i = d_sum_s + 2 x_i d_square_s,  or d_sum_s + x_i (d_square_s + d_square_s^T),  s = index_i
// Shapes: input [N, D], rows of any stride; index int64 [N]; sum float64 [S, D]; square float64 [S, D], [S, D, D] or [0].
// Algorithm: rows are listed by segment (a stable counting sort of their numbers, none where they are in order already); segments are cut
//   into pieces of a size that depends on N alone, a piece is one thread's, and the pieces of a segment are added in order.
// Cost: reads N D once forward, once backward, writes N D backward; 16 N bytes of row numbers; a partial result for each piece of a segment
//   with several. full: 2 N D^2 forward and backward.
// Numerics: everything is added in float64, where products of float32 are exact; an empty segment gives zeros; NaN stays in its segment;
//   run_to_run, the same bits for any number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../common/dense.h"
#include "../common/dispatch.h"
#include "../common/matmul_tile.h"

namespace nearlinear {
namespace {

using torch::stable::parallel_for;
using torch::stable::Tensor;

enum class Second { kNone, kDiag, kFull };

constexpr int64_t kTile = 64;  // rows that a matrix product takes at a time

struct Piece {
  int64_t segment, begin, end;  // of the listed rows
  int64_t slot;                 // of its partial result, -1 where the piece is its whole segment
};

// the rows of each segment, in their order, and the pieces they are cut into
struct Segments {
  std::vector<int64_t> rows, ends;
  std::vector<Piece> pieces;
  int64_t slots = 0;

  Segments(const int64_t* index, int64_t n, int64_t segments, int64_t piece_rows) : rows(n), ends(segments + 1, 0) {
    for (int64_t i = 0; i < n; ++i) ++ends[index[i] + 1];
    std::partial_sum(ends.begin(), ends.end(), ends.begin());
    if (std::is_sorted(index, index + n)) {
      std::iota(rows.begin(), rows.end(), 0);
    } else {
      std::vector<int64_t> next(ends.begin(), ends.end() - 1);
      for (int64_t i = 0; i < n; ++i) rows[next[index[i]]++] = i;
    }
    for (int64_t s = 0; s < segments; ++s) {
      const bool whole = ends[s + 1] - ends[s] <= piece_rows;
      for (int64_t begin = ends[s]; begin < ends[s + 1]; begin += piece_rows)
        pieces.push_back({s, begin, std::min(begin + piece_rows, ends[s + 1]), whole ? -1 : slots++});
    }
  }
};

struct Call {
  const char* op;
  Tensor input, index;
  int64_t n, d, segments, square_size;  // of one segment
  Second second;

  Call(const Tensor& input_, const Tensor& index_, std::optional<int64_t> num_segments, const std::string& second_moment, const char* op_)
      : op(op_), input(dense(input_)), index(torch::stable::contiguous(index_)), n(0), d(0), segments(0) {
    check(input.dim() == 2, op, "input must have shape (N, D), got ", input.dim(), " dimensions");
    n = input.size(0), d = input.size(1);
    check(index.scalar_type() == ScalarType::Long, op, "index must be int64");
    check(index.dim() == 1 && index.size(0) == n, op, "index must have shape (N,) with N=", n);
    segments = num_segments.value_or(n);
    check(segments >= 0, op, "num_segments must be >= 0, got ", segments);
    check(second_moment == "none" || second_moment == "diag" || second_moment == "full", op,
          "second_moment must be none, diag or full, got ", second_moment);
    second = second_moment == "none" ? Second::kNone : second_moment == "diag" ? Second::kDiag : Second::kFull;
    square_size = second == Second::kNone ? 0 : second == Second::kDiag ? d : d * d;
    const int64_t* id = index.const_data_ptr<int64_t>();
    const int64_t* bad = std::find_if(id, id + n, [&](int64_t s) { return s < 0 || s >= segments; });
    check(bad == id + n, op, "index[", bad - id, "] = ", bad == id + n ? 0 : *bad, " is out of range [0, ", segments, ")");
  }

  // partial results of `full` are large: at most 32 of them
  int64_t piece_rows() const { return second == Second::kFull ? std::max<int64_t>(1024, (n + 31) / 32) : 1024; }
  std::vector<int64_t> square_shape() const {
    return second == Second::kNone   ? std::vector<int64_t>{0}
           : second == Second::kDiag ? std::vector<int64_t>{segments, d}
                                     : std::vector<int64_t>{segments, d, d};
  }
};

// sum[k] += x[k], square[k] += x[k]^2
template <bool SQUARE, typename T>
NL_CLONES void add_row(const T* __restrict x, int64_t d, double* __restrict sum, double* __restrict square) {
#pragma omp simd
  for (int64_t k = 0; k < d; ++k) {
    const double v = static_cast<double>(simd::to_op(x[k]));
    sum[k] += v;
    if constexpr (SQUARE) square[k] += v * v;
  }
}

// the same for four rows: the sums are loaded and stored once for them
template <bool SQUARE, typename T>
NL_CLONES void add_rows(const T* __restrict x0, const T* __restrict x1, const T* __restrict x2, const T* __restrict x3, int64_t d,
                        double* __restrict sum, double* __restrict square) {
#pragma omp simd
  for (int64_t k = 0; k < d; ++k) {
    const double a = static_cast<double>(simd::to_op(x0[k])), b = static_cast<double>(simd::to_op(x1[k])),
                 c = static_cast<double>(simd::to_op(x2[k])), e = static_cast<double>(simd::to_op(x3[k]));
    sum[k] += (a + b) + (c + e);
    if constexpr (SQUARE) square[k] += (a * a + b * b) + (c * c + e * e);
  }
}

// rows of a segment lie anywhere: the processor must be told which ones come next
template <typename T>
void fetch(const T* row, int64_t d) {
  for (int64_t k = 0; k < d; k += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row + k);
}

template <typename T>
NL_CLONES void widen(const T* __restrict x, int64_t d, double* __restrict out) {
#pragma omp simd
  for (int64_t k = 0; k < d; ++k) out[k] = static_cast<double>(simd::to_op(x[k]));
}

// rows of doubles that matmul_tile reads: padded with zeros
struct Rows {
  int64_t stride;
  Lines<double> data;

  Rows(int64_t rows, int64_t columns) : stride(padded_stride<double>(columns)), data(lines<double>(rows * stride)) {}
  double* row(int64_t i) const { return data + i * stride; }
};

template <typename T>
void reduce_piece(const Call& call, const Segments& s, const Piece& piece, Rows* tile, Rows* gram, double* sum, double* square) {
  const T* input = static_cast<const T*>(call.input.data_ptr());
  const int64_t d = call.d, stride = call.input.stride(0);
  const auto row = [&](int64_t i) { return input + s.rows[i] * stride; };
  const auto add = call.second == Second::kDiag ? add_rows<true, T> : add_rows<false, T>;
  const auto add_one = call.second == Second::kDiag ? add_row<true, T> : add_row<false, T>;
  int64_t i = piece.begin;
  for (; i + 4 <= piece.end; i += 4) {
    for (int64_t next = i + 4; next < std::min(i + 8, piece.end); ++next) fetch(row(next), d);
    add(row(i), row(i + 1), row(i + 2), row(i + 3), d, sum, square);
  }
  for (; i < piece.end; ++i) add_one(row(i), d, sum, square);
  if (call.second != Second::kFull) return;
  for (int64_t begin = piece.begin; begin < piece.end; begin += kTile) {
    const int64_t rows = std::min(kTile, piece.end - begin);
    for (int64_t r = 0; r < rows; ++r) widen(input + s.rows[begin + r] * stride, d, tile->row(r));
    const auto product = begin == piece.begin ? matmul_tile<Layout::kColumns, false, double> : matmul_tile<Layout::kColumns, true, double>;
    product(d, tile->stride, rows, tile->data.get(), tile->stride, tile->data.get(), tile->stride, gram->data.get(), gram->stride);
  }
  for (int64_t k = 0; k < d; ++k) std::copy_n(gram->row(k), d, square + k * d);
}

template <typename T>
void moments(const Call& call, const Segments& s, double* sum, double* square) {
  const int64_t d = call.d, q = call.square_size, width = d + q;
  std::vector<double> partial(s.slots * width, 0.0);
  parallel_for(0, s.pieces.size(), 1, [&](int64_t first, int64_t last) {
    const bool full = call.second == Second::kFull;
    Rows tile(full ? kTile : 0, d), gram(full ? d : 0, d);
    for (int64_t p = first; p < last; ++p) {
      const Piece& piece = s.pieces[p];
      const bool whole = piece.slot < 0;
      double* const to = whole ? sum + piece.segment * d : partial.data() + piece.slot * width;
      reduce_piece<T>(call, s, piece, &tile, &gram, to, whole ? square + piece.segment * q : to + d);
    }
  });
  for (const Piece& piece : s.pieces) {
    if (piece.slot < 0) continue;
    const double* from = partial.data() + piece.slot * width;
    add_row<false>(from, d, sum + piece.segment * d, nullptr);
    add_row<false>(from + d, q, square + piece.segment * q, nullptr);
  }
}

template <typename T>
NL_CLONES void pull_back(const double* __restrict d_sum, const double* __restrict d_square, const T* __restrict x, int64_t d,
                         T* __restrict out) {
  for (int64_t k = 0; k < d; ++k) {
    const double v = static_cast<double>(simd::to_op(x[k]));
    simd::from_op(static_cast<opmath_t<T>>(d_sum[k] + (d_square ? 2 * v * d_square[k] : 0)), out + k);
  }
}

// one row after another: out of order in memory, but each is read and written once
template <typename T>
void gradient(const Call& call, const double* d_sum, const double* d_square, T* out) {
  const T* input = static_cast<const T*>(call.input.data_ptr());
  const int64_t* index = call.index.const_data_ptr<int64_t>();
  const int64_t d = call.d, stride = call.input.stride(0);
  parallel_for(0, call.n, std::max<int64_t>(1, 32768 / std::max<int64_t>(d, 1)), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      pull_back(d_sum + index[i] * d, d_square ? d_square + index[i] * d : nullptr, input + i * stride, d, out + i * d);
  });
}

template <typename T>
void gradient_full(const Call& call, const double* d_sum, const double* d_square, T* out) {
  const T* input = static_cast<const T*>(call.input.data_ptr());
  const Segments s(call.index.const_data_ptr<int64_t>(), call.n, call.segments, call.piece_rows());
  const int64_t d = call.d, stride = call.input.stride(0);
  parallel_for(0, s.pieces.size(), 1, [&](int64_t first, int64_t last) {
    Rows tile(kTile, d), both(d, d), result(kTile, d);
    for (int64_t p = first; p < last; ++p) {
      const Piece& piece = s.pieces[p];
      const double* matrix = d_square + piece.segment * d * d;
      for (int64_t k = 0; k < d; ++k)
        for (int64_t l = 0; l < d; ++l) both.row(k)[l] = matrix[k * d + l] + matrix[l * d + k];
      for (int64_t begin = piece.begin; begin < piece.end; begin += kTile) {
        const int64_t rows = std::min(kTile, piece.end - begin);
        for (int64_t r = 0; r < rows; ++r) widen(input + s.rows[begin + r] * stride, d, tile.row(r));
        matmul_tile<Layout::kRows, false, double>(rows, both.stride, d, tile.data.get(), tile.stride, both.data.get(), both.stride,
                                                  result.data.get(), result.stride);
        for (int64_t r = 0; r < rows; ++r) {
          add_row<false>(d_sum + piece.segment * d, d, result.row(r), nullptr);
          T* to = out + s.rows[begin + r] * d;
          for (int64_t k = 0; k < d; ++k) simd::from_op(static_cast<opmath_t<T>>(result.row(r)[k]), to + k);
        }
      }
    }
  });
}

Tensor zeros(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  Tensor made = torch::stable::new_empty(like, shape, dtype);
  torch::stable::zero_(made);
  return made;
}

std::tuple<Tensor, Tensor, Tensor> segment_moments_cpu(const Tensor& input, const Tensor& index, std::optional<int64_t> num_segments,
                                                       const std::string& second_moment) {
  const Call call(input, index, num_segments, second_moment, "segment_moments");
  const Tensor count = zeros(input, {call.segments}, ScalarType::Long), sum = zeros(input, {call.segments, call.d}, ScalarType::Double),
               square = zeros(input, call.square_shape(), ScalarType::Double);
  const Segments s(call.index.const_data_ptr<int64_t>(), call.n, call.segments, call.piece_rows());
  std::adjacent_difference(s.ends.begin() + 1, s.ends.end(), static_cast<int64_t*>(count.data_ptr()));
  dispatch_floating(input.scalar_type(), call.op, "input", [&](auto zero) {
    moments<decltype(zero)>(call, s, static_cast<double*>(sum.data_ptr()), static_cast<double*>(square.data_ptr()));
  });
  return {sum, square, count};
}

Tensor segment_moments_backward_cpu(const Tensor& d_sum, const Tensor& d_square, const Tensor& input, const Tensor& index,
                                    std::optional<int64_t> num_segments, const std::string& second_moment) {
  const Call call(input, index, num_segments, second_moment, "segment_moments_backward");
  const Tensor by_sum = torch::stable::contiguous(d_sum), by_square = torch::stable::contiguous(d_square);
  check(by_sum.scalar_type() == ScalarType::Double && by_sum.numel() == call.segments * call.d, call.op,
        "d_sum must be float64 of shape (S, D)");
  check(by_square.scalar_type() == ScalarType::Double && by_square.numel() == call.segments * call.square_size, call.op,
        "d_square must be float64 of the shape of square");
  Tensor d_input = torch::stable::new_empty(input, {call.n, call.d});
  dispatch_floating(input.scalar_type(), call.op, "input", [&](auto zero) {
    using T = decltype(zero);
    const double *first = by_sum.const_data_ptr<double>(), *second = by_square.const_data_ptr<double>();
    T* out = static_cast<T*>(d_input.data_ptr());
    if (call.second == Second::kFull) return gradient_full<T>(call, first, second, out);
    gradient<T>(call, first, call.second == Second::kDiag ? second : nullptr, out);
  });
  return d_input;
}

}  // namespace
}  // namespace nearlinear

STABLE_TORCH_LIBRARY_IMPL(nearlinear, CPU, m) {
  m.impl("segment_moments", TORCH_BOX(&nearlinear::segment_moments_cpu));
  m.impl("segment_moments_backward", TORCH_BOX(&nearlinear::segment_moments_backward_cpu));
}

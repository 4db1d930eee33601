// taylor_scan, CPU.   sums_i = sum_r phi_r(query_i) w_r S1_ir * S2_ir,   S_t,ir = sum_{j <= i} e^bias_tj phi_r(key_tj) (value_tj, 1);
//                     backward: G_ir = w_r phi_r(query_i) d_sums_i, summed over the query heads of a group,
//                     R1_jr = sum_{i >= j} G_ir * S2_ir, R2 alike, d_value1_j = e^bias_j sum_r phi_r(key1_j) R1_jr,
//                     d phi_r(key1_j) = e^bias_j <(value1_j, 1), R1_jr>, d phi_r(query_i) = w_r <S1_ir * S2_ir, d_sums_i>.
// Shapes: query [B, H, N, D], keys [B, G, N, D], values [B, G, N, E], biases [B, G, N] or none, G divides H; weight [C(D + degree,
// degree)];
//   sums [B, H, N, E + 1]. Any strides.
// Algorithm: a feature and a column have a state of their own that walks the tokens. Chunks of 96 tokens; in a chunk, runs of 32 features,
//   made where they are needed; for a feature, 16 columns (8 in float64) in registers meet the tokens one by one. The column of ones has no
//   16 columns: there tokens are lanes, 16 walks side by side. Up to 4 query heads share the walk of the states. Backward, for a run of
//   features: the states at the starts of all chunks; then, chunk by chunk backwards in time, the states again from there and the gradients
//   of the states back. No state is found by subtraction, which would cancel.
// Cost: N R (E + 1) times 3 multiply-adds and a multiplication forward, 13 of both backward; a query head that shares the walk of
//   another adds 1 forward, 2 backward. A thread keeps forward: states of 4096 features at most, 64 KB for each column (d = 64, degree 2:
//   2.2 MB), whatever N and R. Backward: the inputs and gradients of a group once more in the dtype of the statistics, and the states of 32
//   features at the starts of chunks, 2.7 N (E + 1) bytes; where B G < 8, the features of a group are cut into up to 8 / (B G) parts with
//   gradients of their own, until they are added.
// Numerics: accumulates in float32 (float64 for float64): sums within a chunk, their totals in float64, so that errors do not grow with N.
//   A key with bias -inf takes no part, whatever it and its value hold, and has gradient 0. The sums of the first tokens do not depend on
//   later ones, bit for bit. run_to_run, the same bits for any number of threads: columns are independent; parts of the backward are cut by
//   the shapes and added in order.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "taylor_scan_backward.h"

namespace nearlinear {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kPass = 4096;  // features whose states are kept at a time
constexpr int64_t kParts = 8;    // of the features in all, where there are fewer heads

template <typename scalar_t, int HEADS>
void scan(const ScanArguments& in, const Task& task, const Tensor& out) {
  using T = opmath_t<scalar_t>;
  constexpr int64_t W = kLanes<T>;
  const int64_t most = std::min(kPass, in.table.count()), first_column = task.panel * W;
  const int64_t width = std::min(in.columns - first_column, task.panels * W);
  const Chunks<T> x(1, 2 + HEADS, in.dim, task.panels, 2 + HEADS);
  const Lines<T> phi = lines<T>((2 + HEADS) * kScanRun * kRow<T>), sums = lines<T>(HEADS * kChunk * W),
                 line = lines<T>(std::max(in.dim, in.columns) + 1);
  const Lines<double> totals = lines<double>(most * 2 * (task.panels * W + 1));
  for (int64_t pass = 0; pass < in.table.count(); pass += most) {
    const int64_t end = std::min(pass + most, in.table.count());
    std::fill_n(static_cast<double*>(totals), most * 2 * (task.panels * W + 1), 0.0);
    for (int64_t chunk = 0; chunk < in.chunks(); ++chunk) {
      pack<scalar_t, T>(in, task, chunk, x, 0, line);
      for (int h = 0; h < HEADS; ++h) {
        std::fill_n(x.last(0, 2 + h), kChunk, T(0));
        std::fill_n(x.columns(0, 2 + h), task.panels * kChunk * W, T(0));
      }
      const int64_t lanes = lanes_of(in, chunk, kSteps<T>);
      for_runs(in.table, pass, end, [&](int64_t m, int64_t a, int64_t b, int64_t first) {
        make_features<T>(in, x, 0, 2 + HEADS, first, m, a, b, phi);
        for (int64_t p = 0; p < task.panels; ++p) {
          const int64_t at = p * kChunk * W;
          std::fill_n(static_cast<T*>(sums), HEADS * kChunk * W, T(0));
          scan_panel<HEADS, T>(b - a, lanes, phi, x.columns(0, 0) + at, x.columns(0, 1) + at, totals + (p * most + first - pass) * 2 * W,
                               sums);
          for (int h = 0; h < HEADS; ++h) add_all<T>(sums + h * kChunk * W, kChunk * W, x.columns(0, 2 + h) + at);
        }
        if (task.panel > 0) return;
        std::fill_n(static_cast<T*>(sums), HEADS * kChunk, T(0));
        scan_last<HEADS, T>(b - a, phi, totals + most * 2 * task.panels * W + (first - pass) * 2, sums);
        for (int h = 0; h < HEADS; ++h) add_all<T>(sums + h * kChunk, kChunk, x.last(0, 2 + h));
      });
      for (int h = 0; h < HEADS; ++h) {
        const auto rows = rows_of<T>(out, task.b, task.g * in.group() + task.head + h);
        for (int64_t i = 0; i < std::min(kChunk, in.tokens - chunk * kChunk); ++i) {
          T* row = rows.data + (chunk * kChunk + i) * rows.stride;
          add_columns(x.columns(0, 2 + h), place<T>(i), width, row + first_column);
          if (task.panel == 0) row[in.columns] += x.last(0, 2 + h)[place<T>(i)];
        }
      }
    }
  }
}

template <typename scalar_t>
void scan_all(const ScanArguments& in, const Tensor& out) {
  const int64_t panels = pieces(in.columns, kLanes<opmath_t<scalar_t>>), problems = in.batch * in.groups;
  int64_t batches = 0;
  for_heads(in.group(), [&](auto, int64_t) { ++batches; });
  if (problems * batches == 0 || in.tokens == 0) return;
  // columns are independent: cutting them changes no bit
  const int64_t wished = pieces(torch::stable::get_num_threads(), problems * batches), size = pieces(panels, wished);
  const int64_t cuts = std::max<int64_t>(pieces(panels, std::max<int64_t>(size, 1)), 1);
  parallel_for(0, problems * batches * cuts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t panel = i % cuts * size, problem = i / cuts / batches;
      int64_t left = i / cuts % batches;
      for_heads(in.group(), [&](auto heads, int64_t head) {
        if (left-- != 0) return;
        const Task task{problem / in.groups, problem % in.groups, head, heads.value, panel, std::min(size, panels - panel)};
        scan<scalar_t, heads.value>(in, task, out);
      });
    }
  });
}

template <typename scalar_t>
void backward_all(const ScanArguments& in, const Tensor& d_sums, Wants wants, const Gradients& out) {
  using T = opmath_t<scalar_t>;
  const int64_t problems = in.batch * in.groups, features = in.table.count();
  if (problems == 0 || in.tokens == 0 || !(wants.query || wants.keys)) return;
  // cut by shapes alone, so that the bits are those of any number of threads
  const int64_t size = pieces(pieces(features, pieces(kParts, problems)), kScanRun) * kScanRun, parts = pieces(features, size);
  std::vector<std::unique_ptr<Chunks<T>>> found(static_cast<size_t>(problems * parts));
  parallel_for(0, problems * parts, 1, [&](int64_t begin, int64_t end) {
    const Lines<T> line = lines<T>(std::max(in.dim, in.columns));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % parts * size, b = i / parts / in.groups, g = i / parts % in.groups;
      auto& d = found[static_cast<size_t>(i)];
      d = gradients<scalar_t>(in, d_sums, b, g, first, std::min(first + size, features), wants);
      if (parts > 1) continue;
      for (int64_t chunk = 0; chunk < in.chunks(); ++chunk) store<scalar_t, T>(in, b, g, chunk, *d, line, out);
      d.reset();
    }
  });
  if (parts == 1) return;
  parallel_for(0, problems * in.chunks(), 1, [&](int64_t begin, int64_t end) {
    const Lines<T> line = lines<T>(std::max(in.dim, in.columns));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t problem = i / in.chunks(), chunk = i % in.chunks();
      const auto& d = *found[static_cast<size_t>(problem * parts)];
      for (int64_t part = 1; part < parts; ++part) d.add(chunk, *found[static_cast<size_t>(problem * parts + part)]);
      store<scalar_t, T>(in, problem / in.groups, problem % in.groups, chunk, d, line, out);
    }
  });
}

Tensor taylor_scan_cpu(const Tensor& query, const Tensor& key1, const Tensor& key2, const Tensor& value1, const Tensor& value2,
                       const OptionalTensor& bias1, const OptionalTensor& bias2, const Tensor& weight, int64_t degree) {
  const char* op = "taylor_scan";
  const ScanArguments in(op, query, {key1, key2}, {value1, value2}, {bias1, bias2}, weight, degree);
  Tensor out = torch::stable::new_empty(query, {in.batch, in.heads, in.tokens, in.columns + 1}, opmath_dtype(query.scalar_type()));
  torch::stable::zero_(out);
  dispatch_floating(query.scalar_type(), op, "query", [&](auto zero) { scan_all<decltype(zero)>(in, out); });
  return out;
}

using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Seven taylor_scan_backward_cpu(const Tensor& d_sums, const Tensor& query, const Tensor& key1, const Tensor& key2, const Tensor& value1,
                               const Tensor& value2, const OptionalTensor& bias1, const OptionalTensor& bias2, const Tensor& weight,
                               int64_t degree, const std::vector<bool>& wants) {
  const char* op = "taylor_scan_backward";
  const ScanArguments in(op, query, {key1, key2}, {value1, value2}, {bias1, bias2}, weight, degree);
  ScanArguments::fits(op, d_sums, "d_sums", {in.batch, in.heads, in.tokens, in.columns + 1}, opmath_dtype(query.scalar_type()));
  check(wants.size() == 7, op, "wants must have 7 elements, got ", wants.size());
  const auto made = [&](const Tensor& like, bool wanted, std::vector<int64_t> shape) {
    return torch::stable::new_empty(like, wanted ? std::move(shape) : std::vector<int64_t>{0});
  };
  const std::vector<int64_t> keys{in.batch, in.groups, in.tokens, in.dim}, values{in.batch, in.groups, in.tokens, in.columns};
  const std::vector<int64_t> biases{in.batch, in.groups, in.tokens};
  const Gradients out{
      made(query, wants[0], {in.batch, in.heads, in.tokens, in.dim}),
      {made(key1, wants[1], keys), made(key2, wants[2], keys)},
      {made(value1, wants[3], values), made(value2, wants[4], values)},
      {made(d_sums, wants[5] && bias1.has_value(), biases), made(d_sums, wants[6] && bias2.has_value(), biases)},
  };
  bool keys_wanted = false;
  for (size_t i = 1; i < 7; ++i) keys_wanted = keys_wanted || wants[i];
  dispatch_floating(query.scalar_type(), op, "query",
                    [&](auto zero) { backward_all<decltype(zero)>(in, d_sums, {wants[0], keys_wanted}, out); });
  return {out.query, out.key[0], out.key[1], out.value[0], out.value[1], out.bias[0], out.bias[1]};
}

}  // namespace
}  // namespace nearlinear

STABLE_TORCH_LIBRARY_IMPL(nearlinear, CPU, m) {
  m.impl("taylor_scan", TORCH_BOX(&nearlinear::taylor_scan_cpu));
  m.impl("taylor_scan_backward", TORCH_BOX(&nearlinear::taylor_scan_backward_cpu));
}

// logit_stats, CPU.   nll = -log softmax(z)[y],  lse = log sum_j e^{z_j},  spread = sum_j w_j (lse - z_j),  z = map(input)
//                     d_input = map' * (G p_j - d_nll [j = y] - d_spread w_j),  G = d_nll + d_lse + d_spread sum w
// Shapes: input [N, V] or [N, V, P] any strides, target [N] or [N, P] int64, weight [V]; statistics float32 (float64 for float64).
// Algorithm: one online pass (Milakov and Gimelshein 2018) over the classes other than the target. Rows of many classes go in blocks of
//   2048 classes; few classes, or classes with a stride, go in tiles of 64 rows and vectorise across rows.
// Cost: reads N V forward, reads and writes N V backward; 2 N V exponentials; no [N, V] temporary.
// Numerics: logit deficit, so nll keeps its relative accuracy down to 1e-30 and under any common offset; blocks merge in float64;
//   NaN, +inf and an all -inf row give NaN in that row only; ignored rows and rows with zero upstream are never read; run_to_run,
//   the same bits for any number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <tuple>

#include "../common/memory.h"
#include "cross_entropy_soft.h"
#include "cross_entropy_tiles.h"

namespace nearlinear {
namespace {

using torch::stable::parallel_for;

// -1, or the position of the first label that is neither a class nor ignore_index
int64_t first_invalid(const int64_t* target, int64_t n, int64_t classes, int64_t ignore_index) {
  for (int64_t i = 0; i < n; ++i)
    if ((target[i] < 0 || target[i] >= classes) && target[i] != ignore_index) return i;
  return -1;
}

// the classes that the rows of input hold: all, or a shard of them
struct Shard {
  int64_t first, classes;
  bool partial;

  Shard(const Logits& L, int64_t first_class, const std::optional<int64_t>& num_classes, const char* op)
      : first(first_class), classes(num_classes.value_or(L.classes)), partial(first_class != 0 || classes != L.classes) {
    check(first >= 0 && L.classes <= classes - first, op, "first_class + V must be <= num_classes, got first_class=", first,
          ", V=", L.classes, ", num_classes=", classes);
  }
};

void check_target(const Tensor& target, const Logits& logits, const Shard& shard, int64_t ignore_index, const char* op) {
  check(target.scalar_type() == ScalarType::Long, op, "target must be int64");
  check(target.numel() == logits.rows(), op, "target must have one label per row, ", logits.rows(), ", got ", target.numel());
  const int64_t* labels = target.const_data_ptr<int64_t>();
  const int64_t bad = first_invalid(labels, target.numel(), shard.classes, ignore_index);
  if (bad >= 0)
    check(false, op, "target[", bad, "] = ", labels[bad], " is out of range [0, ", shard.classes,
          ") and is not ignore_index=", ignore_index);
}

template <typename op_t>
const op_t* weight_pointer(const std::optional<Tensor>& weight, const Logits& logits, const char* op) {
  if (!weight.has_value()) return nullptr;
  check(weight->scalar_type() == (std::is_same_v<op_t, double> ? ScalarType::Double : ScalarType::Float), op,
        "weight must have the dtype of the statistics");
  check(weight->dim() == 1 && weight->size(0) == logits.classes && weight->is_contiguous(), op,
        "weight must be contiguous with shape (V,)");
  return weight->const_data_ptr<op_t>();
}

template <typename op_t>
SoftTarget<op_t> soft_target(const Tensor& target, const std::optional<Tensor>& weight, const Logits& L, double label_smoothing,
                             const char* op) {
  const Logits T(target, op, "target");
  check(T.batch == L.batch && T.classes == L.classes && T.pixels == L.pixels, op, "target must have the shape of input");
  const double uniform = label_smoothing / static_cast<double>(std::max<int64_t>(L.classes, 1));
  return {Blocks<op_t>(target, op, "target"), T, weight_pointer<op_t>(weight, L, op), static_cast<op_t>(1 - label_smoothing),
          static_cast<op_t>(uniform)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> logit_stats_cpu(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                                                           int64_t ignore_index, const std::string& logit_map,
                                                           const std::vector<double>& map_params, bool spread, int64_t first_class,
                                                           const std::optional<int64_t>& num_classes) {
  const char* op = "logit_stats";
  const Logits L(input, op, "input");
  const Shard shard(L, first_class, num_classes, op);
  const Tensor labels = torch::stable::contiguous(target);
  check_target(labels, L, shard, ignore_index, op);
  const LogitMap map = make_logit_map(logit_map, map_params, op);
  const auto shape = row_shape(input);
  const ScalarType dtype = opmath_dtype(input.scalar_type());
  auto output = [&](bool wanted) { return torch::stable::new_empty(input, wanted ? shape : std::vector<int64_t>{0}, dtype); };
  Tensor nll = output(true), lse = output(true), deviation = output(spread), residual = output(true);
  dispatch_opmath(input.scalar_type(), [&](auto zero) {
    using op_t = decltype(zero);
    const Blocks<op_t> in(input, op, "input");
    const op_t* w = weight_pointer<op_t>(weight, L, op);
    const RowOutputs<op_t> out{
        nll.mutable_data_ptr<op_t>(),      lse.mutable_data_ptr<op_t>(), spread ? deviation.mutable_data_ptr<op_t>() : nullptr,
        residual.mutable_data_ptr<op_t>(), sum_of(w, L.classes),         shard.partial};
    const int64_t* y = labels.const_data_ptr<int64_t>();
    std::visit(
        [&](auto m) {
          if (prefers_tiles(L) && !shard.partial) {
            const Lanes G(L);
            parallel_for(0, G.tiles(), row_grain(L.classes * kLanes), [&](int64_t begin, int64_t end) {
              for (int64_t t = begin; t < end; ++t) forward_tile(L, G, in, m, w, t, y, ignore_index, out);
            });
            return;
          }
          parallel_for(0, L.rows(), row_grain(L.classes), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) {
              if (y[r] != ignore_index) {
                forward_row(L, in, m, w, r, y[r] - shard.first, out);
                continue;
              }
              out.nll[r] = out.lse[r] = out.residual[r] = 0;
              if (spread) out.spread[r] = 0;
            }
          });
        },
        map);
  });
  return {nll, lse, deviation, residual};
}

// writes the gradient into d_input, which may be input itself
void write_gradient(Tensor& d_input, const Tensor& d_nll, const Tensor& d_lse, const Tensor& d_spread, const Tensor& input,
                    const Tensor& target, const std::optional<Tensor>& weight, const Tensor& nll, const Tensor& lse,
                    const Tensor& lse_residual, int64_t ignore_index, const std::string& logit_map, const std::vector<double>& map_params,
                    bool spread, int64_t first_class, const std::optional<int64_t>& num_classes, const char* op) {
  const Logits L(input, op, "input");
  const Shard shard(L, first_class, num_classes, op);
  const Tensor labels = torch::stable::contiguous(target);
  check_target(labels, L, shard, ignore_index, op);
  const LogitMap map = make_logit_map(logit_map, map_params, op);
  const Logits D(d_input, op, "d_input");
  dispatch_opmath(input.scalar_type(), [&](auto zero) {
    using op_t = decltype(zero);
    const Blocks<op_t> in(input, op, "input"), d_in(d_input, op, "d_input");
    const op_t* w = weight_pointer<op_t>(weight, L, op);
    Tensor rows[6] = {d_nll, d_lse, nll, lse, lse_residual, d_spread};
    const op_t* p[6];
    for (int i = 0; i < 6; ++i) p[i] = i < 5 || spread ? row_values<op_t>(rows[i], L, op) : nullptr;
    const RowUpstream<op_t> up{p[0], p[1], p[5], p[2], p[3], p[4], sum_of(w, L.classes)};
    const int64_t* y = labels.const_data_ptr<int64_t>();
    std::visit(
        [&](auto m) {
          if (prefers_tiles(L) && !shard.partial) {
            const Lanes G(L), GD(D);
            parallel_for(0, G.tiles(), row_grain(L.classes * kLanes), [&](int64_t begin, int64_t end) {
              for (int64_t t = begin; t < end; ++t) backward_tile(L, G, in, m, w, t, y, ignore_index, up, GD, D.stride_v, d_in);
            });
            return;
          }
          parallel_for(0, L.rows(), row_grain(L.classes), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) {
              if (y[r] == ignore_index || up.is_zero(r)) {
                zero_row(D, r, d_in);
              } else {
                backward_row(L, in, m, w, r, y[r] - shard.first, up, D, d_in);
              }
            }
          });
        },
        map);
  });
}

Tensor logit_stats_backward_cpu(const Tensor& d_nll, const Tensor& d_lse, const Tensor& d_spread, const Tensor& input, const Tensor& target,
                                const std::optional<Tensor>& weight, const Tensor& nll, const Tensor& lse, const Tensor& lse_residual,
                                int64_t ignore_index, const std::string& logit_map, const std::vector<double>& map_params, bool spread,
                                int64_t first_class, const std::optional<int64_t>& num_classes) {
  Tensor d_input = torch::stable::empty_like(input);
  advise_huge_pages(d_input.data_ptr(), d_input.numel() * d_input.element_size());
  write_gradient(d_input, d_nll, d_lse, d_spread, input, target, weight, nll, lse, lse_residual, ignore_index, logit_map, map_params,
                 spread, first_class, num_classes, "logit_stats_backward");
  return d_input;
}

void logit_stats_backward_cpu_(const Tensor& d_nll, const Tensor& d_lse, const Tensor& d_spread, Tensor input, const Tensor& target,
                               const std::optional<Tensor>& weight, const Tensor& nll, const Tensor& lse, const Tensor& lse_residual,
                               int64_t ignore_index, const std::string& logit_map, const std::vector<double>& map_params, bool spread,
                               int64_t first_class, const std::optional<int64_t>& num_classes) {
  write_gradient(input, d_nll, d_lse, d_spread, input, target, weight, nll, lse, lse_residual, ignore_index, logit_map, map_params, spread,
                 first_class, num_classes, "logit_stats_backward_");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> soft_logit_stats_cpu(const Tensor& input, const Tensor& target,
                                                                const std::optional<Tensor>& weight, double label_smoothing,
                                                                const std::string& logit_map, const std::vector<double>& map_params) {
  const char* op = "soft_logit_stats";
  const Logits L(input, op, "input");
  const LogitMap map = make_logit_map(logit_map, map_params, op);
  auto output = [&] { return torch::stable::new_empty(input, row_shape(input), opmath_dtype(input.scalar_type())); };
  Tensor xent = output(), lse = output(), residual = output(), mass = output();
  dispatch_opmath(input.scalar_type(), [&](auto zero) {
    using op_t = decltype(zero);
    const Blocks<op_t> in(input, op, "input");
    const SoftTarget<op_t> soft = soft_target<op_t>(target, weight, L, label_smoothing, op);
    const SoftOutputs<op_t> out{xent.mutable_data_ptr<op_t>(), lse.mutable_data_ptr<op_t>(), residual.mutable_data_ptr<op_t>(),
                                mass.mutable_data_ptr<op_t>()};
    std::visit(
        [&](auto m) {
          parallel_for(0, L.rows(), row_grain(L.classes), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) soft_forward_row(L, in, m, soft, r, out);
          });
        },
        map);
  });
  return {xent, lse, residual, mass};
}

std::tuple<Tensor, Tensor> soft_logit_stats_backward_cpu(const Tensor& d_xent, const Tensor& d_lse, const Tensor& input,
                                                         const Tensor& target, const std::optional<Tensor>& weight, const Tensor& lse,
                                                         const Tensor& lse_residual, const Tensor& mass, double label_smoothing,
                                                         const std::string& logit_map, const std::vector<double>& map_params,
                                                         bool target_gradient) {
  const char* op = "soft_logit_stats_backward";
  const Logits L(input, op, "input");
  const LogitMap map = make_logit_map(logit_map, map_params, op);
  Tensor d_input = torch::stable::empty_like(input);
  Tensor d_target = target_gradient ? torch::stable::empty_like(target) : torch::stable::new_empty(target, {0});
  const Logits D(d_input, op, "d_input");
  dispatch_opmath(input.scalar_type(), [&](auto zero) {
    using op_t = decltype(zero);
    const Blocks<op_t> in(input, op, "input"), d_in(d_input, op, "d_input"), d_t(d_target, op, "d_target");
    const SoftTarget<op_t> soft = soft_target<op_t>(target, weight, L, label_smoothing, op);
    Tensor rows[5] = {d_xent, d_lse, lse, lse_residual, mass};
    const op_t* p[5];
    for (int i = 0; i < 5; ++i) p[i] = row_values<op_t>(rows[i], L, op);
    const SoftUpstream<op_t> up{p[0], p[1], p[2], p[3], p[4]};
    const std::optional<Logits> DT = target_gradient ? std::optional<Logits>(Logits(d_target, op, "d_target")) : std::nullopt;
    advise_huge_pages(d_input.data_ptr(), d_input.numel() * d_input.element_size());
    std::visit(
        [&](auto m) {
          parallel_for(0, L.rows(), row_grain(L.classes), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r)
              soft_backward_row(L, in, m, soft, r, up, D, d_in, DT ? &*DT : nullptr, DT ? &d_t : nullptr);
          });
        },
        map);
  });
  return {d_input, d_target};
}

Tensor first_invalid_target_cpu(const Tensor& target, int64_t num_classes, int64_t ignore_index) {
  check(target.scalar_type() == ScalarType::Long, "first_invalid_target", "target must be int64");
  const Tensor labels = torch::stable::contiguous(target);
  Tensor position = torch::stable::new_empty(target, {}, ScalarType::Long);
  *position.mutable_data_ptr<int64_t>() = first_invalid(labels.const_data_ptr<int64_t>(), labels.numel(), num_classes, ignore_index);
  return position;
}

}  // namespace
}  // namespace nearlinear

STABLE_TORCH_LIBRARY_IMPL(nearlinear, CPU, m) {
  m.impl("logit_stats", TORCH_BOX(&nearlinear::logit_stats_cpu));
  m.impl("logit_stats_backward", TORCH_BOX(&nearlinear::logit_stats_backward_cpu));
  m.impl("logit_stats_backward_", TORCH_BOX(&nearlinear::logit_stats_backward_cpu_));
  m.impl("soft_logit_stats", TORCH_BOX(&nearlinear::soft_logit_stats_cpu));
  m.impl("soft_logit_stats_backward", TORCH_BOX(&nearlinear::soft_logit_stats_backward_cpu));
  m.impl("first_invalid_target", TORCH_BOX(&nearlinear::first_invalid_target_cpu));
}

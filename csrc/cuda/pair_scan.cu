// pair_scan, CUDA.   total_g = sum over the positives i and the negatives j of a group of c_i c_j value(s_i - s_j), float64;
//                    potential_i = sum_j c_j potential(s_i - s_j),  potential_j = sum_i c_i potential(s_i - s_j)
// Shapes: input [N] float32 or float64, target [N] bool, coefficient [N] of input's dtype, group [N] int64, any strides; total [G],
//   potential [N]; kernels as in python/nearlinear/pair_kernels.py
// Algorithm: csrc/algo/pair_scan.h: a stable radix sort of keys with positions, a second one by label and group, and for each side and
//   direction of a knot a tiled scan of states over the merged labels, by Thrust. "auto" is "scan"; "direct": every pair of a group.
// Cost: the two sorts, 24 N bytes in each of 4 passes and 32 N in each of 8; two reads of 32 N bytes per walk and 1 to 25 exponentials per
//   element (logistic); workspace 65 N bytes, 69 N in float64, 144 bytes per group. No host sync: on the current stream, memory from torch.
// Numerics: as the CPU kernel, run_to_run: tiles have a fixed size and order; groups out of range count nowhere. Not yet run on a GPU; the
//   tests run the same source on the host.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <tuple>

#include "../algo/pair_scan_launch.h"
#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/stream.h"

namespace nearlinear {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

const char* const kOp = "pair_scan";

template <typename scalar_t>
void run(const PairPlan& plan, bool direct, const Tensor& scores, const Tensor& target, const OptionalTensor& coefficient,
         const OptionalTensor& group, int64_t num_groups, Tensor& total, Tensor& potential) {
  const size_t bytes = algo::pair_workspace<decltype(ordered_key(scalar_t{}))>(scores.numel(), num_groups);
  const Tensor memory = torch::stable::new_empty(scores, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
  const algo::PairSamples<scalar_t> samples{scores.const_data_ptr<scalar_t>(),
                                            target.const_data_ptr<bool>(),
                                            coefficient.has_value() ? coefficient->const_data_ptr<scalar_t>() : nullptr,
                                            group.has_value() ? group->const_data_ptr<int64_t>() : nullptr,
                                            scores.numel(),
                                            num_groups};
  algo::launch_pair_scan(plan, direct, samples, plan.wants_value ? total.mutable_data_ptr<double>() : nullptr,
                         plan.wants_potential ? potential.mutable_data_ptr<scalar_t>() : nullptr, static_cast<char*>(memory.data_ptr()),
                         bytes, current_stream(scores, kOp));
  check_launch(kOp);
}

OptionalTensor dense(const OptionalTensor& tensor, int64_t n, ScalarType dtype, const char* text) {
  if (!tensor.has_value()) return tensor;
  check(tensor->scalar_type() == dtype && tensor->dim() == 1 && tensor->numel() == n, kOp, text);
  return torch::stable::contiguous(*tensor);
}

std::tuple<Tensor, Tensor> pair_scan_cuda(const Tensor& input, const Tensor& target, const OptionalTensor& coefficient,
                                          const OptionalTensor& group, int64_t num_groups, const std::string& family,
                                          const std::vector<double>& value, const std::vector<double>& potential,
                                          const std::string& method) {
  const ScalarType dtype = input.scalar_type();
  check(input.dim() == 1, kOp, "input must have shape (N,), got ", input.dim(), " dimensions");
  check(dtype == ScalarType::Float || dtype == ScalarType::Double, kOp, "input must be float32 or float64");
  check(method == "auto" || method == "scan" || method == "direct", kOp, "method must be auto, scan or direct, got ", method);
  check(num_groups >= 0 && (group.has_value() || num_groups == 1), kOp, "num_groups must be >= 0, and 1 without group, got ", num_groups);
  const int64_t n = input.numel();
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Tensor scores = torch::stable::contiguous(input), labels = *dense(target, n, ScalarType::Bool, "target must be bool of shape (N,)");
  const OptionalTensor weight = dense(coefficient, n, dtype, "coefficient must have the dtype and the shape of input");
  const OptionalTensor ids = dense(group, n, ScalarType::Long, "group must be int64 of shape (N,)");
  const PairPlan plan = PairPlanner(family, value, potential, kOp).plan();
  Tensor total = torch::stable::new_empty(input, {value.empty() ? 0 : num_groups}, ScalarType::Double);
  Tensor out = torch::stable::new_empty(input, {potential.empty() ? 0 : n});
  if (dtype == ScalarType::Double) {
    run<double>(plan, method == "direct", scores, labels, weight, ids, num_groups, total, out);
  } else {
    run<float>(plan, method == "direct", scores, labels, weight, ids, num_groups, total, out);
  }
  return {total, out};
}

}  // namespace
}  // namespace nearlinear

STABLE_TORCH_LIBRARY_IMPL(nearlinear, CUDA, m) { m.impl("pair_scan", TORCH_BOX(&nearlinear::pair_scan_cuda)); }

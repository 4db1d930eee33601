// roc_auc_counts, CUDA.  (2 U, positives, negatives) of every group, int64;   roc_auc_sums: (U up to max_fpr, W_P, W_Q), float64
//                        roc_auc_class_sums: U of class c against class j on column c [C, C], and the weight of each class [C], float64
// Shapes: input [N], target [N] bool, group [N] int64, for classes [N, C], target [N] int64; any strides; results on the same device.
// Algorithm: csrc/algo/roc_auc.h: one stable radix sort of keys with positions, a second one by group, running sums, by Thrust;
//   for classes the same two sorts for every column.
// Cost: 24 N bytes moved in each of 4 passes of the sort (32 N in 8 for float64), 32 N in each of 8 by group; workspace 63 N bytes, 67 N in
//   float64. No host sync: on the current stream, memory from torch.
// Numerics: as the CPU kernel, gpu_to_gpu for counts, run_to_run for sums, whose tiles have a fixed size and order; ids and classes out of
//   range count nowhere. Not yet run on a GPU; the tests run the same source on the host.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>

#include "../algo/roc_auc_launch.h"
#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/stream.h"

namespace nearlinear {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <typename T, typename scalar_t>
Tensor run(const Tensor& scores, const Tensor& target, const OptionalTensor& weight, const OptionalTensor& group, int64_t num_groups,
           double max_fpr, ScalarType dtype, const char* op) {
  using key_t = decltype(ordered_key(scalar_t{}));
  const int64_t n = scores.numel();
  Tensor out = torch::stable::new_empty(scores, {num_groups, 3}, dtype);
  const size_t bytes = algo::workspace<key_t, T>(n, num_groups);
  const Tensor memory = torch::stable::new_empty(scores, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
  const algo::Samples<scalar_t> samples{scores.const_data_ptr<scalar_t>(),
                                        target.const_data_ptr<bool>(),
                                        weight.has_value() ? weight->const_data_ptr<double>() : nullptr,
                                        group.has_value() ? group->const_data_ptr<int64_t>() : nullptr,
                                        n,
                                        num_groups};
  algo::launch_roc_auc(samples, max_fpr, out.mutable_data_ptr<T>(), static_cast<char*>(memory.data_ptr()), bytes,
                       current_stream(scores, op));
  check_launch(op);
  return out;
}

OptionalTensor dense(const OptionalTensor& tensor, int64_t n, ScalarType dtype, const char* op, const char* name) {
  if (!tensor.has_value()) return tensor;
  check(tensor->dim() == 1 && tensor->numel() == n, op, name, " must have shape (N,)");
  return torch::stable::contiguous(torch::stable::to(*tensor, dtype));
}

template <typename T>
Tensor roc_auc(const Tensor& input, const Tensor& target, const OptionalTensor& sample_weight, const OptionalTensor& group,
               int64_t num_groups, double max_fpr, ScalarType dtype, const char* op) {
  check(input.dim() == 1, op, "input must have shape (N,), got ", input.dim(), " dimensions");
  check(target.scalar_type() == ScalarType::Bool && target.numel() == input.numel(), op, "target must be bool of shape (N,)");
  check(!group.has_value() || group->scalar_type() == ScalarType::Long, op, "group must be int64");
  check(num_groups >= 0 && (group.has_value() || num_groups == 1), op, "num_groups must be >= 0, and 1 without group, got ", num_groups);
  check(max_fpr > 0 && max_fpr <= 1, op, "max_fpr must be in (0, 1], got ", max_fpr);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Tensor labels = torch::stable::contiguous(target);
  const OptionalTensor weight = dense(sample_weight, input.numel(), ScalarType::Double, op, "sample_weight");
  const OptionalTensor ids = dense(group, input.numel(), ScalarType::Long, op, "group");
  const OptionalTensor scores = dense(input, input.numel(), opmath_dtype(input.scalar_type()), op, "input");
  if (input.scalar_type() == ScalarType::Double) return run<T, double>(*scores, labels, weight, ids, num_groups, max_fpr, dtype, op);
  return run<T, float>(*scores, labels, weight, ids, num_groups, max_fpr, dtype, op);
}

Tensor roc_auc_counts_cuda(const Tensor& input, const Tensor& target, const OptionalTensor& group, int64_t num_groups) {
  return roc_auc<int64_t>(input, target, OptionalTensor{}, group, num_groups, 1.0, ScalarType::Long, "roc_auc_counts");
}

Tensor roc_auc_sums_cuda(const Tensor& input, const Tensor& target, const OptionalTensor& sample_weight, const OptionalTensor& group,
                         int64_t num_groups, double max_fpr) {
  return roc_auc<double>(input, target, sample_weight, group, num_groups, max_fpr, ScalarType::Double, "roc_auc_sums");
}

template <typename scalar_t>
void run_classes(const Tensor& scores, const Tensor& target, const OptionalTensor& weight, Tensor& sums, Tensor& mass, const char* op) {
  const int64_t n = scores.size(0), classes = scores.size(1);
  const size_t bytes = algo::workspace<decltype(ordered_key(scalar_t{})), double>(n, classes);
  const Tensor memory = torch::stable::new_empty(scores, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
  const algo::ClassSamples<scalar_t> samples{scores.const_data_ptr<scalar_t>(),
                                             scores.stride(0),
                                             scores.stride(1),
                                             target.const_data_ptr<int64_t>(),
                                             weight.has_value() ? weight->const_data_ptr<double>() : nullptr,
                                             n,
                                             classes};
  algo::launch_roc_auc_classes(samples, sums.mutable_data_ptr<double>(), mass.mutable_data_ptr<double>(),
                               static_cast<char*>(memory.data_ptr()), bytes, current_stream(scores, op));
  check_launch(op);
}

std::tuple<Tensor, Tensor> roc_auc_class_sums_cuda(const Tensor& input, const Tensor& target, const OptionalTensor& sample_weight) {
  const char* op = "roc_auc_class_sums";
  check(input.dim() == 2, op, "input must have shape (N, C), got ", input.dim(), " dimensions");
  check(target.scalar_type() == ScalarType::Long, op, "target must be int64");
  const int64_t n = input.size(0), classes = input.size(1);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Tensor labels = *dense(target, n, ScalarType::Long, op, "target");
  const OptionalTensor weight = dense(sample_weight, n, ScalarType::Double, op, "sample_weight");
  const Tensor scores = torch::stable::to(input, opmath_dtype(input.scalar_type()));
  Tensor sums = torch::stable::new_empty(input, {classes, classes}, ScalarType::Double);
  Tensor mass = torch::stable::new_empty(input, {classes}, ScalarType::Double);
  if (input.scalar_type() == ScalarType::Double) {
    run_classes<double>(scores, labels, weight, sums, mass, op);
  } else {
    run_classes<float>(scores, labels, weight, sums, mass, op);
  }
  return {sums, mass};
}

}  // namespace
}  // namespace nearlinear

STABLE_TORCH_LIBRARY_IMPL(nearlinear, CUDA, m) {
  m.impl("roc_auc_counts", TORCH_BOX(&nearlinear::roc_auc_counts_cuda));
  m.impl("roc_auc_sums", TORCH_BOX(&nearlinear::roc_auc_sums_cuda));
  m.impl("roc_auc_class_sums", TORCH_BOX(&nearlinear::roc_auc_class_sums_cuda));
}

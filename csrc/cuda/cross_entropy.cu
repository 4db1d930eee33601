// first_invalid_target, CUDA.   position of the first label outside [0, num_classes) that is not ignore_index, else -1
// Shapes: target int64 any shape; output 0-d int64 on the same device (no host sync: the caller decides when to read it).
// Algorithm: grid-stride scan, one 64-bit atomicMin per offending thread; the value does not depend on the order.
// Cost: reads 8 N bytes; no temporary.
// Numerics: integers; gpu_to_gpu.   The losses themselves are Triton kernels (triton_kernels/cross_entropy.py).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/stream.h"

namespace nearlinear {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr unsigned long long kNone = ~0ull;  // reads as -1 in int64

__global__ void first_invalid_target_kernel(const int64_t* target, int64_t n, int64_t num_classes, int64_t ignore_index,
                                            unsigned long long* position) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    const int64_t label = target[i];
    if ((label < 0 || label >= num_classes) && label != ignore_index) {
      atomicMin(position, static_cast<unsigned long long>(i));
      return;  // later labels of this thread have larger positions
    }
  }
}

Tensor first_invalid_target_cuda(const Tensor& target, int64_t num_classes, int64_t ignore_index) {
  const char* op = "first_invalid_target";
  check(target.scalar_type() == ScalarType::Long, op, "target must be int64");
  const torch::stable::accelerator::DeviceGuard guard(target.get_device_index());
  const Tensor labels = torch::stable::contiguous(target);
  Tensor position = torch::stable::new_empty(target, {}, ScalarType::Long);
  const cudaStream_t stream = current_stream(target, op);
  auto* out = reinterpret_cast<unsigned long long*>(position.mutable_data_ptr<int64_t>());
  cudaMemsetAsync(out, 0xff, sizeof(kNone), stream);
  const int64_t n = labels.numel();
  if (n > 0) {
    constexpr int64_t threads = 256, max_blocks = 1024;
    const int64_t blocks = (n + threads - 1) / threads;
    first_invalid_target_kernel<<<static_cast<unsigned>(blocks < max_blocks ? blocks : max_blocks), threads, 0, stream>>>(
        labels.const_data_ptr<int64_t>(), n, num_classes, ignore_index, out);
  }
  check_launch(op);
  return position;
}

}  // namespace
}  // namespace nearlinear

STABLE_TORCH_LIBRARY_IMPL(nearlinear, CUDA, m) { m.impl("first_invalid_target", TORCH_BOX(&nearlinear::first_invalid_target_cuda)); }

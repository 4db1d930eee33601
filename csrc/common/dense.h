// tensors as kernels with rows of any stride read them.
#pragma once
#include <torch/csrc/stable/ops.h>

namespace nearlinear {

// elements along the last dimension side by side; a copy where they are not
inline torch::stable::Tensor dense(const torch::stable::Tensor& t) {
  return t.dim() > 0 && t.stride(t.dim() - 1) == 1 ? t : torch::stable::contiguous(t);
}

}  // namespace nearlinear

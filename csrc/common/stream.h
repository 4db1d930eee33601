// CUDA glue without linking libtorch_cuda: the current stream through a weak symbol, so that one .so loads on CPU-only torch too.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "check.h"

// resolved only when the CUDA build of torch is in the process; needs libtorch.so among the needed libraries (setup.py)
#pragma weak aoti_torch_get_current_cuda_stream

namespace nearlinear {

inline cudaStream_t current_stream(const torch::stable::Tensor& tensor, const char* op) {
  check(&aoti_torch_get_current_cuda_stream != nullptr, op, "the CUDA part of torch is not loaded; install a CUDA build of torch");
  void* stream = nullptr;
  check(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) == AOTI_TORCH_SUCCESS, op, "no current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  check(error == cudaSuccess, op, "CUDA launch failed: ", cudaGetErrorString(error));
}

}  // namespace nearlinear

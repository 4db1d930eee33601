// the images of one call of betti_matching, its loss or persistence_barcode, checked; what every device asks of them.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "dispatch.h"

namespace nearlinear {

struct BettiTensors {
  torch::stable::Tensor input, target;  // contiguous; target is input where there is none
  bool pair, superlevel;
  int64_t count, pixels, nd;
  std::array<int64_t, 3> side;

  BettiTensors(const torch::stable::Tensor& input_, const torch::stable::Tensor* target_, bool superlevel_, const char* op)
      : input(torch::stable::contiguous(input_)),
        target(target_ ? torch::stable::contiguous(*target_) : input),
        pair(target_ != nullptr),
        superlevel(superlevel_),
        nd(input_.dim() - 1) {
    check(nd >= 1 && nd <= 3, op, "input must have shape (N, *S) with one to three spatial dimensions, got ", nd + 1, " dimensions");
    check(target.scalar_type() == input.scalar_type(), op, "target must have the dtype of input");
    check(target.dim() == nd + 1, op, "target must have the shape of input, got ", target.dim(), " dimensions");
    count = input.size(0), pixels = 1;
    side = {1, 1, 1};
    for (int64_t a = 0; a < nd; ++a) {
      side[static_cast<size_t>(a)] = input.size(a + 1);
      check(input.size(a + 1) >= 1, op, "spatial sides must be at least 1, got ", input.size(a + 1), " in dimension ", a + 1);
      pixels *= input.size(a + 1);
    }
    for (int64_t a = 0; a <= nd; ++a)
      check(target.size(a) == input.size(a), op, "target must have the shape of input: dimension ", a, " is ", input.size(a), " and ",
            target.size(a));
    const int64_t most = std::numeric_limits<int32_t>::max() / std::max<int64_t>(nd, 2);
    check(pixels <= most, op, "images must have at most ", most, " pixels, got ", pixels);
  }
};

template <typename F>
void dispatch_values(ScalarType dtype, const char* op, F&& f) {
  if (dtype == ScalarType::Byte) return f(uint8_t{});
  if (dtype == ScalarType::Bool) return f(bool{});
  dispatch_floating(dtype, op, "input", f);
}

inline std::array<bool, 3> wanted_dims(const std::vector<int64_t>& dims, int64_t nd, const char* op) {
  std::array<bool, 3> wanted{};
  for (const int64_t d : dims) {
    check(d >= 0 && d < nd, op, "dims must be in [0, ", nd, "), got ", d);
    wanted[static_cast<size_t>(d)] = true;
  }
  return wanted;
}

}  // namespace nearlinear

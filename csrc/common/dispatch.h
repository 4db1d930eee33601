// the one dtype switch: calls f with a value of the storage type; accumulate in opmath_t<scalar_t>.
#pragma once
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

#include "check.h"

namespace nearlinear {

using torch::headeronly::ScalarType;

template <typename scalar_t>
using opmath_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

// dtype of the statistics and of every fp32-accumulated result for an input dtype
inline ScalarType opmath_dtype(ScalarType dtype) { return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

template <typename F>
void dispatch_floating(ScalarType dtype, const char* op, const char* argument, F&& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(c10::BFloat16{});
    case ScalarType::Half:
      return f(c10::Half{});
    default:
      check(false, op, argument, " must be float32, float64, bfloat16 or float16");
  }
}

}  // namespace nearlinear

// logit maps: z = value(a), dz/da = slope(a). Plain structs; neither torch nor CCCL. A new map is one struct and one arm of
// make_logit_map; its Triton twin is in triton_kernels/cross_entropy.py, its definition in nearlinear/logit_maps.py.
#pragma once
#include <cstdint>
#include <string_view>
#include <variant>
#include <vector>

#include "../common/check.h"
#include "../common/simd.h"

namespace nearlinear {

struct IdentityMap {
  template <typename T>
  NL_INLINE T value(T a) const {
    return a;
  }
  template <typename T>
  NL_INLINE T slope(T) const {
    return T(1);
  }
};

struct ScaleMap {  // z = scale a
  double scale;
  template <typename T>
  NL_INLINE T value(T a) const {
    return T(scale) * a;
  }
  template <typename T>
  NL_INLINE T slope(T) const {
    return T(scale);
  }
};

struct SoftCapMap {  // z = cap tanh(a / cap)
  double cap;
  template <typename T>
  NL_INLINE T value(T a) const {
    return T(cap) * simd::tanh(a / T(cap));
  }
  template <typename T>
  NL_INLINE T slope(T a) const {
    // 1 - tanh^2 would cancel where the cap saturates
    const T e = simd::exp(T(-2) * std::fabs(a / T(cap))), s = T(1) + e;
    return T(4) * e / (s * s);
  }
};

using LogitMap = std::variant<IdentityMap, ScaleMap, SoftCapMap>;

inline LogitMap make_logit_map(std::string_view name, const std::vector<double>& params, const char* op) {
  check(params.size() == (name == "identity" ? 0u : 1u), op, "map_params has the wrong length for logit_map=", name);
  if (name == "identity") return IdentityMap{};
  if (name == "scale") return ScaleMap{params[0]};
  check(name == "soft_cap", op, "logit_map must be identity, scale or soft_cap, got ", name);
  return SoftCapMap{params[0]};
}

}  // namespace nearlinear

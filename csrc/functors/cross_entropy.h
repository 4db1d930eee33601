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

struct PowerMap {  // z = -exponent log(max(a, 0) + eps): the softmax of it is (a + eps)^-exponent, normalised
  double exponent, eps;
  template <typename T>
  NL_INLINE T base(T a) const {
    return (a < T(0) ? T(0) : a) + T(eps);
  }
  template <typename T>
  NL_INLINE T value(T a) const {
    return T(-exponent) * simd::log(base(a));
  }
  template <typename T>
  NL_INLINE T slope(T a) const {
    return T(-exponent) / base(a);
  }
};

struct ArcoshMap {  // z = -scale arcosh(1 + a), written with log1p so that small a keeps its digits; a below 1e-12 counts as 1e-12
  double scale;
  template <typename T>
  static NL_INLINE T clamped(T a) {  // the slope is infinite at 0
    return a < T(1e-12) ? T(1e-12) : a;
  }
  template <typename T>
  NL_INLINE T value(T a) const {
    const T e = clamped(a);
    return T(-scale) * simd::log1p(e + std::sqrt(e * (e + T(2))));
  }
  template <typename T>
  NL_INLINE T slope(T a) const {
    const T e = clamped(a);
    return T(-scale) / std::sqrt(e * (e + T(2)));
  }
};

using LogitMap = std::variant<IdentityMap, ScaleMap, SoftCapMap, PowerMap, ArcoshMap>;

inline LogitMap make_logit_map(std::string_view name, const std::vector<double>& params, const char* op) {
  const auto is = [&](std::string_view candidate, size_t length) {
    if (name != candidate) return false;
    check(params.size() == length, op, "map_params has the wrong length for logit_map=", name);
    return true;
  };
  if (is("identity", 0)) return IdentityMap{};
  if (is("scale", 1)) return ScaleMap{params[0]};
  if (is("soft_cap", 1)) return SoftCapMap{params[0]};
  if (is("power", 2)) return PowerMap{params[0], params[1]};
  check(is("arcosh", 1), op, "logit_map must be identity, scale, soft_cap, power or arcosh, got ", name);
  return ArcoshMap{params[0]};
}

}  // namespace nearlinear

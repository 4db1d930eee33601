// vector building blocks for CPU kernels: function multi-versioning, exp, tanh, half conversions, strided loads and stores.
//
// Every NL_CLONES function is compiled for baseline x86-64, AVX2 and AVX-512 and chosen once at load time; elsewhere it is plain C++.
// They work on one cache block, so the indirect call costs nothing. Loops vectorise because the file is compiled with
// -fopenmp-simd -fno-math-errno -fno-trapping-math (without the last, the same loops run at a twentieth of the speed).
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define NL_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define NL_CLONES
#endif
#define NL_INLINE inline __attribute__((always_inline))

namespace nearlinear::simd {

template <typename T>
constexpr T infinity = std::numeric_limits<T>::infinity();

// e^x for x <= 88; relative error 1.5e-7; exactly 0 below -87 (-inf included); NaN in, NaN out.
// x = n ln2 + r, |r| <= ln2/2, degree-6 polynomial times 2^n, whose exponent field is read off a shifted sum.
NL_INLINE float exp(float x) {
  constexpr float lowest = -87.0f, magic = 12582912.0f + 127.0f;  // 1.5 * 2^23 + exponent bias
  const float c = x < lowest ? lowest : x;
  const float shifted = c * 1.44269504089f + magic;  // low bits: round(c / ln2) + 127
  const float n = shifted - magic;
  const float r = (c - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return x < lowest ? 0.0f : p * std::bit_cast<float>(std::bit_cast<uint32_t>(shifted) << 23);
}
NL_INLINE double exp(double x) { return std::exp(x); }

// tanh; relative error 3e-7: odd polynomial near 0, where (1 - e) would cancel
NL_INLINE float tanh(float x) {
  const float a = std::fabs(x), s = x * x;
  float p = -1382.0f / 155925;
  p = p * s + 62.0f / 2835;
  p = p * s - 17.0f / 315;
  p = p * s + 2.0f / 15;
  p = p * s - 1.0f / 3;
  const float near = x + x * s * p;
  const float e = exp(-2.0f * a);
  const float far = std::copysign((1.0f - e) / (1.0f + e), x);
  return a < 0.25f ? near : far;
}
NL_INLINE double tanh(double x) { return std::tanh(x); }

NL_INLINE float to_op(float x) { return x; }
NL_INLINE double to_op(double x) { return x; }
NL_INLINE float to_op(c10::BFloat16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.x) << 16); }
NL_INLINE float to_op(c10::Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.x & 0x8000u) << 16, magnitude = static_cast<uint32_t>(x.x & 0x7fffu) << 13;
  // re-biasing by a multiplication is exact for normals and subnormals alike; infinities and NaN get their exponent back
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  return std::bit_cast<float>(sign | (magnitude >= 0x0f800000u ? (magnitude | 0x7f800000u) : finite));
}

// round to nearest even, NaN stays NaN
NL_INLINE void from_op(float x, float* out) { *out = x; }
NL_INLINE void from_op(double x, double* out) { *out = x; }
NL_INLINE void from_op(float x, c10::BFloat16* out) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  out->x = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
NL_INLINE void from_op(float x, c10::Half* out) {
  const uint32_t u = std::bit_cast<uint32_t>(x), a = u & 0x7fffffffu;
  const uint32_t normal = (a + 0xfffu + ((a >> 13) & 1u) - (112u << 23)) >> 13;
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(a) + 0.5f) - 0x3f000000u;  // ulp of 0.5 = half's smallest
  uint32_t h = a < 0x38800000u ? subnormal : normal;
  h = a >= 0x477ff000u ? 0x7c00u : h;
  h = a > 0x7f800000u ? 0x7e00u : h;
  out->x = static_cast<uint16_t>(((u >> 16) & 0x8000u) | h);
}

template <typename scalar_t, typename op_t>
NL_CLONES void load(const scalar_t* __restrict in, int64_t stride, int64_t n, op_t* __restrict out) {
  if (stride == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = to_op(in[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = to_op(in[i * stride]);
  }
}

template <typename scalar_t, typename op_t>
NL_CLONES void store(const op_t* __restrict in, int64_t n, int64_t stride, scalar_t* __restrict out) {
  if (stride == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) from_op(in[i], out + i);
  } else {
    for (int64_t i = 0; i < n; ++i) from_op(in[i], out + i * stride);
  }
}

}  // namespace nearlinear::simd

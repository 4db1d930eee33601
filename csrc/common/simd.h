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
#include <type_traits>

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define NL_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define NL_CLONES
#endif
#define NL_INLINE inline __attribute__((always_inline))

namespace nearlinear::simd {

template <typename T>
constexpr T infinity = std::numeric_limits<T>::infinity();

// e^x for x <= 88, 13 vector instructions; NaN in, NaN out.
// x = n ln2 + r, |r| <= ln2 / 2; e^r by a degree-5 polynomial, exact at 0 (minimax, 9.2e-8); 2^n from the exponent field, which the
// shifted sum holds in its low bits. Relative error 1.5e-7 + 3e-9 |x| with fused multiply-add, bias below 1e-7: less than rounding x
// itself costs. The clamp makes n = -127, whose exponent field is 0: everything below -87.7 is exactly 0, -inf included.
NL_INLINE float exp(float x) {
  constexpr float lowest = -88.0f, log2e = 1.44269504089f, ln2 = 0.693147181f, magic = 12582912.0f + 127.0f;  // 1.5 * 2^23 + exponent bias
  const float c = lowest > x ? lowest : x;  // in this order it is one maxps, and keeps NaN
  const float shifted = c * log2e + magic;
  const float r = c - (shifted - magic) * ln2;
  float p = 0.0082903067f;
  p = p * r + 0.041897975f;
  p = p * r + 0.16667637f;
  p = p * r + 0.49999151f;
  p = p * r + 0.9999997f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>(std::bit_cast<uint32_t>(shifted) << 23);
}
NL_INLINE double exp(double x) { return std::exp(x); }

// log x for normal x > 0, relative error 2e-7 next to x = 1 too; 0 gives -inf, NaN and negative x give NaN.
// x = 2^k m, 3/4 <= m < 3/2: where m - 1 is rounded to nothing, k is 0 and nothing cancels.
NL_INLINE float log(float x) {
  const int32_t bits = std::bit_cast<int32_t>(x), k = (bits - 0x3f400000) >> 23;
  const float r = std::bit_cast<float>(bits - (k << 23)) - 1.0f;
  const float s = r / (2.0f + r), s2 = s * s;
  float p = 2.0f / 9;
  p = p * s2 + 2.0f / 7;
  p = p * s2 + 2.0f / 5;
  p = p * s2 + 2.0f / 3;
  const float value = static_cast<float>(k) * 0.693147181f + (s * 2.0f + s * s2 * p);
  const float finite = x < infinity<float> ? value : x;  // NaN too
  return x > 0 ? finite : (x == 0 ? -infinity<float> : x - x + std::numeric_limits<float>::quiet_NaN());
}
NL_INLINE double log(double x) { return std::log(x); }

// log(1 + u) for u >= 0, relative error 2e-7 however small u is; NaN in, NaN out.
// 1 + u = 2^k (1 + r), 0 <= r < 1 (r = u itself where k = 0: no rounding), log(1 + r) = 2 artanh(r / (2 + r)).
NL_INLINE float log1p(float u) {
  const float x = 1.0f + u;
  const int32_t bits = std::bit_cast<int32_t>(x), k = (bits >> 23) - 127;
  const float r = k == 0 ? u : std::bit_cast<float>((bits & 0x7fffff) | 0x3f800000) - 1.0f;
  const float s = r / (2.0f + r), s2 = s * s;
  float p = 2.0f / 13;
  p = p * s2 + 2.0f / 11;
  p = p * s2 + 2.0f / 9;
  p = p * s2 + 2.0f / 7;
  p = p * s2 + 2.0f / 5;
  p = p * s2 + 2.0f / 3;
  const float artanh = s * 2.0f + s * s2 * p;
  return x == x ? artanh + static_cast<float>(k) * 0.693147181f : x;
}
NL_INLINE double log1p(double u) { return std::log1p(u); }

// 1 - e^-n for n >= 0, relative error 2e-7; NaN in, NaN out
NL_INLINE float one_minus_exp(float n) {
  float p = -1.0f / 40320;
  p = p * n + 1.0f / 5040;
  p = p * n - 1.0f / 720;
  p = p * n + 1.0f / 120;
  p = p * n - 1.0f / 24;
  p = p * n + 1.0f / 6;
  p = p * n - 0.5f;
  p = p * n + 1.0f;
  return n < 0.5f ? p * n : 1.0f - exp(-n);
}
NL_INLINE double one_minus_exp(double n) { return -std::expm1(-n); }

// e^u - 1 - u for |u| <= 1, relative error 2e-7 however small u is; NaN in, NaN out. Even and odd terms apart: half the latency.
NL_INLINE float exp_excess(float u) {
  const float s = u * u;
  float even = 1.0f / 3628800, odd = 1.0f / 362880;
  even = even * s + 1.0f / 40320;
  odd = odd * s + 1.0f / 5040;
  even = even * s + 1.0f / 720;
  odd = odd * s + 1.0f / 120;
  even = even * s + 1.0f / 24;
  odd = odd * s + 1.0f / 6;
  even = even * s + 0.5f;
  return (even + odd * u) * s;
}
NL_INLINE double exp_excess(double u) {
  double p = 1;  // of the series 1 + u / 3 (1 + u / 4 (1 + ...))
  for (int k = 19; k > 2; --k) p = 1 + p * u / k;
  return p * u * u / 2;
}

// artanh(s) / s - 1 over s^2 = 1/3 + s^2 / 5 + ... for s^2 <= 1/9
NL_INLINE float artanh_tail(float s2) {
  float p = 1.0f / 15;
  p = p * s2 + 1.0f / 13;
  p = p * s2 + 1.0f / 11;
  p = p * s2 + 1.0f / 9;
  p = p * s2 + 1.0f / 7;
  p = p * s2 + 1.0f / 5;
  return p * s2 + 1.0f / 3;
}
NL_INLINE double artanh_tail(double s2) {
  double p = 0;
  for (int k = 37; k > 1; k -= 2) p = p * s2 + 1.0 / k;
  return p;
}

// log(1 + y), and excess = y - log(1 + y) >= 0, from y and x = 1 + y > 0; relative error 6e-7 each however small y is; NaN stays.
// log(1 + y) = 2 artanh s, s = y / (2 + y), where -1/2 <= y < 1: y = 2 s / (1 - s), so that nothing cancels in s (y - 2 s^2 tail).
template <typename op_t>
NL_INLINE op_t log1p_excess(op_t y, op_t x, op_t* excess) {
  const bool near = y >= op_t(-0.5) && y < op_t(1);
  const op_t s = y / (op_t(2) + y), s2 = s * s, tail = artanh_tail(s2), far = log(x);
  *excess = near ? s * (y - (s2 + s2) * tail) : y - far;
  return near ? s * op_t(2) + (s + s) * s2 * tail : far;
}

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

// arc cosine of |x| <= 1, absolute error 5e-8 (Abramowitz and Stegun 1964, 4.4.46); a larger |x| counts as 1, NaN stays
NL_INLINE float acos(float x) {
  const float a = std::fabs(x) > 1.0f ? 1.0f : std::fabs(x);
  float p = -0.0012624911f;
  p = p * a + 0.0066700901f;
  p = p * a - 0.0170881256f;
  p = p * a + 0.0308918810f;
  p = p * a - 0.0501743046f;
  p = p * a + 0.0889789874f;
  p = p * a - 0.2145988016f;
  p = p * a + 1.5707963050f;
  const float angle = std::sqrt(1.0f - a) * p;
  return x < 0 ? 3.14159265f - angle : angle;
}
NL_INLINE double acos(double x) { return std::acos(x > 1 ? 1.0 : x < -1 ? -1.0 : x); }

// 16-bit floats to and from the low half of a 32-bit word; encode rounds to nearest even, and NaN stays NaN
template <typename half_t>
NL_INLINE float decode(uint32_t bits) {
  if constexpr (std::is_same_v<half_t, c10::BFloat16>) {
    return std::bit_cast<float>(bits << 16);
  } else {
    const uint32_t sign = (bits & 0x8000u) << 16;
    const int32_t magnitude = static_cast<int32_t>((bits & 0x7fffu) << 13);
    // re-biasing by a multiplication is exact for normals and subnormals alike; infinities and NaN get their exponent back
    const int32_t finite = std::bit_cast<int32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
    return std::bit_cast<float>(sign | static_cast<uint32_t>(magnitude >= 0x0f800000 ? (magnitude | 0x7f800000) : finite));
  }
}
template <typename half_t>
NL_INLINE uint32_t encode(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if constexpr (std::is_same_v<half_t, c10::BFloat16>) {
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return x == x ? rounded : 0x7fc0u;
  } else {
    const int32_t a = static_cast<int32_t>(u & 0x7fffffffu);  // signed: vector units compare signed words
    const int32_t normal = (a + 0xfff + ((a >> 13) & 1) - (112 << 23)) >> 13;
    const int32_t subnormal = std::bit_cast<int32_t>(std::bit_cast<float>(a) + 0.5f) - 0x3f000000;  // ulp of 0.5: half's smallest
    int32_t h = a < 0x38800000 ? subnormal : normal;
    h = a >= 0x477ff000 ? 0x7c00 : h;
    h = a > 0x7f800000 ? 0x7e00 : h;
    return ((u >> 16) & 0x8000u) | static_cast<uint32_t>(h);
  }
}

template <typename scalar_t>
constexpr bool is_half = sizeof(scalar_t) == 2;

template <typename scalar_t>
NL_INLINE auto to_op(scalar_t x) {
  if constexpr (is_half<scalar_t>) {
    return decode<scalar_t>(x.x);
  } else {
    return x;
  }
}
template <typename op_t, typename scalar_t>
NL_INLINE void from_op(op_t x, scalar_t* out) {
  if constexpr (is_half<scalar_t>) {
    out->x = static_cast<uint16_t>(encode<scalar_t>(static_cast<float>(x)));
  } else {
    *out = static_cast<scalar_t>(x);
  }
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

// Contiguous halves two to a 32-bit word, for loops that do not care about order: first the n / 2 elements of even position, then the
// odd ones. Everything stays in 32-bit lanes, where a plain conversion loop spends half its time on widening and narrowing shuffles.
typedef uint32_t __attribute__((aligned(2), may_alias)) half_pair;

template <typename half_t>
NL_CLONES void load_pairs(const half_t* __restrict in, int64_t n, float* __restrict out) {
  const half_pair* pairs = reinterpret_cast<const half_pair*>(in);
  float *even = out, *odd = out + n / 2;
#pragma omp simd
  for (int64_t i = 0; i < n / 2; ++i) {
    even[i] = decode<half_t>(pairs[i] & 0xffffu);
    odd[i] = decode<half_t>(pairs[i] >> 16);
  }
}

template <typename half_t>
NL_CLONES void store_pairs(const float* __restrict in, int64_t n, half_t* __restrict out) {
  half_pair* pairs = reinterpret_cast<half_pair*>(out);
  const float *even = in, *odd = in + n / 2;
#pragma omp simd
  for (int64_t i = 0; i < n / 2; ++i) pairs[i] = encode<half_t>(even[i]) | (encode<half_t>(odd[i]) << 16);
}

}  // namespace nearlinear::simd

// unsigned integers in the order of the scores: -0.0 and +0.0 are one key, NaN is the largest and has a key of its own.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define NL_HD __host__ __device__
#define NL_HD_INLINE __host__ __device__ __forceinline__
#define NL_UNROLL _Pragma("unroll")
#else
#define NL_HD
#define NL_HD_INLINE inline __attribute__((always_inline))
#define NL_UNROLL _Pragma("GCC unroll 32")
#endif

namespace nearlinear {

// no float maps to it but NaN: +infinity is 0xff800000
template <typename key_t>
constexpr key_t kNotANumber = ~key_t(0);

template <typename key_t, typename float_t>
NL_HD inline key_t ordered_bits(float_t x) {
  constexpr key_t sign = key_t(1) << (8 * sizeof(key_t) - 1);
  key_t bits;
  memcpy(&bits, &x, sizeof(bits));
  if (x != x) return kNotANumber<key_t>;
  if (bits == sign) return sign;  // -0.0; an addition of 0.0 would flush subnormals where the thread is told to
  return bits ^ (sign | (key_t(0) - (bits >> (8 * sizeof(key_t) - 1))));  // no branch: signs are random
}

// the number of a key that is not kNotANumber
template <typename float_t, typename key_t>
NL_HD inline float_t number_of(key_t key) {
  constexpr key_t sign = key_t(1) << (8 * sizeof(key_t) - 1);
  const key_t bits = key & sign ? key ^ sign : ~key;
  float_t x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

NL_HD inline uint32_t ordered_key(float x) { return ordered_bits<uint32_t>(x); }
NL_HD inline uint64_t ordered_key(double x) { return ordered_bits<uint64_t>(x); }

}  // namespace nearlinear

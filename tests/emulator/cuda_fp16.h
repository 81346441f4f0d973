// float16: the type and its conversions. It has no arithmetic.
#pragma once

#include "cuda_runtime.h"
#include "narrow.hpp"

struct __half {
  unsigned short bits;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half h) { return h.bits; }
inline __half __double2half(double x) { return {emulator::narrow<10, -14>(x)}; }
inline __half __float2half_rn(float x) { return __double2half(x); }
inline __half __float2half(float x) { return __double2half(x); }

inline float __half2float(__half h) {
  const int exponent = h.bits >> 10 & 31;
  const int mantissa = h.bits & 1023;
  if (exponent == 31 && mantissa != 0) return __uint_as_float(0x7fffffff);
  const float magnitude = exponent == 31  ? INFINITY
                          : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                          : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return h.bits >> 15 ? -magnitude : magnitude;
}

// bfloat16: the type and its conversions. It has no arithmetic.
#pragma once

#include "cuda_runtime.h"
#include "narrow.hpp"

struct __nv_bfloat16 {
  unsigned short bits;
};

inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits; }
inline __nv_bfloat16 __double2bfloat16(double x) { return {emulator::narrow<7, -126>(x)}; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __double2bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16(float x) { return __double2bfloat16(x); }
inline float __bfloat162float(__nv_bfloat16 b) { return __uint_as_float(static_cast<unsigned>(b.bits) << 16); }

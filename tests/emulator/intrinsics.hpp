// What a thread does alone: loads and stores with a cache hint, arithmetic and bit casts.
#pragma once

#include <math.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace emulator {

template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// A value as the parameter of a template that is not to deduce a type from it.
template <class T>
using Exactly = std::remove_cv_t<T>;

}  // namespace emulator

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcv(const T* p) {
  std::atomic_signal_fence(std::memory_order_seq_cst);  // another block may have written it since
  return *p;
}
template <class T>
void __stcs(T* p, emulator::Exactly<T> value) {
  *p = value;
}
template <class T>
void __stcg(T* p, emulator::Exactly<T> value) {
  *p = value;
}

inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }

template <class A, class B, class C = std::common_type_t<A, B>>
std::enable_if_t<std::is_arithmetic_v<C>, C> min(A a, B b) {
  if constexpr (std::is_floating_point_v<C>)
    return fmin(static_cast<C>(a), static_cast<C>(b));
  else
    return static_cast<C>(b) < static_cast<C>(a) ? static_cast<C>(b) : static_cast<C>(a);
}
template <class A, class B, class C = std::common_type_t<A, B>>
std::enable_if_t<std::is_arithmetic_v<C>, C> max(A a, B b) {
  if constexpr (std::is_floating_point_v<C>)
    return fmax(static_cast<C>(a), static_cast<C>(b));
  else
    return static_cast<C>(a) < static_cast<C>(b) ? static_cast<C>(b) : static_cast<C>(a);
}

inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __drcp_rn(double a) { return 1 / a; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __double2float_rn(double a) { return static_cast<float>(a); }

inline unsigned __float_as_uint(float a) { return emulator::bit_cast<unsigned>(a); }
inline int __float_as_int(float a) { return emulator::bit_cast<int>(a); }
inline float __uint_as_float(unsigned a) { return emulator::bit_cast<float>(a); }
inline float __int_as_float(int a) { return emulator::bit_cast<float>(a); }
inline long long __double_as_longlong(double a) { return emulator::bit_cast<long long>(a); }
inline int __double2hiint(double a) { return static_cast<int>(emulator::bit_cast<long long>(a) >> 32); }
inline double __longlong_as_double(long long a) { return emulator::bit_cast<double>(a); }

inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
inline int __clz(int a) { return a == 0 ? 32 : __builtin_clz(static_cast<unsigned>(a)); }
inline int __clzll(long long a) { return a == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(a)); }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }

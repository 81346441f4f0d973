// Vectors of 16 bytes of a row, in the arithmetic of the products and of the sums.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "plan.hpp"

namespace fastconfig {

// Whether the device this is compiled for computes float64 at a usable rate.
#if defined(FASTCONFIG_EMULATED)
constexpr bool kFloat64 = FASTCONFIG_EMULATED_FLOAT64;
#elif defined(__CUDA_ARCH__)
constexpr bool kFloat64 = computes_float64(__CUDA_ARCH__ / 10);
#else
constexpr bool kFloat64 = false;  // the host has no say
#endif

template <class T>
struct alignas(kVectorBytes) Vector {
  static constexpr int size = kVectorBytes / sizeof(T);
  T x[size];
};

template <class T>
constexpr int kChunkWidth = kChunkVectors* Vector<T>::size;  // columns

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
using Real = decltype(widen(T{}));

__device__ __forceinline__ void round_to(float& y, double x) { y = static_cast<float>(x); }
__device__ __forceinline__ void round_to(double& y, double x) { y = x; }
__device__ __forceinline__ void round_to(__half& y, double x) { y = __double2half(x); }
__device__ __forceinline__ void round_to(__nv_bfloat16& y, double x) { y = __double2bfloat16(x); }
__device__ __forceinline__ void round_to(float& y, float x) { y = x; }
__device__ __forceinline__ void round_to(double& y, float x) { y = x; }
__device__ __forceinline__ void round_to(__half& y, float x) { y = __float2half_rn(x); }
__device__ __forceinline__ void round_to(__nv_bfloat16& y, float x) { y = __float2bfloat16_rn(x); }

template <class T>
__device__ __forceinline__ Vector<T> zeros() {
  const uint4 bits = make_uint4(0, 0, 0, 0);
  Vector<T> v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

// In PTX, because nvcc has several loads of `there ? load : zeros` share a register, and each wait for the one before.
#define FASTCONFIG_LOAD_IF(kind, there, place, bits)                                                              \
  asm volatile("{.reg .pred p; setp.ne.s32 p, %5, 0; @p ld.global." kind ".v4.u32 {%0, %1, %2, %3}, [%4];}"        \
               : "+r"((bits).x), "+r"((bits).y), "+r"((bits).z), "+r"((bits).w)                                    \
               : "l"(place), "r"(static_cast<int>(there)))

// How a vector is read: kept in the cache for the second pass; for the last time; or where kernels write meanwhile.
enum class Read { kept, last, written };

// Vector number `index` of an aligned row, or zeros where it is not there.
template <class T, Read READ>
__device__ __forceinline__ Vector<T> load(bool there, const char* row, int64_t index) {
  const uint4* place = reinterpret_cast<const uint4*>(row) + index;
  uint4 bits = make_uint4(0, 0, 0, 0);
#if defined(__CUDA_ARCH__)
  if constexpr (READ == Read::kept) FASTCONFIG_LOAD_IF("nc", there, place, bits);
  if constexpr (READ == Read::last) FASTCONFIG_LOAD_IF("cs", there, place, bits);
  if constexpr (READ == Read::written) FASTCONFIG_LOAD_IF("cg", there, place, bits);
#else
  if (there) bits = READ == Read::kept ? __ldg(place) : READ == Read::last ? __ldcs(place) : __ldcg(place);
#endif
  Vector<T> v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

#if defined(FASTCONFIG_EMULATED)
using emulator::dynamic_shared;
#else
// The block's shared memory that its launch asked for.
__device__ __forceinline__ void* dynamic_shared() {
  extern __shared__ uint4 memory[];
  return memory;
}
#endif

// An element of a row, likewise.
template <class T, bool LAST>
__device__ __forceinline__ T load_element(bool there, const char* row, int64_t column) {
  const T* place = reinterpret_cast<const T*>(row) + column;
  return there ? LAST ? __ldcs(place) : __ldg(place) : zeros<T>().x[0];
}

template <class T>
__device__ __forceinline__ void store(char* row, int64_t index, const Vector<T>& v) {
  uint4 bits;
  memcpy(&bits, &v, sizeof v);
  __stcs(reinterpret_cast<uint4*>(row) + index, bits);
}

// Elements of a row, `step` columns apart from `column` on, where fewer than `left` columns lie before them, in the
// direction of the step; zeros elsewhere.
template <class T, bool LAST>
__device__ __forceinline__ Vector<T> load_apart(const char* row, int64_t column, int step, int left) {
  Vector<T> v;
#pragma unroll
  for (int e = 0; e < Vector<T>::size; ++e)
    v.x[e] = load_element<T, LAST>(e * (step < 0 ? -step : step) < left, row, column + e * step);
  return v;
}

// The rows of an entry: addresses, null beyond the last and for missing gradients.
template <int M>
struct Rows {
  const char* row[M];

  __device__ __forceinline__ Rows(const Table& table, const Entry& entry, int64_t problem, int from = 0) {
#pragma unroll
    for (int i = 0; i < M; ++i) {
      const int64_t address = from + i < table.m ? entry[3 + from + i] : 0;
      row[i] = address == 0 ? nullptr : reinterpret_cast<const char*>(address + problem * table.batch_step);
    }
  }

  // Zeros where it is not `inside`.
  template <class T, bool LAST>
  __device__ __forceinline__ Vector<T> vector(int i, int64_t index, bool inside = true) const {
    return load<T, LAST ? Read::last : Read::kept>(inside && row[i] != nullptr, row[i], index);
  }

  // See load_apart.
  template <class T, bool LAST>
  __device__ __forceinline__ Vector<T> apart(int i, int64_t column, int step, int left) const {
    return row[i] == nullptr ? zeros<T>() : load_apart<T, LAST>(row[i], column, step, left);
  }

  template <class T>
  __device__ __forceinline__ Real<T> element(int i, int64_t column, int64_t step) const {
    return row[i] == nullptr ? Real<T>(0) : widen(reinterpret_cast<const T*>(row[i])[column * step]);
  }
};

__device__ __forceinline__ char* result_of(const Table& table, const Entry& entry, int64_t problem) {
  return reinterpret_cast<char*>(entry[2] + problem * table.out_step);
}

}  // namespace fastconfig

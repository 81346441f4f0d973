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

// Vector number `index` of an aligned row: kept in the cache for the second pass, or read for the last time.
template <class T, bool LAST>
__device__ __forceinline__ Vector<T> load(const char* row, int64_t index) {
  const uint4* place = reinterpret_cast<const uint4*>(row) + index;
  const uint4 bits = LAST ? __ldcs(place) : __ldg(place);
  Vector<T> v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

// An element of a row, likewise.
template <class T, bool LAST>
__device__ __forceinline__ T load_element(const char* row, int64_t column) {
  const T* place = reinterpret_cast<const T*>(row) + column;
  return LAST ? __ldcs(place) : __ldg(place);
}

template <class T>
__device__ __forceinline__ void store(char* row, int64_t index, const Vector<T>& v) {
  uint4 bits;
  memcpy(&bits, &v, sizeof v);
  __stcs(reinterpret_cast<uint4*>(row) + index, bits);
}

template <class T>
__device__ __forceinline__ Vector<T> zeros() {
  const uint4 bits = make_uint4(0, 0, 0, 0);
  Vector<T> v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

// Elements of a row, `step` columns apart from `column` on, where fewer than `left` columns lie before them, in the
// direction of the step; zeros elsewhere.
template <class T, bool LAST>
__device__ __forceinline__ Vector<T> load_apart(const char* row, int64_t column, int step, int left) {
  Vector<T> v = zeros<T>();
#pragma unroll
  for (int e = 0; e < Vector<T>::size; ++e)
    if (e * (step < 0 ? -step : step) < left) v.x[e] = load_element<T, LAST>(row, column + e * step);
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

  template <class T, bool LAST>
  __device__ __forceinline__ Vector<T> vector(int i, int64_t index) const {
    return row[i] == nullptr ? zeros<T>() : load<T, LAST>(row[i], index);
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

// Products of the columns of a few rows, a thread's share: in float64 where the device computes it at a usable rate,
// elsewhere in short float32 chains that are added up in float64.
#pragma once

#include "vectors.cuh"

namespace fastconfig {

// Upper triangle of the Gram matrix of M rows, in the order (0, 0), (0, 1), .., (1, 1), ..
template <int M>
struct Products {
  double sum[triangle(M)];

  __device__ __forceinline__ Products() {
#pragma unroll
    for (int k = 0; k < triangle(M); ++k) sum[k] = 0;
  }

  // One column.
  template <class R>
  __device__ __forceinline__ void add_column(const R (&x)[M]) {
    double d[M];
#pragma unroll
    for (int i = 0; i < M; ++i) d[i] = x[i];
    int k = 0;
#pragma unroll
    for (int i = 0; i < M; ++i)
#pragma unroll
      for (int j = i; j < M; ++j, ++k) sum[k] = fma(d[i], d[j], sum[k]);
  }

  // U vectors of every row.
  template <class T, int U>
  __device__ __forceinline__ void add(const Vector<T> (&v)[U][M]) {
    if constexpr (!kFloat64 && sizeof(T) < sizeof(double)) {
      if (add_chain(v)) return;
    }
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int e = 0; e < Vector<T>::size; ++e) {
        Real<T> x[M];
#pragma unroll
        for (int i = 0; i < M; ++i) x[i] = widen(v[u][i].x[e]);
        add_column(x);
      }
  }

 private:
  // float32 products; false, and nothing added, where a row is so small or so large that they may have lost it.
  template <class T, int U>
  __device__ __forceinline__ bool add_chain(const Vector<T> (&v)[U][M]) {
    float s[triangle(M)];
#pragma unroll
    for (int k = 0; k < triangle(M); ++k) s[k] = 0;
    uint32_t present[M];
#pragma unroll
    for (int i = 0; i < M; ++i) present[i] = 0;
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int i = 0; i < M; ++i) {
        uint4 bits;
        memcpy(&bits, &v[u][i], sizeof bits);
        present[i] |= bits.x | bits.y | bits.z | bits.w;
      }
#pragma unroll
      for (int e = 0; e < Vector<T>::size; ++e) {
        float x[M];
#pragma unroll
        for (int i = 0; i < M; ++i) x[i] = widen(v[u][i].x[e]);
        int k = 0;
#pragma unroll
        for (int i = 0; i < M; ++i)
#pragma unroll
          for (int j = i; j < M; ++j, ++k) s[k] = fmaf(x[i], x[j], s[k]);
      }
    }
    bool safe = true;
    int k = 0;
#pragma unroll
    for (int i = 0; i < M; ++i) {  // k: place of (i, i)
      safe = safe && s[k] <= 1e37f && (s[k] >= 1e-28f || present[i] == 0);
      k += M - i;
    }
    if (!safe) return false;
#pragma unroll
    for (int n = 0; n < triangle(M); ++n) sum[n] += s[n];
    return true;
  }
};

// Sums of N values over the lanes of a warp. Lanes that are HOP apart add up one half of the values each, until a lane
// has few of them: x[0], .. are then the sums of the values first..first + count - 1.
template <int N, int HOP = 16>
__device__ __forceinline__ void warp_sums(double* x, int& first, int& count) {
  if constexpr (HOP != 0) {
    constexpr int kHalf = (N + 1) / 2;
    const bool second = (threadIdx.x & HOP) != 0, upper = N > 1 && second;
#pragma unroll
    for (int k = 0; k < kHalf; ++k) {
      const double above = N == 1 ? x[k] : kHalf + k < N ? x[kHalf + k] : 0;
      const double given = upper ? x[k] : above;
      x[k] = (upper ? above : x[k]) + __shfl_xor_sync(0xffffffffu, given, HOP);
    }
    first += upper ? kHalf : 0;
    count = upper ? count - kHalf : second ? 0 : count < kHalf ? count : kHalf;  // a last one is one lane's
    warp_sums<kHalf, HOP / 2>(x, first, count);
  }
}

// The sums of a block's threads, packed for m gradients, to `out`; in a fixed order.
template <int M, int THREADS>
__device__ __forceinline__ void put_block_sum(const Products<M>& products, int m, double* out) {
  constexpr int kTriangle = triangle(M), kWarps = THREADS / 32;
  __shared__ double sums[kWarps][kTriangle];
  double x[kTriangle];
#pragma unroll
  for (int k = 0; k < kTriangle; ++k) x[k] = products.sum[k];
  int first = 0, count = kTriangle;
  warp_sums<kTriangle>(x, first, count);
#pragma unroll
  for (int k = 0; k < (kTriangle + 31) / 32; ++k)
    if (k < count) sums[threadIdx.x / 32][first + k] = x[k];
  __syncthreads();
  if (threadIdx.x < kTriangle) {
    double s = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) s += sums[w][threadIdx.x];
    const Unpacked at(threadIdx.x, M);
    if (at.j < m) out[packed(at.i, at.j, m)] = s;
  }
}

}  // namespace fastconfig

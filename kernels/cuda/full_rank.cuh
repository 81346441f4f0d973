// The m x m stage by one warp where every diagonal of G is zero or an ordinary number and C is clearly of full rank.
// Elsewhere csrc/rules.hpp takes over, whose results these are, but for rounding.
//
// Gradient i lies with lane i % 32, as number i / 32 of E; up to 4 gradients lie with every lane, which then works alone
// and waits for no shuffle. Methods that project work on G itself: coefficients need no norms then.
#pragma once

#include <cuda_runtime.h>

#include "launch.hpp"

namespace fastconfig {

constexpr unsigned kAllLanes = 0xffffffffu;

// 1 / sqrt(x) of an ordinary x, to two roundings: a third-order step from 20 bits.
__device__ __forceinline__ double inverse_root(double x) {
#if defined(__CUDA_ARCH__)
  double y;
  asm("rsqrt.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
  const double e = fma(-x * y, y, 1.0);
  return fma(fma(0.375, e, 0.5) * e, y, y);
#else
  return 1 / sqrt(x);
#endif
}

// 1 / x of the same.
__device__ __forceinline__ double reciprocal(double x) {
#if defined(__CUDA_ARCH__)
  double y;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
  const double e = fma(-x, y, 1.0);
  return fma(fma(e, e, e), y, y);
#else
  return 1 / x;
#endif
}

__device__ __forceinline__ unsigned largest(unsigned x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#pragma unroll
  for (int hop = 16; hop != 0; hop >>= 1) x = max(x, __shfl_xor_sync(kAllLanes, x, hop));
  return x;
#else
  return __reduce_max_sync(kAllLanes, x);
#endif
}

// What gradient i has, to all lanes.
template <class T, int E>
__device__ __forceinline__ T of(const T (&x)[E], int i) {
  return __shfl_sync(kAllLanes, E == 1 || i < 32 ? x[0] : x[E - 1], i);  // of lane i % 32
}

// Whether the diagonal of G is a number that no product with another one, nor a root, makes a special one.
__device__ __forceinline__ bool is_ordinary(double square) {
  constexpr unsigned kLeast = (1023 - 660) << 20, kMost = (1023 + 660) << 20;  // high words of 1e-199 and 1e199
  return static_cast<unsigned>(__double2hiint(square)) - kLeast < kMost - kLeast;
}

// The root of a diagonal of G and its inverse, zero for zero; good only stays for an ordinary number.
__device__ __forceinline__ void take_root(double square, double& norm, double& inverse, bool& good) {
  const double found = inverse_root(square);
  const bool usual = is_ordinary(square);
  good = good && (usual || square == 0);
  inverse = usual ? found : 0;
  norm = square * inverse;
}

// The methods that solve a system with C, and those that project; the general path has any other.
__device__ __forceinline__ bool solves(Method method) { return method == Method::config || method == Method::imtlg; }
__device__ __forceinline__ bool projects(Method method) {
  return method == Method::pcgrad || method == Method::ppcgrad;
}

// The gradients of a lane; all E of them with every lane where they lie there ALONE.
template <int E, bool ALONE = false>
struct Own {
  int m, lane;
  double norm[E], inverse[E];  // zero for zero gradients, and where there is none

  // gram has ld numbers a row. Says whether every diagonal is zero or an ordinary number.
  __device__ __forceinline__ Own(const double* gram, int ld, int m, bool& ordinary) : m(m), lane(threadIdx.x % 32) {
    bool good = true;
#pragma unroll
    for (int e = 0; e < E; ++e) take_root(has(e) ? gram[number(e) * ld + number(e)] : 0, norm[e], inverse[e], good);
    ordinary = ALONE ? good : __all_sync(kAllLanes, good);
  }

  __device__ __forceinline__ int number(int e) const { return ALONE ? e : lane + 32 * e; }
  __device__ __forceinline__ bool has(int e) const { return number(e) < m; }
  // Whether this lane is the one to write what belongs to it.
  __device__ __forceinline__ bool writes(int e) const { return has(e) && (!ALONE || lane == 0); }

  // The sum over all gradients, of which a kernel has up to M.
  template <int M>
  __device__ __forceinline__ double sum(const double (&x)[E]) const {
    double s = x[0];
#pragma unroll
    for (int e = 1; e < E; ++e) s += x[e];
    if constexpr (!ALONE) {
#pragma unroll
      for (int hop = M > 16 ? 16 : M > 8 ? 8 : 4; hop != 0; hop >>= 1) s += __shfl_xor_sync(kAllLanes, s, hop);
    }
    return s;
  }

  __device__ __forceinline__ void read_weights(const Stage& stage, int64_t problem, double (&w)[E]) const {
    const double* weights = stage.rule.method == Method::config ? stage.rule.weights_of(problem) : nullptr;
#pragma unroll
    for (int e = 0; e < E; ++e) {
      w[e] = norm[e] > 0 ? 1 : 0;
      if (weights != nullptr && norm[e] > 0) w[e] = weights[number(e)];
    }
  }
};

// Schur diagonals of a full rank are above this; near the cut-off the general path decides.
__device__ __forceinline__ double clear_of_cutoff(const Stage& stage) { return fmax(4 * stage.rcond, 1e-12); }

// Pivoted Cholesky of C by its columns, where rows stay in place, and the solution of C x = w. After step k the lane of
// number k holds y_k of L y = w, 1 / L_kk and which row was taken.
template <int E>
struct Elimination {
  double rest[E];  // Schur diagonals; zero once a row is taken
  double z[E], y[E], root[E];
  int pivot[E], position[E];

  __device__ __forceinline__ Elimination(const Own<E>& own, const double (&w)[E]) {
#pragma unroll
    for (int e = 0; e < E; ++e) {
      rest[e] = own.has(e) ? 1 : 0;
      z[e] = w[e];
      y[e] = root[e] = 0;
      pivot[e] = position[e] = 0;
    }
  }

  // The row p with the largest Schur diagonal, to 20 bits, and 1 over its root; false where that is not above tolerance.
  __device__ __forceinline__ bool find(double tolerance, int& p, double& r) const {
    unsigned key[E], most = 0;
    double roots[E];
#pragma unroll
    for (int e = 0; e < E; ++e) {
      key[e] = max(__double2hiint(rest[e]), 0);
      most = max(most, key[e]);
      roots[e] = inverse_root(rest[e]);
    }
    const unsigned top = largest(most);
    if (top <= static_cast<unsigned>(__double2hiint(tolerance))) return false;
    const unsigned found = __ballot_sync(kAllLanes, key[0] == top);
    p = __ffs(found) - 1;
    if constexpr (E > 1) {
      const unsigned others = __ballot_sync(kAllLanes, key[E - 1] == top);
      if (found == 0) p = 31 + __ffs(others);
    }
    r = of(roots, p);
    return true;
  }

  // Step k takes row p; v: column k of L.
  __device__ __forceinline__ void take(const Own<E>& own, int k, int p, double r, const double (&v)[E]) {
    const double found = of(z, p) * r;
#pragma unroll
    for (int e = 0; e < E; ++e) {
      const int i = own.number(e);
      z[e] = fma(-v[e], found, z[e]);
      rest[e] = fma(-v[e], v[e], rest[e]);
      if (i == p) {
        rest[e] = 0;
        position[e] = k;
      }
      if (i == k) {
        y[e] = found;
        root[e] = r;
        pivot[e] = p;
      }
    }
  }

  // x := L^-T y; l holds L column by column, ld apart.
  __device__ __forceinline__ void substitute(const Own<E>& own, const double* l, int ld, double (&x)[E]) const {
    double s[E];
#pragma unroll
    for (int e = 0; e < E; ++e) s[e] = y[e];
#pragma unroll 4
    for (int q = own.m - 1; q > 0; --q) {
      double now[E];
#pragma unroll
      for (int e = 0; e < E; ++e) now[e] = s[e] * root[e];
      const int p = of(pivot, q);
      const double found = of(now, q);
#pragma unroll
      for (int e = 0; e < E; ++e) {
        const double entry = own.number(e) < q ? l[own.number(e) * ld + p] : 0;
        s[e] = fma(-entry, found, s[e]);
      }
    }
    double taken[E];
#pragma unroll
    for (int e = 0; e < E; ++e) taken[e] = s[e] * root[e];
#pragma unroll
    for (int e = 0; e < E; ++e) {
      x[e] = 0;
#pragma unroll
      for (int other = 0; other < E; ++other) {
        const double there = __shfl_sync(kAllLanes, taken[other], position[e]);
        if (own.has(e) && (E == 1 || position[e] >> 5 == other)) x[e] = there;
      }
    }
  }
};

// x := C^-1 x, a row per lane; false if C is not clearly of full rank. l: scratch.
template <int M>
__device__ __forceinline__ bool solve_rows(const Own<1>& own, const double* gram, double* l, const Stage& stage,
                                           double (&x)[1]) {
  constexpr int ld = M | 1;  // odd: no two lanes meet at a bank
  const int m = own.m, i = own.lane < M ? own.lane : 0;
  FASTCONFIG_ROLLED for (int e = own.lane; e < M * ld; e += 32) l[e] = 0;  // columns to come
  __syncwarp();
  Elimination<1> elimination(own, x);
  FASTCONFIG_ROLLED for (int k = 0; k < m; ++k) {
    int p;
    double r;
    if (!elimination.find(clear_of_cutoff(stage), p, r)) return false;
    const double cosine = (own.has(0) ? gram[p * m + i] : 0) * own.inverse[0] * of(own.inverse, p);
    double s[4] = {cosine, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < M; ++j) s[j % 4] = fma(-l[j * ld + i], l[j * ld + p], s[j % 4]);
    const double v[1] = {((s[0] + s[1]) + (s[2] + s[3])) * r};
    elimination.take(own, k, p, r, v);
    __syncwarp();
    if (own.has(0)) l[k * ld + i] = v[0];
    __syncwarp();
  }
  elimination.substitute(own, l, ld, x);
  return true;
}

// x := A^-1 x by one thread, L D L^T in the order of the rows; A has a unit diagonal, and its lower part becomes D and
// what L is made of. Returns det A.
template <int M>
__device__ __forceinline__ double solve_symmetric(double (&a)[M][M], double (&x)[M]) {
  double determinant = 1, root[M];
#pragma unroll
  for (int k = 0; k < M; ++k) {
    determinant *= a[k][k];
    root[k] = k == 0 ? 1 : reciprocal(a[k][k]);
#pragma unroll
    for (int i = k + 1; i < M; ++i) {
      const double factor = a[i][k] * root[k];
#pragma unroll
      for (int j = k + 1; j <= i; ++j) a[i][j] = fma(-factor, a[j][k], a[i][j]);
      x[i] = fma(-factor, x[k], x[i]);
    }
  }
#pragma unroll
  for (int k = M - 1; k >= 0; --k) {
    double s = x[k];
#pragma unroll
    for (int i = M - 1; i > k; --i) s = fma(-a[i][k], x[i], s);
    x[k] = s * root[k];
  }
  return determinant;
}

// As solve_rows, by every lane alone. The smallest eigenvalue of C, and with it every pivoted Schur diagonal, is at least
// det C / e.
template <int M>
__device__ __forceinline__ bool solve_alone(const Own<M, true>& own, const double* gram, const Stage& stage,
                                            double (&x)[M]) {
  const int m = own.m;
  double a[M][M];
#pragma unroll
  for (int i = 0; i < M; ++i) {
#pragma unroll
    for (int j = 0; j < i; ++j) a[i][j] = i < m ? gram[i * m + j] * (own.inverse[i] * own.inverse[j]) : 0;
    a[i][i] = 1;
  }
  return solve_symmetric<M>(a, x) > 2 * clear_of_cutoff(stage);
}

// Coefficients of ConFIG and IMTL-G from C x = w. At full rank C x is w, so that the length needs no product with C.
// norms: scratch, M.
template <int M, int E, bool ALONE>
__device__ __forceinline__ void finish_direction(const Own<E, ALONE>& own, const Stage& stage, const double (&w)[E],
                                                 const double (&x)[E], double* norms, double (&c)[E]) {
  const Rule& rule = stage.rule;
  double first[E], second[E], scale = 1;
#pragma unroll
  for (int e = 0; e < E; ++e) c[e] = x[e] * own.inverse[e];
  if (rule.method == Method::imtlg) {
#pragma unroll
    for (int e = 0; e < E; ++e) second[e] = fabs(c[e]);
    const double total = own.template sum<M>(c), size = own.template sum<M>(second);
    scale = fabs(total) > own.m * DBL_EPSILON * size ? 1 / total : 0;
  } else if (rule.length != Length::none) {
    const bool projection = rule.length == Length::projection;
#pragma unroll
    for (int e = 0; e < E; ++e) {
      first[e] = projection ? own.norm[e] * w[e] : w[e];
      second[e] = x[e] * w[e];
    }
    double total = own.template sum<M>(first);
    const double squared = own.template sum<M>(second);
    if (!projection) {
#pragma unroll
      for (int e = 0; e < E; ++e)
        if (own.writes(e)) norms[own.number(e)] = own.norm[e];
      __syncwarp();
      total *= tracked(WarpTeam{}, norms, own.m, rule);
    }
    scale = squared > 0 ? total / squared : 0;
  }
#pragma unroll
  for (int e = 0; e < E; ++e) c[e] *= scale;
}

// PCGrad for one gradient a lane: its coefficients stay in registers. ld * M numbers of scratch; gram is finite up to
// M * M.
template <int M>
__device__ __forceinline__ double pcgrad_rows(const Own<1>& own, const double* gram, double* scratch, const Rule& rule,
                                              int64_t problem) {
  constexpr int ld = M | 1;
  const int m = own.m, i = own.lane;
  const int64_t* order = own.has(0) ? rule.order_of(problem) : nullptr;
  if (order != nullptr) order += i * m;
  const double square[1] = {own.inverse[0] * own.inverse[0]};
  double b[M];
#pragma unroll
  for (int k = 0; k < M; ++k) b[k] = k == i && own.norm[0] > 0 ? 1 : 0;
  FASTCONFIG_ROLLED for (int step = 0; step < m; ++step) {
    const int j = order != nullptr ? static_cast<int>(order[step]) : step;
    double s[4] = {0, 0, 0, 0};
#pragma unroll
    for (int k = 0; k < M; ++k) s[k % 4] = fma(b[k], gram[j * m + k], s[k % 4]);
    const double along = (s[0] + s[1]) + (s[2] + s[3]), by = __shfl_sync(kAllLanes, square[0], j);
    const double less = j != i && along < 0 ? along * by : 0;
#pragma unroll
    for (int k = 0; k < M; ++k)
      if (k == j) b[k] -= less;
  }
#pragma unroll
  for (int k = 0; k < M; ++k)
    if (i < M) scratch[i * ld + k] = b[k];
  __syncwarp();
  double c = 0;
#pragma unroll
  for (int k = 0; k < M; ++k) c += scratch[k * ld + (i < M ? i : 0)];
  return c;
}

// ConFIG and IMTL-G: c from G and w; false, and c as it was, where C is not clearly of full rank.
template <int M, int E, bool ALONE>
__device__ __forceinline__ bool solve_direction(const Own<E, ALONE>& own, const double* gram, double* work, double* c,
                                                const Stage& stage, int64_t problem) {
  double w[E], x[E], result[E];
  own.read_weights(stage, problem, w);
#pragma unroll
  for (int e = 0; e < E; ++e) x[e] = w[e];
  if constexpr (ALONE) {
    if (!solve_alone<M>(own, gram, stage, x)) return false;
  } else {
    if (!solve_rows<M>(own, gram, work, stage, x)) return false;
  }
  finish_direction<M>(own, stage, w, x, work + M * (M + 1), result);
#pragma unroll
  for (int e = 0; e < E; ++e)
    if (own.writes(e)) c[own.number(e)] = result[e];
  return true;
}

// c from G, both in shared memory; gram is finite up to M * M where its diagonal is. False, and c as it was, where the
// general path has to decide. work: that of StageMemory.
template <int M>
__device__ __forceinline__ bool solve_full_rank(const double* gram, double* work, double* c, int m, const Stage& stage,
                                                int64_t problem) {
  const Rule& rule = stage.rule;
  bool ordinary;
  if (solves(rule.method)) {
    constexpr bool kAlone = M <= 4;
    const Own<kAlone ? M : 1, kAlone> own(gram, m, m, ordinary);
    return ordinary && solve_direction<M>(own, gram, work, c, stage, problem);
  }
  const Own<1> own(gram, m, m, ordinary);
  if (!ordinary || !projects(rule.method)) return false;
  double result;
  if (rule.method == Method::pcgrad) {
    result = pcgrad_rows<M>(own, gram, work, rule, problem);
  } else {
    double along = 0;
#pragma unroll 4
    for (int i = 0; i < m; ++i)
      if (own.has(0) && i != own.lane) along += fmin(gram[i * m + own.lane], 0.0);
    result = own.norm[0] > 0 ? 1 - along * own.inverse[0] * own.inverse[0] : 0;
  }
  if (own.has(0)) c[own.lane] = rule.mean ? result / m : result;
  return true;
}

}  // namespace fastconfig

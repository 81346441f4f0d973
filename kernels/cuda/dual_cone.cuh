// UPGrad and DualProj of up to 4 gradients by one warp, in registers, where every diagonal of G is zero or an ordinary
// number and C is clearly of full rank. Elsewhere csrc/rules.hpp takes over, whose results these are, but for rounding.
//
// s projected on the dual cone is s + mu. On its support S the gradients get no part of it, C_SS mu_S = -(C s)_S with
// mu_S > 0, and the others do not conflict. There are few supports: every lane tries one, and the one that holds all of
// this gives the projection.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>

#include "full_rank.cuh"

namespace fastconfig {

// Determinants of C above this are those of gradients that are clearly independent: certain of
// csrc/rules/rounding.hpp asks for less, and what rounding does to the update stays below 1e-8 of it.
__device__ __forceinline__ double clearly_independent(const Stage& stage) { return fmax(8 * stage.rcond, 1e-8); }

// What a lane sees of the gradients: in an order of its own, those first that its support may have.
template <int M>
struct View {
  int at[M];
  double norm[M], inverse[M], cosine[M][M];

  // The gradient `last`, which is not among the first M - 1, comes behind them; false where a diagonal is no ordinary number.
  __device__ __forceinline__ bool read(const double* gram, int m, int last) {
    bool ordinary = true;
#pragma unroll
    for (int i = 0; i < M; ++i) {
      at[i] = i < M - 1 ? i + (i >= last) : last;
      take_root(at[i] < m ? gram[at[i] * m + at[i]] : 0, norm[i], inverse[i], ordinary);
    }
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int j = 0; j < i; ++j) {
        const double product = at[i] < m && at[j] < m ? gram[at[i] * m + at[j]] : 0;
        cosine[i][j] = cosine[j][i] = product * (inverse[i] * inverse[j]);
      }
      cosine[i][i] = 1;
    }
    return ordinary;
  }
};

// EACH gradient is projected, whose support is among the others; or the sum of all.
template <bool EACH, int M>
__device__ __forceinline__ bool project_alone(const double* gram, double* work, double* c, int m, const Stage& stage,
                                              int64_t problem) {
  constexpr int K = EACH ? M - 1 : M, kSupports = 1 << K, kProjections = EACH ? M : 1;
  const int lane = threadIdx.x % 32, group = lane / kSupports, support = lane % kSupports;
  View<M> view;
  if (!view.read(gram, m, EACH && group < M ? group : M - 1)) return false;

  const double* weights = stage.rule.weights_of(problem);
  const auto part = [&](int i) {
    return view.norm[i] * (weights == nullptr ? reciprocal(m) : view.at[i] < m ? weights[view.at[i]] : 0);
  };
  double start[M] = {}, q[M], share = 0;
  if constexpr (EACH) {
    share = fmax(part(K), 0.0);
    start[K] = 1;
  } else {
#pragma unroll
    for (int i = 0; i < M; ++i) share = fmax(share, start[i] = part(i));
    if (share > 0 && !is_ordinary(share)) return false;
    const double scale = share > 0 ? reciprocal(share) : 0;
#pragma unroll
    for (int i = 0; i < M; ++i) start[i] *= scale;
  }
#pragma unroll
  for (int i = 0; i < M; ++i) {
    q[i] = EACH ? view.cosine[i][K] : 0;
    if constexpr (!EACH) {
#pragma unroll
      for (int j = 0; j < M; ++j) q[i] = fma(view.cosine[i][j], start[j], q[i]);
    }
  }

  double a[K][K], mu[K];
#pragma unroll
  for (int i = 0; i < K; ++i) {
#pragma unroll
    for (int j = 0; j < i; ++j) a[i][j] = (support >> i & support >> j & 1) != 0 ? view.cosine[i][j] : 0;
    a[i][i] = 1;
    mu[i] = (support >> i & 1) != 0 ? -q[i] : 0;
  }
  double determinant = solve_symmetric<K>(a, mu), total = start[M - 1];
#pragma unroll
  for (int i = 0; i < K; ++i) total += i < M - 1 ? start[i] + mu[i] : mu[i];
  bool holds = true;
#pragma unroll
  for (int i = 0; i < M; ++i) {
    double slope = q[i];
#pragma unroll
    for (int j = 0; j < K; ++j) slope = fma(view.cosine[i][j], mu[j], slope);
    if (i == K)
      determinant *= slope;  // of the support and the gradient, by its part outside of their span
    else
      holds = holds && ((support >> i & 1) != 0 ? mu[i] > 0 : slope >= -16 * DBL_EPSILON * total);
  }

  // of the supports of one projection; the least determinant is that of all gradients
  const unsigned held = __ballot_sync(kAllLanes, holds) >> group * kSupports & ((1u << kSupports) - 1);
  if (!__all_sync(kAllLanes, held != 0 && determinant > clearly_independent(stage))) return false;
  if (group < kProjections && __ffs(held) - 1 == support) {
#pragma unroll
    for (int i = 0; i < M; ++i)
      work[group * M + view.at[i]] = share * (i < K ? start[i] + mu[i] : start[i]) * view.inverse[i];
  }
  __syncwarp();
  if (lane < m) {
    double sum = work[lane];
#pragma unroll
    for (int i = 1; i < kProjections; ++i) sum += work[i * M + lane];
    c[lane] = sum;
  }
  return true;
}

// c from G, both in shared memory; false, and c as it was, where the general path has to decide. work: M * M numbers.
template <int M>
__device__ __forceinline__ bool solve_projections(const double* gram, double* work, double* c, int m,
                                                  const Stage& stage, int64_t problem) {
  if (stage.rule.method == Method::upgrad) return project_alone<true, M>(gram, work, c, m, stage, problem);
  return stage.rule.method == Method::dualproj && project_alone<false, M>(gram, work, c, m, stage, problem);
}

}  // namespace fastconfig

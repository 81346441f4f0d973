// The m x m stage within a block: sum of the partial Gram matrices, then coefficients, by csrc/coefficients.hpp.
#pragma once

#include <cuda_runtime.h>

#include "launch.hpp"

namespace fastconfig {

// Threads that add up one entry side by side: enough to hide the latency of the loads, few enough for the last sum.
constexpr int kStripes = 16;

template <int M>
struct StageMemory {
  double gram[M * M];
  double c[M];
  double work[2 * M * M + 6 * M];
  int pivots[M];
};

// Not inlined: small code, and no register of the threads that wait for it.
template <class Team>
__device__ __noinline__ void solve_by(const Team& team, const double* gram, double* work, int* pivots, double* c, int m,
                                      const Stage& stage, int64_t problem) {
  coefficients(team, Workspace(work, pivots, m), gram, c, m, stage.rule, problem, stage.rcond);
}

// memory.c from memory.gram. A lone thread is faster where shuffles would cost more than they save.
template <int M>
__device__ __forceinline__ void solve(StageMemory<M>& memory, int m, const Stage& stage, int64_t problem) {
  if constexpr (M <= 4) {
    if (threadIdx.x == 0)
      solve_by(ThreadTeam{}, memory.gram, memory.work, memory.pivots, memory.c, m, stage, problem);
  } else {
    if (threadIdx.x < 32)
      solve_by(WarpTeam{}, memory.gram, memory.work, memory.pivots, memory.c, m, stage, problem);
  }
  __syncthreads();
}

// memory.gram from the packed partial Gram matrices of one problem, added up in the same order by every block;
// corrections: null, or what the products of every row are divided by.
template <int M, int THREADS>
__device__ __forceinline__ void sum_partials(const double* partials, int programs, int m, StageMemory<M>& memory,
                                             const double* corrections = nullptr) {
  constexpr int kTriangle = triangle(M);
  constexpr int kSide = THREADS / kTriangle < kStripes ? THREADS / kTriangle : kStripes;
  __shared__ double sums[kSide][kTriangle];
  const int entries = triangle(m), k = threadIdx.x % kTriangle, stripe = threadIdx.x / kTriangle;
  if (stripe < kSide && k < entries) {
    double s = 0;
#pragma unroll 8
    for (int p = stripe; p < programs; p += kSide) s += __ldcg(partials + static_cast<int64_t>(p) * entries + k);
    sums[stripe][k] = s;
  }
  __syncthreads();
  if (threadIdx.x < entries) {
    double s = 0;
#pragma unroll
    for (int side = 0; side < kSide; ++side) s += sums[side][threadIdx.x];
    const Unpacked at(threadIdx.x, m);
    if (corrections != nullptr) s /= corrections[at.i] * corrections[at.j];
    memory.gram[at.i * m + at.j] = memory.gram[at.j * m + at.i] = s;
  }
  __syncthreads();
}

}  // namespace fastconfig

// The m x m stage within a block: sum of the partial Gram matrices, then coefficients.
#pragma once

#include <cuda_runtime.h>

#include "dual_cone.cuh"
#include "full_rank.cuh"
#include "launch.hpp"

namespace fastconfig {

// Threads that add up one entry side by side: enough for all loads to be under way at once, few enough for the last sum.
constexpr int kStripes = 20;
constexpr int kUsualBlocks = 160;  // more partial matrices than this take more than one round of loads

template <int M, Weight WEIGHT = Weight::light>
struct StageMemory {
  double gram[M * M];
  double c[M];
  double work[most_scratch_doubles(WEIGHT, M, WarpTeam::width)];
  int pivots[M];
};

// Not inlined: small code, and no register of the threads that wait for it.
template <Weight WEIGHT = Weight::light>
__device__ __noinline__ void solve_any(const Workspace& workspace, const double* gram, double* c, int m,
                                              const Stage& stage, int64_t problem) {
  coefficients<WEIGHT, WEIGHT>(WarpTeam{}, workspace, {gram, m, stage.rule, problem, stage.rcond}, c);
}

// One entry of every STEP-th partial Gram matrix from number `first` on, added up; `entry` is that of the first matrix.
template <int STEP>
__device__ __forceinline__ double every(const double* entry, int first, int programs, int entries) {
  constexpr int kAtOnce = (kUsualBlocks + STEP - 1) / STEP;
  entry += static_cast<int64_t>(first) * entries;
  double s[2] = {0, 0};
  FASTCONFIG_ROLLED for (int p = first; p < programs; p += kAtOnce * STEP) {
    double v[kAtOnce];  // all on their way at once
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u, entry += STEP * entries) v[u] = p + u * STEP < programs ? __ldcg(entry) : 0;
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) s[u % 2] += v[u];
  }
  return s[0] + s[1];
}

// memory.gram from the stripes, by one warp.
template <int M, Weight WEIGHT, int STRIPES, int ENTRIES>
__device__ __forceinline__ void add_up(const double (&sums)[STRIPES][ENTRIES], int m, StageMemory<M, WEIGHT>& memory,
                                       const double* corrections) {
#pragma unroll
  for (int round = 0; round < M * M; round += 32) {
    const int e = round + threadIdx.x, i = e / M, j = e % M;
    if (i >= m || j >= m) continue;
    const int k = packed(i < j ? i : j, i < j ? j : i, m);
    double s[4] = {0, 0, 0, 0};
#pragma unroll
    for (int stripe = 0; stripe < STRIPES; ++stripe) s[stripe % 4] += sums[stripe][k];
    const double sum = (s[0] + s[1]) + (s[2] + s[3]);
    memory.gram[i * m + j] = corrections == nullptr ? sum : sum / (corrections[i] * corrections[j]);
  }
}

// memory.c of problem first + blockIdx.y, to all threads: every block adds up the packed partial Gram matrices in the same
// order, or, where there are too many gradients for that, takes the Gram matrix that stands in their place. corrections:
// null, or of every row what its products and its coefficient are divided by; those of a Gram matrix have been.
template <int M, int THREADS, Weight WEIGHT>
__device__ __forceinline__ void solve_in_block(StageMemory<M, WEIGHT>& memory, const double* partials, int programs, int m,
                                               int64_t first, const Stage& stage, const double* corrections) {
  const int t = threadIdx.x;
  const int64_t number = blockIdx.y, problem = first + number;
  if (t < M) memory.c[t] = 0;
  if constexpr (M > kSmallRows) {
    if (t < M * M) memory.gram[t] = t < m * m ? __ldcg(partials + number * m * m + t) : 0;
    __syncthreads();
  } else {
    constexpr int kTriangle = triangle(M), kSide = THREADS / kTriangle < kStripes ? THREADS / kTriangle : kStripes;
    __shared__ double sums[kSide][kTriangle];
    if (t < M * M) memory.gram[t] = 0;
    const int entries = triangle(m), k = t % kTriangle, stripe = t / kTriangle;
    if (stripe < kSide && k < entries)
      sums[stripe][k] = every<kSide>(partials + number * programs * entries + k, stripe, programs, entries);
    __syncthreads();
    if (t < 32) {
      add_up(sums, m, memory, corrections);
      __syncwarp();
    }
  }
  if (t < 32) {
    bool solved;
    if constexpr (WEIGHT == Weight::light)
      solved = solve_full_rank<M>(memory.gram, memory.work, memory.c, m, stage, problem);
    else
      solved = solve_projections<M>(memory.gram, memory.work, memory.c, m, stage, problem);
    if (!solved) {
      __syncwarp();
      solve_any<WEIGHT>(Workspace(memory.work, memory.pivots, m), memory.gram, memory.c, m, stage, problem);
    }
    if (corrections != nullptr) {
      __syncwarp();
      if (t < m) memory.c[t] /= corrections[t];
    }
  }
  __syncthreads();
}

}  // namespace fastconfig

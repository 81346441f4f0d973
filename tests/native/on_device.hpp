// The m x m stage of the kernels, on tests/emulator, for coefficients.cpp.
#pragma once

#include "heavy.cu"
#include "problems.hpp"
#include "solve.cu"

namespace {

using namespace fastconfig;

// As the last launch has it: from one partial Gram matrix up to kSmallRows, else from the whole of it.
template <int M, Weight WEIGHT>
__global__ void solve_once(const double* gram, double* c, int m, int64_t problem, const Stage stage) {
  __shared__ StageMemory<M, WEIGHT> memory;
  solve_in_block<M, kept_threads>(memory, gram, 1, m, problem, stage, nullptr);
  if (threadIdx.x < static_cast<unsigned>(m)) c[threadIdx.x] = memory.c[threadIdx.x];
}

// Whether registers are enough for a projection.
template <int M>
__global__ void project_once(const double* gram, double* done, int m, const Stage stage) {
  __shared__ StageMemory<M, Weight::medium> memory;
  if (threadIdx.x < M * M) memory.gram[threadIdx.x] = gram[threadIdx.x];
  __syncthreads();
  if (threadIdx.x < 32 && solve_projections<M>(memory.gram, memory.work, memory.c, m, stage, 0)) *done = 1;
}

// Independent gradients take the quick way, and no others.
void check_way(const Problem& p, const Stage& stage) {
  const bool broken = std::isnan(sum(p.gram)) || std::isinf(sum(p.gram));
  Vector gram(p.gram), done(1, 0.0);
  gram.resize(kFewRows * kFewRows);
  with_few_rows(p.m, [&](auto rows) {
    launch({}, project_once<decltype(rows)::value>, 1, 1, 32, Mode::ordinary, gram.data(), done.data(), p.m, stage);
  });
  if ((done[0] != 0) != (p.full && !broken && stage.rcond <= kCutoff)) fail(p, stage.rule, "the other way is taken");
}

// Odd seeds take the launch of its own for 4 gradients on, which other sizes take anyway.
Vector run(const Problem& p, const Rule& rule, double rcond = kCutoff, int64_t problem = 0) {
  const int m = p.m;
  const Stage stage{rule, rcond};
  if (!is_light(stage) && is_fused(stage, m) && rule.weights == nullptr) check_way(p, stage);
  Vector gram(p.gram), c(m, double{NAN}), scratch(m * m, double{NAN});
  if (!is_fused(stage, m) || (!is_light(stage) && m >= 4 && seed % 2 == 1)) {
    scratch.assign(heavy_doubles(rule.method, m, 1), double{NAN});
    launch_heavy({}, m, problem, 1, gram.data(), c.data(), scratch.data(), stage);
    return c;
  }
  if (m > kSolvedRows || (m >= 4 && seed % 2 == 1)) {
    launch_solve({}, m, problem, 1, gram.data(), c.data(), scratch.data(), stage);
    return c;
  }
  if (m <= kSmallRows)
    for (int i = 0; i < m; ++i)
      for (int j = i; j < m; ++j) gram[packed(i, j, m)] = p.gram[i * m + j];
  with_stage_rows<kSolvedRows>(stage, m, [&](auto rows, auto weight) {
    launch({}, solve_once<decltype(rows)::value, decltype(weight)::value>, 1, 1, kept_threads, Mode::ordinary,
           gram.data(), c.data(), m, problem, stage);
  });
  return c;
}

const std::vector<int> kSizes = {1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33};
constexpr auto kMost = Weight::heavy;

}  // namespace

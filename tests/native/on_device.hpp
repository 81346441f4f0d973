// The m x m stage of the kernels, on tests/emulator, for coefficients.cpp.
#pragma once

#include "heavy.cu"
#include "problems.hpp"
#include "solve.cu"

namespace {

using namespace fastconfig;

// As the last launch has it: from one partial Gram matrix up to kSmallRows, else from the whole of it.
template <int M>
__global__ void solve_once(const double* gram, double* c, int m, int64_t problem, const Stage stage) {
  __shared__ StageMemory<M> memory;
  solve_in_block<M, kept_threads>(memory, gram, 1, m, problem, stage, nullptr);
  if (threadIdx.x < static_cast<unsigned>(m)) c[threadIdx.x] = memory.c[threadIdx.x];
}

// Odd seeds take the launch of its own for 4 gradients on, which other sizes take anyway.
Vector run(const Problem& p, const Rule& rule, double rcond = kCutoff, int64_t problem = 0) {
  const int m = p.m;
  const Stage stage{rule, rcond};
  Vector gram(p.gram), c(m, double{NAN}), scratch(m * m, double{NAN});
  if (is_heavy(stage)) {
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
  with_solved_rows(m, [&](auto rows) {
    launch({}, solve_once<decltype(rows)::value>, 1, 1, kept_threads, Mode::ordinary, gram.data(), c.data(), m, problem,
           stage);
  });
  return c;
}

const std::vector<int> kSizes = {1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33};
constexpr auto kMost = Weight::heavy;

}  // namespace

// Bank conflicts of the m x m stage, counted from the addresses of every access to shared memory: prints a line a case.
//
// Accesses of the lanes of a warp by one instruction, the k-th of each lane since it met the others, count as one
// instruction of the warp.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "accesses.hpp"

// Lanes that meet here are in the same epoch afterwards.
#define __syncthreads() (next_epoch(), __syncthreads())
#define __syncwarp(...) (next_epoch(), __syncwarp(__VA_ARGS__))
#define __shfl_sync(...) (next_epoch(), __shfl_sync(__VA_ARGS__))
#define __shfl_xor_sync(...) (next_epoch(), __shfl_xor_sync(__VA_ARGS__))

#include "solve.cu"

__attribute__((no_sanitize("thread"))) unsigned current_thread() { return threadIdx.x; }

namespace {

using namespace fastconfig;
using Vector = std::vector<double>;

// The stage as the kernels have it, or without the sum of the partial matrices.
template <int M, bool SUM>
__global__ void stage(const double* gram, double* c, int m, const Stage stage) {
  __shared__ StageMemory<M> memory;
  if constexpr (SUM) {
    solve_in_block<M, kept_threads>(memory, gram, 1, m, 0, stage, nullptr);
  } else {
    if (threadIdx.x < M * M) memory.gram[threadIdx.x] = gram[threadIdx.x];
    __syncthreads();
    if (threadIdx.x < 32 && !solve_full_rank<M>(memory.gram, memory.work, memory.c, m, stage, 0)) c[0] = NAN;
    __syncthreads();
  }
  if (threadIdx.x < static_cast<unsigned>(m) && !std::isnan(c[0])) c[threadIdx.x] = memory.c[threadIdx.x];
}

// Passes over the banks that an instruction takes beyond those that its bytes need: 32 banks of 4 bytes serve 128 bytes
// of a warp at a time, and a word once for all lanes that read it.
int conflicts(const std::vector<Access>& lanes) {
  const unsigned at_once = 128 / std::max(4u, lanes[0].bytes);
  int extra = 0;
  for (unsigned first = 0; first < 32; first += at_once) {
    std::map<uintptr_t, std::set<uintptr_t>> words;  // by bank
    for (const Access& lane : lanes)
      if (lane.thread % 32 / at_once * at_once == first)
        for (uintptr_t word = lane.address / 4; word <= (lane.address + lane.bytes - 1) / 4; ++word)
          words[word % 32].insert(word);
    size_t most = 1;
    for (const auto& [bank, there] : words) most = std::max(most, there.size());
    extra += static_cast<int>(most) - 1;
  }
  return extra;
}

void report(const char* name, int m) {
  std::map<std::tuple<const void*, unsigned, unsigned>, int> turn;  // of an instruction in a thread's epoch
  std::map<std::tuple<const void*, unsigned, unsigned, int>, std::vector<Access>> warps;
  for (size_t k = 0; k < accesses_count; ++k) {
    const Access& a = accesses[k];
    const int before = turn[{a.instruction, a.thread, a.epoch}]++;
    warps[{a.instruction, a.thread / 32, a.epoch, before}].push_back(a);
  }
  int extra = 0;
  for (const auto& [which, lanes] : warps) extra += conflicts(lanes);
  std::printf("%s %d %zu %d\n", name, m, warps.size(), extra);
  accesses_count = 0;
}

void count(const char* name, int m, const Rule& rule, bool sum) {
  std::mt19937_64 generator(static_cast<unsigned>(m));
  std::normal_distribution<double> normal;
  Vector rows(m * 4 * m), gram(m * m), partial, c(m, 0.0), scratch(m * m);
  for (double& x : rows) x = normal(generator);
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < m; ++j)
      for (int k = 0; k < 4 * m; ++k) gram[i * m + j] += rows[i * 4 * m + k] * rows[j * 4 * m + k];
  for (int i = 0; i < m; ++i)
    for (int j = i; j < m; ++j) partial.push_back(gram[i * m + j]);
  const Stage stage_of{rule, 1e-10};
  const auto run = [&](auto kernel, const Vector& given) {
    launch({}, kernel, 1, 1, kept_threads, Mode::ordinary, given.data(), c.data(), m, stage_of);
  };
  recording = true;
  if (m > kSolvedRows)
    launch_solve({}, m, 0, 1, gram.data(), c.data(), scratch.data(), stage_of);
  else if (m == 8)
    sum ? run(stage<8, true>, partial) : run(stage<8, false>, gram);
  else
    run(stage<16, false>, gram);
  recording = false;
  if (std::isnan(c[0])) std::exit(1);  // the general path
  report(name, m);
}

}  // namespace

int main() {
  for (int m : {8, 16, 32}) {
    Rule rule;
    count("config", m, rule, false);
    if (m <= kSmallRows) count("config-sum", m, rule, true);
    rule.method = Method::pcgrad;
    count("pcgrad", m, rule, false);
    std::vector<int64_t> order(m * m);
    std::mt19937_64 generator(1);
    for (int i = 0; i < m; ++i) {
      std::iota(order.begin() + i * m, order.begin() + (i + 1) * m, 0);
      std::shuffle(order.begin() + i * m, order.begin() + (i + 1) * m, generator);
    }
    rule.order = order.data();
    count("pcgrad-drawn", m, rule, false);
  }
  return 0;
}

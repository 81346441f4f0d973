// What lies between both passes for many gradients: sum of the partial Gram matrices, m x m stage; and address tables.
#include <algorithm>

#include "launch.hpp"
#include "stage.cuh"

namespace fastconfig {
namespace {

constexpr int kSumThreads = 256, kSumWarps = kSumThreads / 32;
constexpr int kWordsAtOnce = 4000;  // of a launch: its parameters hold 32,764 bytes

// Every warp of a block adds up a part of the partials of 32 entries. starts: null, or the first partials of each problem,
// which then has as many as there are up to the next one. corrections: as for solve_in_block.
__global__ void __launch_bounds__(kSumThreads)
    sum(const double* partials, int programs, int m, double* gram, const int64_t* starts, const double* corrections) {
  __shared__ double sums[kSumWarps][32];
  int64_t before = static_cast<int64_t>(blockIdx.y) * programs;
  if (starts != nullptr) {
    before = starts[blockIdx.y];
    programs = static_cast<int>(starts[blockIdx.y + 1] - before);
  }
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  const int entries = triangle(m), lane = threadIdx.x % 32, warp = threadIdx.x / 32, k = blockIdx.x * 32 + lane;
  const double* first = partials + before * entries + k;
  double s = k < entries ? every<kSumWarps>(first, warp, programs, entries) : 0;
  sums[warp][lane] = s;
  int i = 0;  // the last row that does not begin behind k
#pragma unroll
  for (int hop = kMostRows / 2; hop != 0; hop /= 2)
    if (i + hop < m && packed(i + hop, i + hop, m) <= k) i += hop;
  __syncthreads();
  if (warp > 0 || k >= entries) return;
  const int j = k - packed(i, i, m) + i;
  s = 0;
#pragma unroll
  for (int w = 0; w < kSumWarps; ++w) s += sums[w][lane];
  if (corrections != nullptr) s /= corrections[i] * corrections[j];
  double* target = gram + static_cast<int64_t>(blockIdx.y) * m * m;
  target[i * m + j] = target[j * m + i] = s;
}

// Threads of a problem: 16 x 16 tiles.
constexpr int kSolveThreads = 256, kTiles = 16;

// The m x m stage of up to M = 16 R gradients by a block. Thread (t / 16, t % 16) has every 16th row and column.
template <int R>
struct Solver {
  static constexpr int M = kTiles * R, E = M / 32, ld = M + 1;
  static constexpr int kParts = kSolveThreads / M, kEach = M / kParts;  // neighbours that share a row, where a row is one's
  struct Memory {
    double matrix[M * ld];  // G, and zeros up to M; then L by its columns; scratch
    double vectors[6 * M];
    double columns[2][M];
    int pivots[M];
  };

  Memory& memory;
  const int m;
  const Stage& stage;
  const int64_t problem;
  double a[R][R];

  __device__ __forceinline__ Solver(Memory& memory, const double* gram, int m, const Stage& stage, int64_t problem)
      : memory(memory), m(m), stage(stage), problem(problem) {
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int s = 0; s < R; ++s) {
        const bool inside = (row(r) < m) & (column(s) < m);
        const double entry = __ldcg(gram + (inside ? row(r) * m + column(s) : 0));  // no branch before a load
        a[r][s] = inside ? entry : 0;
      }
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int s = 0; s < R; ++s) memory.matrix[row(r) * ld + column(s)] = a[r][s];
    __syncthreads();
  }

  // c to the first warp; false, in all warps, where the general path has to decide.
  __device__ __forceinline__ bool operator()(const Own<E>& own, double (&c)[E]) {
    if (threadIdx.x < 32) {
#pragma unroll
      for (int e = 0; e < E; ++e) memory.vectors[own.number(e)] = own.inverse[e];
    }
    __syncthreads();
    const Rule& rule = stage.rule;
    if (solves(rule.method)) {
      double w[E], x[E];
      own.read_weights(stage, problem, w);
      if (!solve(own, w, x)) return false;
      if (threadIdx.x < 32) finish_direction<M>(own, stage, w, x, memory.vectors, c);
      return true;
    }
    if (!projects(rule.method)) return false;
    double b[kEach];
    rule.method == Method::pcgrad ? pcgrad(b) : ppcgrad(b);
    __syncthreads();
#pragma unroll
    for (int q = 0; q < kEach; ++q) memory.matrix[threadIdx.x / kParts * ld + q * kParts + threadIdx.x % kParts] = b[q];
    __syncthreads();
    if (threadIdx.x >= 32) return true;
#pragma unroll
    for (int e = 0; e < E; ++e) {
      c[e] = 0;
#pragma unroll 8
      for (int i = 0; i < M; ++i) c[e] += memory.matrix[i * ld + own.number(e)];
      if (rule.mean) c[e] /= m;
    }
    return true;
  }

 private:
  __device__ __forceinline__ int row(int r) const { return threadIdx.x / kTiles + kTiles * r; }
  __device__ __forceinline__ int column(int s) const { return threadIdx.x % kTiles + kTiles * s; }

  // x := C^-1 w, in the first warp; false if C is not clearly of full rank. What is left of C stays in registers.
  __device__ __forceinline__ bool solve(const Own<E>& own, const double (&w)[E], double (&x)[E]) {
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int s = 0; s < R; ++s) a[r][s] *= memory.vectors[row(r)] * memory.vectors[column(s)];
    Elimination<E> elimination(own, w);
    FASTCONFIG_ROLLED for (int k = 0; k < m; ++k) {
      int p;
      double root;
      if (!elimination.find(clear_of_cutoff(stage), p, root)) return false;  // all warps alike
      double* const taken = memory.columns[k % 2];  // two in turn: one barrier a step
#pragma unroll
      for (int s = 0; s < R; ++s)
        if (column(s) == p) {
#pragma unroll
          for (int r = 0; r < R; ++r) taken[row(r)] = a[r][s];
        }
      __syncthreads();
      double v[E], down[R], along[R];
#pragma unroll
      for (int e = 0; e < E; ++e) v[e] = taken[own.number(e)] * root;
      elimination.take(own, k, p, root, v);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        down[r] = taken[row(r)] * root;
        along[r] = taken[column(r)] * root;
      }
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int s = 0; s < R; ++s) a[r][s] = fma(-down[r], along[s], a[r][s]);
#pragma unroll
      for (int e = 0; e < E; ++e)
        if (threadIdx.x < 32) memory.matrix[k * ld + own.number(e)] = v[e];
    }
    __syncwarp();
    if (threadIdx.x < 32) elimination.substitute(own, memory.matrix, ld, x);
    return true;
  }

  // Coefficients of gradient t / kParts, projected: of gradients t % kParts, and so on in steps of kParts.
  __device__ __forceinline__ void pcgrad(double (&b)[kEach]) const {
    const Rule& rule = stage.rule;
    const int i = threadIdx.x / kParts, part = threadIdx.x % kParts;
    const int64_t* order = i < m ? rule.order_of(problem) : nullptr;
    if (order != nullptr) order += i * m;
#pragma unroll
    for (int q = 0; q < kEach; ++q) b[q] = q * kParts + part == i && memory.vectors[i] > 0 ? 1 : 0;
    FASTCONFIG_ROLLED for (int step = 0; step < m; ++step) {
      const int j = order != nullptr ? static_cast<int>(order[step]) : step;
      double s[4] = {0, 0, 0, 0};
#pragma unroll
      for (int q = 0; q < kEach; ++q) s[q % 4] = fma(b[q], memory.matrix[j * ld + q * kParts + part], s[q % 4]);
      double along = (s[0] + s[1]) + (s[2] + s[3]);
#pragma unroll
      for (int hop = 1; hop < kParts; hop *= 2) along += __shfl_xor_sync(kAllLanes, along, hop);
      const double by = memory.vectors[j], less = j != i && along < 0 ? along * by * by : 0;
#pragma unroll
      for (int q = 0; q < kEach; ++q)
        if (q * kParts + part == j) b[q] -= less;
    }
  }

  // The same, against the original gradients.
  __device__ __forceinline__ void ppcgrad(double (&b)[kEach]) const {
    const int i = threadIdx.x / kParts;
#pragma unroll
    for (int q = 0; q < kEach; ++q) {
      const int j = q * kParts + threadIdx.x % kParts;
      const double by = memory.vectors[j];
      b[q] = i != j ? -fmin(memory.matrix[i * ld + j], 0.0) * by * by : by > 0 ? 1 : 0;
    }
  }
};

// One block a problem. Where the general path decides, a warp takes it, with m * m numbers a problem in `scratch`.
template <int R>
__global__ void __launch_bounds__(kSolveThreads, 1)
    solve_problem(const double* gram, double* c, double* scratch, int m, int64_t first,
                  const __grid_constant__ Stage stage) {
  using Block = Solver<R>;
  constexpr int E = Block::E;
  __shared__ typename Block::Memory memory;
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  const int64_t number = blockIdx.y, problem = first + number;
  gram += number * m * m;
  c += number * m;
  Block block(memory, gram, m, stage, problem);
  bool ordinary;
  const Own<E> own(memory.matrix, Block::ld, m, ordinary);
  double result[E];
  const bool done = ordinary && block(own, result);
  __syncthreads();  // of what the general path writes
  if (threadIdx.x >= 32) return;
  if (!done) {
    const Workspace workspace(memory.matrix, scratch + number * m * m, memory.vectors, memory.pivots, m);
    solve_any(workspace, gram, c, m, stage, problem);
    return;
  }
#pragma unroll
  for (int e = 0; e < E; ++e)
    if (own.has(e)) c[own.number(e)] = result[e];
}

struct Words {
  int64_t word[kWordsAtOnce];
};

__global__ void write_words(const __grid_constant__ Words words, int count, int64_t* target) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) target[i] = words.word[i];
}

}  // namespace

void launch_sum(const Context& context, int programs, int m, int64_t problems, const double* partials, double* gram,
                const double* corrections) {
  const int64_t* const starts = nullptr;
  launch(context, sum, (triangle(m) + 31) / 32, problems, kSumThreads, Mode::following, partials, programs, m, gram,
         starts, corrections);
}

void launch_sum_groups(const Context& context, const int64_t* starts, int m, int64_t groups, const double* partials,
                       double* gram) {
  const double* const corrections = nullptr;
  launch(context, sum, (triangle(m) + 31) / 32, groups, kSumThreads, Mode::following, partials, 0, m, gram, starts,
         corrections);
}

void launch_solve(const Context& context, int m, int64_t first, int64_t problems, const double* gram, double* c,
                  double* scratch, const Stage& stage) {
  const auto kernel = m <= 2 * kTiles ? solve_problem<2> : solve_problem<4>;
  launch(context, kernel, 1, problems, kSolveThreads, Mode::following, gram, c, scratch, m, first, stage);
}

void launch_write(const Context& context, const int64_t* words, int64_t count, int64_t* target) {
  for (int64_t start = 0; start < count; start += kWordsAtOnce) {
    Words piece;
    const int size = static_cast<int>(count - start < kWordsAtOnce ? count - start : kWordsAtOnce);
    std::copy_n(words + start, size, piece.word);
    launch(context, write_words, 1, 1, 256, Mode::ordinary, piece, size, target + start);
  }
}

int compiled_capability() {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, sum), "kernels for this device");
  return attributes.ptxVersion;
}

}  // namespace fastconfig

// What lies between both passes for many gradients: sum of the partial Gram matrices, m x m stage; and address tables.
#include <algorithm>

#include "launch.hpp"
#include "stage.cuh"

namespace fastconfig {
namespace {

constexpr int kSumThreads = 256, kSumWarps = kSumThreads / 32;
constexpr int kWordsAtOnce = 4000;  // of a launch: its parameters hold 32,764 bytes

// Every warp of a block adds up a part of the partials of 32 entries. corrections: as for sum_partials.
__global__ void __launch_bounds__(kSumThreads)
    sum(const double* partials, int programs, int m, double* gram, const double* corrections) {
  __shared__ double sums[kSumWarps][32];
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  const int entries = triangle(m), lane = threadIdx.x % 32, warp = threadIdx.x / 32, k = blockIdx.x * 32 + lane;
  const double* first = partials + static_cast<int64_t>(blockIdx.y) * programs * entries;
  double s = 0;
  if (k < entries) {
#pragma unroll 8
    for (int p = warp; p < programs; p += kSumWarps) s += __ldcg(first + static_cast<int64_t>(p) * entries + k);
  }
  sums[warp][lane] = s;
  __syncthreads();
  if (warp > 0 || k >= entries) return;
  s = 0;
#pragma unroll
  for (int w = 0; w < kSumWarps; ++w) s += sums[w][lane];
  const Unpacked at(k, m);
  if (corrections != nullptr) s /= corrections[at.i] * corrections[at.j];
  double* target = gram + static_cast<int64_t>(blockIdx.y) * m * m;
  target[at.i * m + at.j] = target[at.j * m + at.i] = s;
}

// One warp a problem; what is used throughout in shared memory, the rest, m * m numbers a problem, in `scratch`.
__global__ void __launch_bounds__(32) solve_problem(const double* gram, double* c, double* scratch, int m,
                                                    int64_t first, const __grid_constant__ Stage stage) {
  __shared__ double cosines[kMostRows * kMostRows], vectors[6 * kMostRows];
  __shared__ int pivots[kMostRows];
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  const int64_t problem = blockIdx.y;
  const Workspace workspace(cosines, scratch + problem * m * m, vectors, pivots, m);
  coefficients(WarpTeam{}, workspace, gram + problem * m * m, c + problem * m, m, stage.rule, first + problem,
               stage.rcond);
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
  launch(context, sum, (triangle(m) + 31) / 32, problems, kSumThreads, Mode::following, partials, programs, m, gram,
         corrections);
}

void launch_solve(const Context& context, int m, int64_t first, int64_t problems, const double* gram, double* c,
                  double* scratch, const Stage& stage) {
  launch(context, solve_problem, 1, problems, 32, Mode::following, gram, c, scratch, m, first, stage);
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

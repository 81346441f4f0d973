// Second pass, sum_i c_i g_i in float64; alone, or behind the m x m stage that every block redoes for itself.
#include "combine.cuh"

namespace fastconfig {
namespace {

// Writes the sums as the result.
template <class T>
struct Result {
  static constexpr bool kApart = true;  // takes sums of columns that lie apart, of rows as they are given
  struct Nothing {};
  char* out;

  __device__ __forceinline__ Nothing ahead(int64_t) const { return {}; }

  __device__ __forceinline__ void put(int64_t index, const double (&sum)[Vector<T>::size], Nothing) const {
    Vector<T> v;
#pragma unroll
    for (int e = 0; e < Vector<T>::size; ++e) round_to(v.x[e], sum[e]);
    store(out, index, v);
  }

  __device__ __forceinline__ void put_column(int64_t column, double sum) const {
    round_to(reinterpret_cast<T*>(out)[column], sum);
  }
};

template <class T>
__global__ void __launch_bounds__(combine_threads, 1)
    combine(const __grid_constant__ Table table, const double* coefficients) {
  __shared__ double c[kMostRows];
  const int64_t problem = blockIdx.y + group_of(table, taken_block(table));  // one of both is 0
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  if (threadIdx.x < kMostRows)
    c[threadIdx.x] = threadIdx.x < table.m ? coefficients[problem * table.m + threadIdx.x] : 0;
  __syncthreads();
  combine_share<T, kGroup, false>(
      table, c, [&](const Entry& entry) { return Result<T>{result_of(table, entry, blockIdx.y)}; });
}

template <class T, int M, Weight WEIGHT>
__global__ void __launch_bounds__(combine_threads, 1)
    finish(const __grid_constant__ Table table, const double* partials, int programs, int64_t first,
           const __grid_constant__ Stage stage) {
  __shared__ StageMemory<M, WEIGHT> memory;
  if (table.shares != 0) {  // the stage is that of the block's group
    const int64_t group = group_of(table, taken_block(table));
    first += group;
    if constexpr (M > kSmallRows) {
      partials += group * table.m * table.m;
    } else {
      const int64_t starts = starts_of(table, gridDim.x) + group, before = table.word(starts);
      partials += before * triangle(table.m);
      programs = static_cast<int>(table.word(starts + 1) - before);
    }
  }
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  solve_in_block<M, combine_threads>(memory, partials, programs, table.m, first, stage, nullptr);
  combine_share<T, kGroupOf<M>, (M <= kSmallRows)>(
      table, memory.c, [&](const Entry& entry) { return Result<T>{result_of(table, entry, blockIdx.y)}; });
}

}  // namespace

void launch_combine(const Context& context, const Plan& plan, const Table& table, int64_t problems, const double* c) {
  with_type(context.kind, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(context, combine<T>, plan.blocks, problems, combine_threads, Mode::following, table, c);
  });
}

void launch_finish(const Context& context, const Plan& plan, const Table& table, int64_t first, int64_t problems,
                   int programs, const double* partials, const Stage& stage) {
  with_type(context.kind, [&](auto type) {
    using T = typename decltype(type)::type;
    with_stage_rows<kSolvedRows>(stage, table.m, [&](auto rows, auto weight) {
      launch(context, finish<T, decltype(rows)::value, decltype(weight)::value>, plan.blocks, problems,
             combine_threads, Mode::following, table, partials, programs, first, stage);
    });
  });
}

}  // namespace fastconfig

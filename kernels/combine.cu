// Second pass, sum_i c_i g_i in float64; alone, or behind the m x m stage that every block redoes for itself.
#include "launch.hpp"
#include "stage.cuh"
#include "vectors.cuh"

namespace fastconfig {
namespace {

constexpr int kGroup = 4;  // rows that are added at a time where there are many

// Vectors of a row that a thread loads before it adds; what 128 registers hold.
template <class T, int G, bool ONE_GROUP>
constexpr int kUnrolled = G <= 4 && (ONE_GROUP || sizeof(T) > 2) ? 2 : 1;

// Adds U vectors of each of the rows, combine_threads apart and downwards from `index`, to `sum`; none below `begin`.
template <class T, int G, int U>
__device__ __forceinline__ void add_rows(const Rows<G>& rows, int64_t index, int64_t begin, const double (&c)[G],
                                         double (&sum)[U][Vector<T>::size]) {
  Vector<T> v[U][G];
#pragma unroll
  for (int u = 0; u < U; ++u)
#pragma unroll
    for (int i = 0; i < G; ++i) {
      const int64_t place = index - u * combine_threads;
      v[u][i] = u == 0 || place >= begin ? rows.template vector<T, true>(i, place) : zeros<T>();
    }
#pragma unroll
  for (int u = 0; u < U; ++u)
#pragma unroll
    for (int i = 0; i < G; ++i)
#pragma unroll
      for (int e = 0; e < Vector<T>::size; ++e)
        sum[u][e] = fma(c[i], static_cast<double>(widen(v[u][i].x[e])), sum[u][e]);
}

template <class T>
__device__ __forceinline__ void put(char* out, int64_t index, const double (&sum)[Vector<T>::size]) {
  Vector<T> v;
#pragma unroll
  for (int e = 0; e < Vector<T>::size; ++e) round_to(v.x[e], sum[e]);
  store(out, index, v);
}

// A block's share of the result, from its end: what the first pass read last is still in the cache. G rows at a time;
// c holds zeros from m to the next multiple of G.
template <class T, int G, bool ONE_GROUP>
__device__ __forceinline__ void combine_share(const Table& table, const double* shared_c) {
  constexpr int V = Vector<T>::size, U = kUnrolled<T, G, ONE_GROUP>;
  const int64_t problem = blockIdx.y;
  double c[G];  // in registers where there is one group
#pragma unroll
  for (int i = 0; i < G; ++i) c[i] = shared_c[i];
  for_pieces_reversed(
      table, share(table.chunks, gridDim.x, blockIdx.x), share(table.chunks, gridDim.x, blockIdx.x + 1),
      kChunkWidth<T>, [&](const Piece& piece) {
        const Rows<G> first(table, piece.entry, problem);
        char* out = result_of(table, piece.entry, problem);
        for (int64_t column = piece.columns_begin(V) + threadIdx.x; column < piece.last; column += combine_threads) {
          double sum = 0;
          for (int from = 0; from < table.m; from += G) {
            const Rows<G> rows(table, piece.entry, problem, from);
#pragma unroll
            for (int i = 0; i < G; ++i)
              sum = fma(shared_c[from + i],
                        static_cast<double>(rows.template element<T>(i, column, table.step(from + i))), sum);
          }
          round_to(reinterpret_cast<T*>(out)[column], sum);
        }
        const int64_t begin = piece.first / V;
        int64_t index = piece.vectors_end(V) - 1 - threadIdx.x;
        for (; index >= begin; index -= U * combine_threads) {
          double sum[U][V] = {};
          add_rows<T, G, U>(first, index, begin, c, sum);
          if constexpr (!ONE_GROUP) {
            for (int from = G; from < table.m; from += G) {
              double more[G];
#pragma unroll
              for (int i = 0; i < G; ++i) more[i] = shared_c[from + i];
              add_rows<T, G, U>(Rows<G>(table, piece.entry, problem, from), index, begin, more, sum);
            }
          }
#pragma unroll
          for (int u = 0; u < U; ++u)
            if (index - u * combine_threads >= begin) put<T>(out, index - u * combine_threads, sum[u]);
        }
      });
}

template <class T>
__global__ void __launch_bounds__(combine_threads, 1)
    combine(const __grid_constant__ Table table, const double* coefficients) {
  __shared__ double c[kMostRows];
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  if (threadIdx.x < kMostRows)
    c[threadIdx.x] = threadIdx.x < table.m ? coefficients[static_cast<int64_t>(blockIdx.y) * table.m + threadIdx.x] : 0;
  __syncthreads();
  combine_share<T, kGroup, false>(table, c);
}

template <class T, int M>
__global__ void __launch_bounds__(combine_threads, 1)
    finish(const __grid_constant__ Table table, const double* partials, int programs, int64_t first,
           const __grid_constant__ Stage stage) {
  __shared__ StageMemory<M> memory;
  const int m = table.m;
  const int64_t problem = blockIdx.y;
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  if (programs == 0) {
    if (threadIdx.x < m * m) memory.gram[threadIdx.x] = partials[problem * m * m + threadIdx.x];
    __syncthreads();
  } else {
    sum_partials<M, combine_threads>(partials + problem * programs * triangle(m), programs, m, memory);
  }
  if (threadIdx.x < M) memory.c[threadIdx.x] = 0;
  __syncthreads();
  solve(memory, m, stage, first + problem);
  combine_share<T, (M <= kSmallRows ? M : kGroup), (M <= kSmallRows)>(table, memory.c);
}

template <class T>
void launch_finish_of(const Context& context, const Plan& plan, const Table& table, int64_t first, int64_t problems,
                      int programs, const double* partials, const Stage& stage) {
  const auto run = [&](auto rows) {
    constexpr int M = decltype(rows)::value;
    launch(context, finish<T, M>, plan.blocks, problems, combine_threads, Mode::following, table, partials,
           programs, first, stage);
  };
  table.m > kSmallRows ? run(Number<kSolvedRows>{}) : with_small_rows(small_rows(table.m), run);
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
    launch_finish_of<typename decltype(type)::type>(context, plan, table, first, problems, programs, partials, stage);
  });
}

}  // namespace fastconfig

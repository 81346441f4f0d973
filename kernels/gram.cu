// First launch for few gradients: every block's Gram matrix of its share of the columns.
#include "launch.hpp"
#include "products.cuh"

namespace fastconfig {
namespace {

template <int M>
constexpr int kUnrolled = M <= 4 ? 2 : 1;  // vectors of a row that a thread loads before it multiplies

template <class T, int M>
__global__ void __launch_bounds__(gram_threads(M), 1)
    gram_small(const __grid_constant__ Table table, double* partials) {
  constexpr int U = kUnrolled<M>, V = Vector<T>::size, kThreads = gram_threads(M);
  const int64_t problem = blockIdx.y;
  Products<M> products;
  for_pieces(table, share(table.chunks, gridDim.x, blockIdx.x), share(table.chunks, gridDim.x, blockIdx.x + 1),
             kChunkWidth<T>, [&](const Piece& piece) {
               const Rows<M> rows(table, piece.entry, problem);
               const int64_t end = piece.vectors_end(V);
               int64_t index = piece.first / V + threadIdx.x;
               for (; index + (U - 1) * kThreads < end; index += U * kThreads) {
                 Vector<T> v[U][M];
#pragma unroll
                 for (int u = 0; u < U; ++u)
#pragma unroll
                   for (int i = 0; i < M; ++i) v[u][i] = rows.template vector<T, false>(i, index + u * kThreads);
                 products.add(v);
               }
               for (; U > 1 && index < end; index += kThreads) {
                 Vector<T> v[1][M];
#pragma unroll
                 for (int i = 0; i < M; ++i) v[0][i] = rows.template vector<T, false>(i, index);
                 products.add(v);
               }
               for (int64_t column = piece.columns_begin(V) + threadIdx.x; column < piece.last; column += kThreads) {
                 Real<T> x[M];
#pragma unroll
                 for (int i = 0; i < M; ++i) x[i] = rows.template element<T>(i, column, table.step(i));
                 products.add_column(x);
               }
             });
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
  put_block_sum<M, kThreads>(products, table.m, partials + (problem * gridDim.x + blockIdx.x) * triangle(table.m));
}

}  // namespace

void launch_gram(const Context& context, const Plan& plan, const Table& table, int64_t problems, double* partials) {
  if (plan.tiles) return launch_gram_tiles(context, plan, table, problems, partials);
  with_type(context.kind, [&](auto type) {
    using T = typename decltype(type)::type;
    with_small_rows(plan.rows, [&](auto rows) {
      constexpr int M = decltype(rows)::value;
      launch(context, gram_small<T, M>, plan.blocks, problems, gram_threads(M), Mode::ordinary, table, partials);
    });
  });
}

}  // namespace fastconfig

// A block's share of the Gram matrix of a few rows, however these come to be.
#pragma once

#include "launch.hpp"
#include "products.cuh"

namespace fastconfig {

// Rows as they lie in memory.
template <class T, int M>
struct GivenRows {
  static constexpr bool kApart = true;  // takes columns apart where it cannot take vectors
  const Table& table;
  Rows<M> rows;

  __device__ __forceinline__ GivenRows(const Table& all, const Entry& entry)
      : table(all), rows(all, entry, blockIdx.y) {}

  // U vectors of every row, `step` apart from `index` on; zeros from `end` on.
  template <int U>
  __device__ __forceinline__ void read(Vector<T> (&v)[U][M], int64_t index, int step, int64_t end) const {
    const int left = clipped(end - index);
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int i = 0; i < M; ++i)
        v[u][i] = rows.template vector<T, false>(i, index + u * step, u == 0 || u * step < left);
  }

  // As many columns, `step` apart from each other.
  template <int U>
  __device__ __forceinline__ void read_apart(Vector<T> (&v)[U][M], int64_t column, int step, int64_t end) const {
    const int left = clipped(end - column), taken = Vector<T>::size * step;
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int i = 0; i < M; ++i)
        v[u][i] = rows.template apart<T, false>(i, column + u * taken, step, left - u * taken);
  }

  __device__ __forceinline__ void read_column(Real<T> (&x)[M], int64_t column) const {
#pragma unroll
    for (int i = 0; i < M; ++i) x[i] = rows.template element<T>(i, column, table.step(i));
  }
};

// Adds the products of a block's share of the columns, every element of which one thread reads. rows_of(entry) gives
// what reads the rows of a segment; a thread reads U vectors of each before it multiplies.
template <class T, int U, int THREADS, int M, class RowsOf>
__device__ __forceinline__ void add_share(const Table& table, Products<M>& products, RowsOf rows_of) {
  constexpr int V = Vector<T>::size;
  const Share own(table, gridDim.x, blockIdx.x);
  for_pieces(table, own.first, own.last,
             kChunkWidth<T>, [&](const Piece& piece) {
               const auto rows = rows_of(piece.entry);
               int64_t column = piece.columns_begin(V) + threadIdx.x;
               if constexpr (rows.kApart) {
                 for (; piece.apart && column < piece.last; column += V * THREADS) {
                   Vector<T> v[1][M];
                   rows.read_apart(v, column, THREADS, piece.last);
                   products.add(v);
                 }
               }
               for (; column < piece.last; column += THREADS) {
                 Real<T> x[M];
                 rows.read_column(x, column);
                 products.add_column(x);
               }
               const int64_t end = piece.vectors_end(V);
               for (int64_t index = piece.first / V + threadIdx.x; index < end; index += U * THREADS) {
                 Vector<T> v[U][M];
                 rows.read(v, index, THREADS, end);
                 products.add(v);
               }
             }, own.begins);
}

// Ends a first launch: the next one may begin, and the block's products go to its place in the partials.
template <int THREADS, int M>
__device__ __forceinline__ void put_partial(const Products<M>& products, int m, double* partials) {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
  const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  put_block_sum<M, THREADS>(products, m, partials + block * triangle(m));
}

}  // namespace fastconfig

// Second pass, sum_i c_i g_i in float64, and the m x m stage that every block redoes for itself.
#pragma once

#include "launch.hpp"
#include "stage.cuh"
#include "vectors.cuh"

namespace fastconfig {

constexpr int kGroup = 4;  // rows that are added at a time where there are many

// Vectors of a row that a thread loads before it adds; what 128 registers hold.
template <class T, int G, bool ONE_GROUP>
constexpr int kUnrolledSums = G <= 4 && (ONE_GROUP || sizeof(T) > 2) ? 2 : 1;

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

// A block's share of the sums, from its end: what the first pass read last is still in the cache. G rows at a time; c
// holds zeros from m to the next multiple of G. target_of(entry) gives what takes the sums of a segment: ahead(index)
// loads what put(index, sum, ahead) needs beside a sum.
template <class T, int G, bool ONE_GROUP, class TargetOf>
__device__ __forceinline__ void combine_share(const Table& table, const double* shared_c, TargetOf target_of) {
  constexpr int V = Vector<T>::size, U = kUnrolledSums<T, G, ONE_GROUP>;
  const int64_t problem = blockIdx.y;
  double c[G];  // in registers where there is one group
#pragma unroll
  for (int i = 0; i < G; ++i) c[i] = shared_c[i];
  for_pieces_reversed(
      table, share(table.chunks, gridDim.x, blockIdx.x), share(table.chunks, gridDim.x, blockIdx.x + 1),
      kChunkWidth<T>, [&](const Piece& piece) {
        const Rows<G> first(table, piece.entry, problem);
        const auto target = target_of(piece.entry);
        for (int64_t column = piece.columns_begin(V) + threadIdx.x; column < piece.last; column += combine_threads) {
          double sum = 0;
          for (int from = 0; from < table.m; from += G) {
            const Rows<G> rows(table, piece.entry, problem, from);
#pragma unroll
            for (int i = 0; i < G; ++i)
              sum = fma(shared_c[from + i],
                        static_cast<double>(rows.template element<T>(i, column, table.step(from + i))), sum);
          }
          target.put_column(column, sum);
        }
        const int64_t begin = piece.first / V;
        int64_t index = piece.vectors_end(V) - 1 - threadIdx.x;
        for (; index >= begin; index -= U * combine_threads) {
          double sum[U][V] = {};
          decltype(target.ahead(index)) ahead[U];
#pragma unroll
          for (int u = 0; u < U; ++u)
            if (u == 0 || index - u * combine_threads >= begin) ahead[u] = target.ahead(index - u * combine_threads);
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
            if (index - u * combine_threads >= begin) target.put(index - u * combine_threads, sum[u], ahead[u]);
        }
      });
}

// Rows that a block adds up at a time, behind the stage for up to M gradients.
template <int M>
constexpr int kGroupOf = M <= kSmallRows ? M : kGroup;

}  // namespace fastconfig

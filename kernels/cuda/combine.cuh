// Second pass, sum_i c_i g_i in float64, and the m x m stage that every block redoes for itself.
#pragma once

#include "launch.hpp"
#include "stage.cuh"
#include "vectors.cuh"

namespace fastconfig {

constexpr int kGroup = 4;  // rows that are added at a time where there are many

// Vectors of a row that a thread loads before it adds; what 128 registers hold.
template <class T, int G, bool ONE_GROUP>
constexpr int kUnrolledSums = G > 4 ? 1 : sizeof(T) == 2 ? 1 + ONE_GROUP : ONE_GROUP && G < 4 && sizeof(T) == 4 ? 4 : 2;

// Adds vectors of rows from..from + R - 1 to the sums of U vectors.
template <class T, int R, int G, int U>
__device__ __forceinline__ void add_vectors(const Vector<T> (&v)[U][R], int from, const double (&c)[G],
                                            double (*sum)[Vector<T>::size]) {
#pragma unroll
  for (int u = 0; u < U; ++u)
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
      for (int e = 0; e < Vector<T>::size; ++e)
        sum[u][e] = fma(c[from + i], static_cast<double>(widen(v[u][i].x[e])), sum[u][e]);
}

// Adds U vectors of each of the rows, combine_threads apart and downwards from `place`, to `sum`; or as many columns
// apart from each other. `left` places are there, those of other threads included.
template <class T, int G, int U>
__device__ __forceinline__ void add_rows(const Rows<G>& rows, int64_t place, int left, bool apart, const double (&c)[G],
                                         double (&sum)[U][Vector<T>::size]) {
  if (apart) {
    // an element has a register of its own until it has come, so of 16-bit ones there is room for fewer
    constexpr int kTaken = Vector<T>::size * combine_threads;
    constexpr int kVectors = sizeof(T) == 2 || G == 4 ? 1 : U, kRows = sizeof(T) > 2 || G <= 4 ? G : G / 2;
#pragma unroll
    for (int first = 0; first < U; first += kVectors)
#pragma unroll
      for (int from = 0; from < G; from += kRows) {
        Vector<T> v[kVectors][kRows];
#pragma unroll
        for (int u = 0; u < kVectors; ++u)
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
            const int taken = (first + u) * kTaken;
            v[u][i] = rows.template apart<T, true>(from + i, place - taken, -combine_threads, left - taken);
          }
        add_vectors<T>(v, from, c, sum + first);
      }
  } else {
    Vector<T> v[U][G];
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int i = 0; i < G; ++i)
        v[u][i] = rows.template vector<T, true>(i, place - u * combine_threads, u == 0 || u * combine_threads < left);
    add_vectors<T>(v, 0, c, sum);
  }
}

// Whose share a block takes. Shares of their own may be more than run at once: those that came last in the first pass come
// first, while what was read of them is still in the cache.
__device__ __forceinline__ int taken_block(const Table& table) {
  return static_cast<int>(table.shares == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x);
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
  const Share own(table, gridDim.x, taken_block(table));
  for_pieces_reversed(
      table, own.first, own.last, kChunkWidth<T>, [&](Piece piece) {
        const Rows<G> first(table, piece.entry, problem);
        const auto target = target_of(piece.entry);
        piece.apart = piece.apart && target.kApart;
        for (int64_t column = piece.singles_begin(V) + threadIdx.x; column < piece.last; column += combine_threads) {
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
        const int64_t begin = piece.places_begin(V);
        int64_t place = piece.places_end(V) - 1 - threadIdx.x;
        for (; place >= begin; place -= U * combine_threads * piece.each(V)) {
          const int left = clipped(place - begin + 1);
          double sum[U][V] = {};
          decltype(target.ahead(place)) ahead[U];
#pragma unroll
          for (int u = 0; u < U; ++u)
            if (!piece.apart && (u == 0 || u * combine_threads < left))
              ahead[u] = target.ahead(place - u * combine_threads);
          add_rows<T, G, U>(first, place, left, piece.apart, c, sum);
          if constexpr (!ONE_GROUP) {
            for (int from = G; from < table.m; from += G) {
              double more[G];
#pragma unroll
              for (int i = 0; i < G; ++i) more[i] = shared_c[from + i];
              add_rows<T, G, U>(Rows<G>(table, piece.entry, problem, from), place, left, piece.apart, more, sum);
            }
          }
#pragma unroll
          for (int u = 0; u < U; ++u) {
            if (!piece.apart && (u == 0 || u * combine_threads < left))
              target.put(place - u * combine_threads, sum[u], ahead[u]);
#pragma unroll
            for (int e = 0; e < V; ++e)
              if (piece.apart && (u * V + e) * combine_threads < left)
                target.put_column(place - (u * V + e) * combine_threads, sum[u][e]);
          }
        }
      }, own.ends);
}

// Rows that a block adds up at a time, behind the stage for up to M gradients.
template <int M>
constexpr int kGroupOf = M <= kSmallRows ? M : kGroup;

}  // namespace fastconfig

// A block's share of the Gram matrix of many rows: A A^T on the float64 tensor cores, straight from global memory.
//
// In mma.m8n8k4 the fragment of A (row lane / 4, k lane % 4) and that of B (k lane % 4, column lane / 4) are the same
// registers for A A^T, and k may be permuted at will: one vector of 16 bytes a lane and tile of 8 rows gives as many
// steps of four columns as it has elements, and no shared memory is needed.
#pragma once

#include "launch.hpp"
#include "products.cuh"

namespace fastconfig {

constexpr int kTile = 8;  // rows

[[maybe_unused]] __device__ __forceinline__ void multiply_add(double (&c)[2], double a, double b) {
#if defined(FASTCONFIG_EMULATED)
  emulator::dmma(c, a, b);
#elif __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(c[0]), "+d"(c[1])
      : "d"(a), "d"(b));
#endif
}

// Products of all pairs of TM tiles; a lane holds two elements of each.
template <int TM>
struct TileProducts {
  double sum[triangle(TM)][2];

  __device__ __forceinline__ TileProducts() {
#pragma unroll
    for (int k = 0; k < triangle(TM); ++k) sum[k][0] = sum[k][1] = 0;
  }

  __device__ __forceinline__ void add(const double (&x)[TM]) {
    int k = 0;
#pragma unroll
    for (int a = 0; a < TM; ++a)
#pragma unroll
      for (int b = a; b < TM; ++b, ++k) multiply_add(sum[k], x[a], x[b]);
  }
};

// What a lane reads of the rows of an entry: row `row` of every tile.
template <int TM>
struct TileRows {
  const int row = threadIdx.x % 32 / 4;
  const char* address[TM];

  __device__ __forceinline__ TileRows(const Table& table, const int64_t* entry) {
#pragma unroll
    for (int t = 0; t < TM; ++t) address[t] = Rows<1>(table, entry, blockIdx.y, kTile * t + row).row[0];
  }
};

// Adds the products of a block's share of the columns, every element of which one lane reads. rows_of(entry) gives what
// reads the rows of a segment; a lane reads U vectors of each of its rows before it multiplies.
template <class T, int U, int THREADS, int TM, class RowsOf>
__device__ __forceinline__ void add_tile_share(const Table& table, TileProducts<TM>& products, RowsOf rows_of) {
  constexpr int V = Vector<T>::size;
  constexpr int kStep = THREADS / 32 * 4;  // vectors, or columns, that a block's lanes take at a time
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for_pieces(table, share(table.chunks, gridDim.x, blockIdx.x), share(table.chunks, gridDim.x, blockIdx.x + 1),
             kChunkWidth<T>, [&](const Piece& piece) {
               const auto rows = rows_of(piece.entry);
               // all lanes of a warp go round together: a tensor core's step is theirs in common
               const int64_t end = piece.vectors_end(V);
               for (int64_t base = piece.first / V + warp * 4; base < end; base += U * kStep) {
                 Vector<T> v[U][TM];
                 rows.read(v, base + lane % 4, kStep, end);
#pragma unroll
                 for (int u = 0; u < U; ++u)
#pragma unroll
                   for (int e = 0; e < V; ++e) {
                     double x[TM];
#pragma unroll
                     for (int t = 0; t < TM; ++t) x[t] = widen(v[u][t].x[e]);
                     products.add(x);
                   }
               }
               for (int64_t base = piece.columns_begin(V) + warp * 4; base < piece.last; base += kStep) {
                 double x[TM];
#pragma unroll
                 for (int t = 0; t < TM; ++t) x[t] = 0;
                 if (base + lane % 4 < piece.last) rows.read_column(x, base + lane % 4);
                 products.add(x);
               }
             });
}

// Ends a first launch: the next one may begin, and the warps' sums, added up in a fixed order, go to the block's place
// in the partials.
template <int THREADS, int TM>
__device__ __forceinline__ void put_tile_partial(const TileProducts<TM>& products, int m, double* partials) {
  constexpr int kWarps = THREADS / 32;
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
  __shared__ double sums[kWarps][kTile * kTile];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  double* out = partials + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * triangle(m);
  int k = 0;
#pragma unroll
  for (int a = 0; a < TM; ++a)
#pragma unroll
    for (int b = a; b < TM; ++b, ++k) {  // a pair of tiles at a time
      sums[warp][2 * lane] = products.sum[k][0];
      sums[warp][2 * lane + 1] = products.sum[k][1];
      __syncthreads();
      if (threadIdx.x < kTile * kTile) {
        double s = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) s += sums[w][threadIdx.x];
        const int i = kTile * a + threadIdx.x / kTile, j = kTile * b + threadIdx.x % kTile;
        if (i <= j && j < m) out[packed(i, j, m)] = s;
      }
      __syncthreads();
    }
}

}  // namespace fastconfig

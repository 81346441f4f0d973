// A block's share of the Gram matrix of many rows: A A^T on the float64 tensor cores, straight from global memory.
//
// In mma.m8n8k4 the fragment of A (row lane / 4, k lane % 4) and that of B (k lane % 4, column lane / 4) are the same
// registers for A A^T, and k may be permuted at will: one vector of 16 bytes a lane and tile of 8 rows gives as many
// steps of four columns as it has elements, and no shared memory is needed. mma.m16n8k4, which Hopper's tensor cores
// need for their full rate, takes the registers of any two tiles as the 16 rows of A.
#pragma once

#include "launch.hpp"
#include "products.cuh"

namespace fastconfig {

constexpr int kTile = 8;  // rows

// c += A B for a tile of A.
[[maybe_unused]] __device__ __forceinline__ void multiply_add(double (&c)[2], double a, double b) {
#if defined(FASTCONFIG_EMULATED)
  emulator::dmma(c, a, b);
#elif __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(c[0]), "+d"(c[1])
      : "d"(a), "d"(b));
#endif
}

// The same for two tiles, a and below, of A.
[[maybe_unused]] __device__ __forceinline__ void multiply_add(double (&c)[2][2], double a, double below, double b) {
#if defined(FASTCONFIG_EMULATED)
  emulator::dmma(c, a, below, b);
#elif __CUDA_ARCH__ >= 900
  asm("mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+d"(c[0][0]), "+d"(c[0][1]), "+d"(c[1][0]), "+d"(c[1][1])
      : "d"(a), "d"(below), "d"(b));
#else
  multiply_add(c[0], a, b);
  multiply_add(c[1], below, b);
#endif
}

// Products of all pairs of TM tiles, a by b with a <= b; a lane holds two elements of each. Tiles 2 p and 2 p + 1 lie
// in neighbouring registers and are multiplied by tile 2 p + 1 and by all after it at once; 2 p by itself is left over.
template <int TM>
struct TileProducts {
  static constexpr int kPairs = TM / 2 * ((TM + 1) / 2), kAlone = (TM + 1) / 2;
  double pair[kPairs + (kPairs == 0)][2][2], alone[kAlone][2];

  __device__ __forceinline__ TileProducts() {
#pragma unroll
    for (int k = 0; k < kPairs; ++k) pair[k][0][0] = pair[k][0][1] = pair[k][1][0] = pair[k][1][1] = 0;
#pragma unroll
    for (int k = 0; k < kAlone; ++k) alone[k][0] = alone[k][1] = 0;
  }

  // visit(k, a, b): tiles a and a + 1 by tile b are pair[k].
  template <class Visit>
  static __device__ __forceinline__ void for_pairs(Visit visit) {
    int k = 0;
#pragma unroll
    for (int a = 0; a + 1 < TM; a += 2)
#pragma unroll
      for (int b = a + 1; b < TM; ++b, ++k) visit(k, a, b);
  }

  __device__ __forceinline__ void add(const double (&x)[TM]) {
    for_pairs([&](int k, int a, int b) { multiply_add(pair[k], x[a], x[a + 1], x[b]); });
#pragma unroll
    for (int k = 0; k < kAlone; ++k) multiply_add(alone[k], x[2 * k], x[2 * k]);
  }
};

// What a lane reads of the rows of an entry: row `row` of every tile.
template <int TM>
struct TileRows {
  const int row = threadIdx.x % 32 / 4;
  const char* address[TM];

  __device__ __forceinline__ TileRows(const Table& table, const Entry& entry) {
#pragma unroll
    for (int t = 0; t < TM; ++t) address[t] = Rows<1>(table, entry, blockIdx.y, kTile * t + row).row[0];
  }
};

// Adds the products of a block's share of the columns, every element of which one lane reads. rows_of(entry) gives what
// reads the rows of a segment; a lane reads U vectors of each of its rows before it multiplies, side by side with those
// of the three others that have the row: the loads of a warp fill whole lines.
template <class T, int U, int THREADS, int TM, class RowsOf>
__device__ __forceinline__ void add_tile_share(const Table& table, TileProducts<TM>& products, RowsOf rows_of) {
  constexpr int V = Vector<T>::size;
  constexpr int kStep = THREADS / 32 * 4;  // vectors, or columns, that a block's lanes take at a time
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Share own(table, gridDim.x, blockIdx.x);
  for_pieces(table, own.first, own.last,
             kChunkWidth<T>, [&](const Piece& piece) {
               const auto rows = rows_of(piece.entry);
               // all lanes of a warp go round together: a tensor core's step is theirs in common
               int64_t singles = piece.columns_begin(V);
               if constexpr (rows.kApart) {
                 constexpr int kSteps = TM <= 2 ? 8 : sizeof(T) == 8 ? (TM <= 6 ? 3 : 2) : TM <= 6 ? 6 : 4;
                 if (piece.apart) {
                   for (int64_t base = singles + warp * 4 * kSteps; base < piece.last; base += kSteps * kStep) {
                     T raw[kSteps][TM];
                     rows.read_apart(raw, base + lane % 4, piece.last);
#pragma unroll
                     for (int s = 0; s < kSteps; ++s) {
                       double x[TM];
#pragma unroll
                       for (int t = 0; t < TM; ++t) x[t] = widen(raw[s][t]);
                       products.add(x);
                     }
                   }
                   singles = piece.last;
                 }
               }
               for (int64_t base = singles + warp * 4; base < piece.last; base += kStep) {
                 double x[TM];
#pragma unroll
                 for (int t = 0; t < TM; ++t) x[t] = 0;
                 if (base + lane % 4 < piece.last) rows.read_column(x, base + lane % 4);
                 products.add(x);
               }
               const int64_t end = piece.vectors_end(V);
               for (int64_t base = piece.first / V + warp * 4 * U; base < end; base += U * kStep) {
                 Vector<T> v[U][TM];
                 rows.read(v, base + lane % 4, 4, end);
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
             }, own.begins);
}

// Ends a first launch: the next one may begin, and the warps' sums, added up in a fixed order, go to the block's place
// in the partials.
template <int THREADS, int TM>
__device__ __forceinline__ void put_tile_partial(const TileProducts<TM>& products, int m, double* partials) {
  constexpr int kWarps = THREADS / 32, kEntries = kTile * kTile, kTiles = TM > 1 ? 2 : 1, kTurns = kTiles;
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
  __shared__ double sums[kTurns][kWarps][kTiles][kEntries];  // by turns, so that one barrier a turn is enough
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int half = threadIdx.x / kEntries, row = threadIdx.x % kEntries / kTile, column = threadIdx.x % kTile;
  double* out = partials + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * triangle(m);
  int turn = 0;
  // a tile, and the one below it
  const auto put = [&](const auto& tiles, int count, int a, int b) {
#pragma unroll
    for (int t = 0; t < count; ++t)
#pragma unroll
      for (int e = 0; e < 2; ++e) sums[turn % kTurns][warp][t][2 * lane + e] = tiles[t][e];
    __syncthreads();
    if (half < count) {
      double s = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) s += sums[turn % kTurns][w][half][threadIdx.x % kEntries];
      const int i = kTile * (a + half) + row, j = kTile * b + column;
      if (i <= j && j < m) out[packed(i, j, m)] = s;
    }
    ++turn;
  };
  products.for_pairs([&](int k, int a, int b) { put(products.pair[k], 2, a, b); });
#pragma unroll
  for (int k = 0; k < (TM + 1) / 2; ++k) {
    const double tile[1][2] = {{products.alone[k][0], products.alone[k][1]}};
    put(tile, 1, 2 * k, 2 * k);
  }
}

}  // namespace fastconfig

// First launch for many gradients: A A^T on the float64 tensor cores, straight from global memory.
//
// In mma.m8n8k4 the fragment of A (row lane / 4, k lane % 4) and that of B (k lane % 4, column lane / 4) are the same
// registers for A A^T, and k may be permuted at will: one vector of 16 bytes a lane and tile of 8 rows gives as many
// steps of four columns as it has elements, and no shared memory is needed.
#include "launch.hpp"
#include "products.cuh"

namespace fastconfig {
namespace {

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

template <int TM>
constexpr int kUnrolled = TM == 1 ? 4 : TM <= 4 ? 2 : 1;

template <class T, int TM>
__global__ void __launch_bounds__(tile_threads(kTile* TM), 1)
    gram_tiles(const __grid_constant__ Table table, double* partials) {
  if constexpr (kFloat64) {
    constexpr int U = kUnrolled<TM>, V = Vector<T>::size, kWarps = tile_threads(kTile * TM) / 32;
    constexpr int kStep = kWarps * 4;  // vectors, or columns, that a block's lanes take at a time
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4;
    const int64_t problem = blockIdx.y;
    TileProducts<TM> products;
    for_pieces(
        table, share(table.chunks, gridDim.x, blockIdx.x), share(table.chunks, gridDim.x, blockIdx.x + 1),
        kChunkWidth<T>, [&](const Piece& piece) {
          const char* rows[TM];
#pragma unroll
          for (int t = 0; t < TM; ++t) rows[t] = Rows<1>(table, piece.entry, problem, kTile * t + row).row[0];
          // all lanes of a warp go round together: a tensor core's step is theirs in common
          const int64_t end = piece.vectors_end(V);
          for (int64_t base = piece.first / V + warp * 4; base < end; base += U * kStep) {
            Vector<T> v[U][TM];
#pragma unroll
            for (int u = 0; u < U; ++u)
#pragma unroll
              for (int t = 0; t < TM; ++t) {
                const int64_t index = base + u * kStep + lane % 4;
                v[u][t] = rows[t] != nullptr && index < end ? load<T, false>(rows[t], index) : zeros<T>();
              }
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
            const int64_t column = base + lane % 4;
            double x[TM];
#pragma unroll
            for (int t = 0; t < TM; ++t) {
              const int i = kTile * t + row;
              const bool exists = rows[t] != nullptr && column < piece.last;
              x[t] = exists ? widen(reinterpret_cast<const T*>(rows[t])[column * table.step(i)]) : Real<T>(0);
            }
            products.add(x);
          }
        });
#if __CUDA_ARCH__ >= 900
    cudaTriggerProgrammaticLaunchCompletion();
#endif
    // the warps' sums in a fixed order, a pair of tiles at a time
    __shared__ double sums[kWarps][kTile * kTile];
    double* out = partials + (problem * gridDim.x + blockIdx.x) * triangle(table.m);
    int k = 0;
#pragma unroll
    for (int a = 0; a < TM; ++a)
#pragma unroll
      for (int b = a; b < TM; ++b, ++k) {
        sums[warp][2 * lane] = products.sum[k][0];
        sums[warp][2 * lane + 1] = products.sum[k][1];
        __syncthreads();
        if (threadIdx.x < kTile * kTile) {
          double s = 0;
#pragma unroll
          for (int w = 0; w < kWarps; ++w) s += sums[w][threadIdx.x];
          const int i = kTile * a + threadIdx.x / kTile, j = kTile * b + threadIdx.x % kTile;
          if (i <= j && j < table.m) out[packed(i, j, table.m)] = s;
        }
        __syncthreads();
      }
  }
}

template <class T>
void launch_tiles(const Context& context, const Plan& plan, const Table& table, int64_t problems, double* partials) {
  const auto run = [&](auto tiles) {
    constexpr int TM = decltype(tiles)::value;
    launch(context, gram_tiles<T, TM>, plan.blocks, problems, tile_threads(kTile * TM), Mode::ordinary, table,
           partials);
  };
  switch (plan.rows / kTile) {
    case 1: return run(Number<1>{});
    case 2: return run(Number<2>{});
    case 3: return run(Number<3>{});
    case 4: return run(Number<4>{});
    case 6: return run(Number<6>{});
    default: return run(Number<8>{});
  }
}

}  // namespace

void launch_gram_tiles(const Context& context, const Plan& plan, const Table& table, int64_t problems,
                       double* partials) {
  with_type(context.kind,
            [&](auto type) { launch_tiles<typename decltype(type)::type>(context, plan, table, problems, partials); });
}

}  // namespace fastconfig

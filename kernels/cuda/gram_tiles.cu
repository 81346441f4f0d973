// First launch for many gradients, on the float64 tensor cores.
#include "gram_tiles.cuh"

namespace fastconfig {
namespace {

template <int TM>
constexpr int kUnrolled = TM <= 2 ? 4 : TM <= 6 ? 2 : 1;  // vectors of a row that a lane loads before it multiplies

// Rows as they lie in memory.
template <class T, int TM>
struct GivenTiles {
  static constexpr bool kApart = true;  // as GivenRows
  const Table& table;
  TileRows<TM> rows;

  template <int U>
  __device__ __forceinline__ void read(Vector<T> (&v)[U][TM], int64_t index, int step, int64_t end) const {
    const int left = clipped(end - index);
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int t = 0; t < TM; ++t)
        v[u][t] = load<T, Read::kept>(rows.address[t] != nullptr && u * step < left, rows.address[t], index + u * step);
  }

  // STEPS columns, 4 apart from each other.
  template <int STEPS>
  __device__ __forceinline__ void read_apart(T (&x)[STEPS][TM], int64_t column, int64_t end) const {
    const int left = clipped(end - column);
#pragma unroll
    for (int s = 0; s < STEPS; ++s)
#pragma unroll
      for (int t = 0; t < TM; ++t)
        x[s][t] =
            load_element<T, false>(rows.address[t] != nullptr && 4 * s < left, rows.address[t], column + 4 * s);
  }

  __device__ __forceinline__ void read_column(double (&x)[TM], int64_t column) const {
#pragma unroll
    for (int t = 0; t < TM; ++t)
      if (rows.address[t] != nullptr)
        x[t] = widen(reinterpret_cast<const T*>(rows.address[t])[column * table.step(kTile * t + rows.row)]);
  }
};

template <class T, int TM>
__global__ void __launch_bounds__(tile_threads(kTile* TM), 1)
    gram_tiles(const __grid_constant__ Table table, double* partials) {
  if constexpr (kFloat64) {
    constexpr int kThreads = tile_threads(kTile * TM);
    TileProducts<TM> products;
    add_tile_share<T, kUnrolled<TM>, kThreads>(
        table, products, [&](const Entry& entry) { return GivenTiles<T, TM>{table, TileRows<TM>(table, entry)}; });
    put_tile_partial<kThreads>(products, table.m, partials);
  }
}

}  // namespace

void launch_gram_tiles(const Context& context, const Plan& plan, const Table& table, int64_t problems,
                       double* partials) {
  with_type(context.kind, [&](auto type) {
    using T = typename decltype(type)::type;
    with_tiles(plan.rows / kTile, [&](auto tiles) {
      constexpr int TM = decltype(tiles)::value;
      launch(context, gram_tiles<T, TM>, plan.blocks, problems, tile_threads(kTile * TM), Mode::ordinary, table,
             partials);
    });
  });
}

}  // namespace fastconfig

// First pass of a momentum step for many gradients, on the float64 tensor cores: as momentum.cu.
#include "gram_tiles.cuh"
#include "momentum.cuh"

namespace fastconfig {
namespace {

template <int TM>
constexpr int kUnrolled = TM <= 3 ? 2 : 1;  // vectors of a row that a lane loads before it multiplies

// Momenta that are written as they are read, each by the lanes that have it.
template <class T, int TM>
struct MovedTiles {
  static constexpr bool kApart = false;
  static constexpr int V = Vector<T>::size;
  const Table& table;
  const Incoming& given;
  TileRows<TM> rows;
  GradientRows gradients;
  Average<T> average;
  int number[TM];  // of the gradient of a lane's row in a tile, or -1

  __device__ __forceinline__ MovedTiles(const Table& all, const Entry& entry, const Incoming& incoming)
      : table(all),
        given(incoming),
        rows(all, entry),
        gradients(all, entry),
        average(incoming.beta.first) {
#pragma unroll
    for (int t = 0; t < TM; ++t) {
      number[t] = -1;
      for (int j = 0; j < given.count && rows.address[t] != nullptr; ++j)
        if (given.chosen[j] == kTile * t + rows.row) number[t] = j;
    }
  }

  template <int U>
  __device__ __forceinline__ void read(Vector<T> (&v)[U][TM], int64_t index, int apart, int64_t end) const {
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int t = 0; t < TM; ++t) {
        const int64_t place = index + u * apart;
        v[u][t] = load<T, Read::written>(rows.address[t] != nullptr && place < end, rows.address[t], place);
      }
#pragma unroll
    for (int t = 0; t < TM; ++t) {
      if (number[t] < 0 || index >= end) continue;
      Wide<T> gradient[U][V];
      gradients.read(number[t], given.kind, gradient, index, apart, end);
#pragma unroll
      for (int u = 0; u < U; ++u)
        if (index + u * apart < end) {
          average(v[u][t], gradient[u]);
          store_momentum(rows.address[t], index + u * apart, v[u][t]);
        }
    }
  }

  __device__ __forceinline__ void read_column(double (&x)[TM], int64_t column) const {
#pragma unroll
    for (int t = 0; t < TM; ++t) {
      if (rows.address[t] == nullptr) continue;
      T& element = reinterpret_cast<T*>(const_cast<char*>(rows.address[t]))[column];
      if (number[t] >= 0)
        element = average(element, gradients.template element<Wide<T>>(number[t], given.kind, column, table));
      x[t] = element;
    }
  }
};

template <class T, int TM>
__global__ void __launch_bounds__(moved_tile_threads(kTile* TM), 1)
    accumulate_tiles(const __grid_constant__ Table table, double* partials, const __grid_constant__ Incoming given) {
  if constexpr (kFloat64) {
    constexpr int kThreads = moved_tile_threads(kTile * TM);
    TileProducts<TM> products;
    tick(given, table.m);
    add_tile_share<T, kUnrolled<TM>, kThreads>(
        table, products, [&](const Entry& entry) { return MovedTiles<T, TM>(table, entry, given); });
    put_tile_partial<kThreads>(products, table.m, partials);
  }
}

}  // namespace

void launch_accumulate_tiles(const Context& context, const Plan& plan, const Table& table, double* partials,
                             const Incoming& given) {
  with_state(context.kind, [&](auto type) {
    using T = typename decltype(type)::type;
    with_moved_tiles(plan.rows / kTile, [&](auto tiles) {
      constexpr int TM = decltype(tiles)::value;
      launch(context, accumulate_tiles<T, TM>, plan.blocks, 1, moved_tile_threads(kTile * TM), Mode::ordinary, table,
             partials, given);
    });
  });
}

}  // namespace fastconfig

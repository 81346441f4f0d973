// The update in one cooperative launch: the rows stay in registers from the products to the result.
#include <cooperative_groups.h>

#include "launch.hpp"
#include "products.cuh"
#include "stage.cuh"

namespace fastconfig {
namespace {

// What a slot holds of a row, element by element: at the end of a segment, or off multiples of 16 bytes.
template <class T>
__device__ __forceinline__ Vector<T> gather(const char* row, const Slot& slot, int64_t step, int count) {
  Vector<T> v;
#pragma unroll
  for (int e = 0; e < Vector<T>::size; ++e)
    v.x[e] = load_element<T, true>(e < count, row, (slot.column + e * slot.spread) * step);
  return v;
}

template <class T, int M, int KEPT, Weight WEIGHT>
__global__ void __launch_bounds__(kept_threads, 1)
    whole(const __grid_constant__ Table table, double* partials, const __grid_constant__ Stage stage) {
  constexpr int V = Vector<T>::size, kThreads = kept_threads;
  __shared__ StageMemory<M, WEIGHT> memory;
  const int64_t begin = share(table.chunks, gridDim.x, blockIdx.x), end = share(table.chunks, gridDim.x, blockIdx.x + 1);
  const int m = table.m;
  Vector<T> v[KEPT][M];
#pragma unroll
  for (int q = 0; q < KEPT; ++q) {
    const Slot slot(table, begin, end, q, threadIdx.x, kThreads, V);
    const int count = slot.count(V);
    const Rows<M> rows(table, slot.entry, 0);
    const bool at_once = slot.whole && count == V;
#pragma unroll
    for (int i = 0; i < M; ++i) {
      v[q][i] = load<T, Read::last>(rows.row[i] != nullptr && at_once, rows.row[i], slot.column / V);
      if (rows.row[i] != nullptr && !at_once && count > 0)
        v[q][i] = gather<T>(rows.row[i], slot, table.step(i), count);
    }
  }
  Products<M> products;
#pragma unroll
  for (int q = 0; q < KEPT; ++q) {
    if (q > 0 && begin + q * kThreads / kChunkVectors >= end) continue;  // nothing of any thread
    Vector<T> one[1][M];
#pragma unroll
    for (int i = 0; i < M; ++i) one[0][i] = v[q][i];
    products.add(one);
  }
  put_block_sum<M, kThreads>(products, m, partials + blockIdx.x * static_cast<int64_t>(triangle(m)));
  cooperative_groups::this_grid().sync();
  solve_in_block<M, kThreads>(memory, partials, gridDim.x, m, 0, stage, nullptr);
#pragma unroll
  for (int q = 0; q < KEPT; ++q) {
    const Slot slot(table, begin, end, q, threadIdx.x, kThreads, V);
    const int count = slot.count(V);
    if (count == 0) continue;
    Vector<T> result;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      double sum = 0;
#pragma unroll
      for (int i = 0; i < M; ++i) sum = fma(memory.c[i], static_cast<double>(widen(v[q][i].x[e])), sum);
      round_to(result.x[e], sum);
    }
    char* out = result_of(table, slot.entry, 0);
    if (slot.whole && count == V) {
      store(out, slot.column / V, result);
    } else {
#pragma unroll
      for (int e = 0; e < V; ++e)
        if (e < count) reinterpret_cast<T*>(out)[slot.column + e * slot.spread] = result.x[e];
    }
  }
}

template <class T, int M, Weight WEIGHT>
void launch_kept(const Context& context, const Plan& plan, const Table& table, double* partials, const Stage& stage) {
  const auto run = [&](auto kept) {
    launch(context, whole<T, M, decltype(kept)::value, WEIGHT>, plan.blocks, 1, kept_threads, Mode::cooperative, table,
           partials, stage);
  };
  plan.kept == 1 ? run(Number<1>{}) : run(Number<most_kept(M, sizeof(T))>{});
}

}  // namespace

void launch_whole(const Context& context, const Plan& plan, const Table& table, double* partials, const Stage& stage) {
  with_type(context.kind, [&](auto type) {
    using T = typename decltype(type)::type;
    with_stage_rows<kSmallRows>(stage, table.m, [&](auto rows, auto weight) {
      launch_kept<T, decltype(rows)::value, decltype(weight)::value>(context, plan, table, partials, stage);
    });
  });
}

}  // namespace fastconfig

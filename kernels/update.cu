// The update in one cooperative launch: the rows stay in registers, and then in shared memory, from the products to the
// result.
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

// A thread's vectors in shared memory, of slots behind those in registers.
template <class T, int M>
struct Parked {
  Vector<T>* first = static_cast<Vector<T>*>(dynamic_shared()) + threadIdx.x;

  __device__ __forceinline__ Vector<T>* place(int q, int i) const { return first + (q * M + i) * kept_threads; }

  __device__ __forceinline__ void send(const Table& table, const Slot& slot, int q) const {
    const int count = slot.count(Vector<T>::size);
    const Rows<M> rows(table, slot.entry, 0);
#pragma unroll
    for (int i = 0; i < M; ++i) {
      if (rows.row[i] != nullptr && count == Vector<T>::size)
        copy_ahead(place(q, i), rows.row[i], slot.column / Vector<T>::size);
      else
        *place(q, i) = gather<T>(rows.row[i], slot, 1, rows.row[i] == nullptr ? 0 : count);
    }
  }

  __device__ __forceinline__ void get(int q, Vector<T> (&v)[M]) const {
#pragma unroll
    for (int i = 0; i < M; ++i) v[i] = *place(q, i);
  }

  __device__ __forceinline__ void add(Products<M>& products, int from, int to) const {
#pragma unroll 2
    for (int q = from; q < to; ++q) {
      Vector<T> one[1][M];
      get(q, one[0]);
      products.add(one);
    }
  }
};

// The result of a slot.
template <class T, int M>
__device__ __forceinline__ void put(const Table& table, const Slot& slot, const Vector<T> (&v)[M], const double* c) {
  constexpr int V = Vector<T>::size;
  const int count = slot.count(V);
  if (count == 0) return;
  Vector<T> result;
#pragma unroll
  for (int e = 0; e < V; ++e) {
    double sum = 0;
#pragma unroll
    for (int i = 0; i < M; ++i) sum = fma(c[i], static_cast<double>(widen(v[i].x[e])), sum);
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

// parked: vectors of a row that a thread keeps in shared memory, where MORE do not fit into registers.
template <class T, int M, int KEPT, bool MORE>
__global__ void __launch_bounds__(kept_threads, 1)
    whole(const __grid_constant__ Table table, double* partials, const __grid_constant__ Stage stage, int parked) {
  constexpr int V = Vector<T>::size, kThreads = kept_threads;
  __shared__ StageMemory<M> memory;
  const int64_t begin = share(table.chunks, gridDim.x, blockIdx.x), end = share(table.chunks, gridDim.x, blockIdx.x + 1);
  const int m = table.m;
  const auto slot_of = [&](int q) { return Slot(table, begin, end, q, threadIdx.x, kThreads, V); };
  Vector<T> v[KEPT][M];
#pragma unroll
  for (int q = 0; q < KEPT; ++q) {
    const Slot slot = slot_of(q);
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
  const int half = parked / 2;  // is multiplied while the other half is on its way
  if constexpr (MORE) {
    const Parked<T, M> shared;
    for (int q = 0; q < parked; ++q) {
      if (q == half) sent();
      shared.send(table, slot_of(KEPT + q), q);
    }
    sent();
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
  if constexpr (MORE) {
    const Parked<T, M> shared;
    arrived<1>();
    shared.add(products, 0, half);
    arrived<0>();
    shared.add(products, half, parked);
  }
  put_block_sum<M, kThreads>(products, m, partials + blockIdx.x * static_cast<int64_t>(triangle(m)));
  cooperative_groups::this_grid().sync();
  solve_in_block<M, kThreads>(memory, partials, gridDim.x, m, 0, stage, nullptr);
#pragma unroll
  for (int q = 0; q < KEPT; ++q) put<T, M>(table, slot_of(q), v[q], memory.c);
  if constexpr (MORE) {
    const Parked<T, M> shared;
#pragma unroll 2
    for (int q = 0; q < parked; ++q) {
      Vector<T> one[M];
      shared.get(q, one);
      put<T, M>(table, slot_of(KEPT + q), one, memory.c);
    }
  }
}

template <class T>
void launch_rows(const Context& context, const Plan& plan, const Table& table, double* partials, const Stage& stage) {
  const auto run = [&](auto rows, auto kept, auto more) {
    constexpr int M = decltype(rows)::value;
    launch_shared(context, whole<T, M, decltype(kept)::value, decltype(more)::value != 0>, plan.blocks, 1,
                  kept_threads, plan.parked * parked_bytes(M), Mode::cooperative, table, partials, stage, plan.parked);
  };
  const auto run_kept = [&](auto rows) {
    const Number<most_kept(decltype(rows)::value, sizeof(T))> most;
    if constexpr (sizeof(T) >= 4)
      if (plan.parked > 0) return run(rows, most, Number<1>{});
    return plan.kept == 1 ? run(rows, Number<1>{}, Number<0>{}) : run(rows, most, Number<0>{});
  };
  with_small_rows(plan.rows, run_kept);
}

}  // namespace

void launch_whole(const Context& context, const Plan& plan, const Table& table, double* partials, const Stage& stage) {
  with_type(context.kind,
            [&](auto type) { launch_rows<typename decltype(type)::type>(context, plan, table, partials, stage); });
}

}  // namespace fastconfig

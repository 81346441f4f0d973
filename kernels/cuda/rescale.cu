// Second pass of a momentum step: the merged momentum u, the second moment of what u would have taken for a gradient,
// and u over its root.
#include "combine.cuh"
#include "momentum.cuh"

namespace fastconfig {
namespace {

constexpr double kEpsilon = 1e-8;  // beside the root, as in fastconfig/momentum/step.py

// What all threads of a block need of the counters.
struct Factors {
  double first;  // 1 - beta_1^t
  double root;   // 1 / sqrt(1 - beta_2^t)
};

// In shared memory, at the next barrier.
__device__ __forceinline__ void prepare(Factors& factors, const Outgoing& wanted, int m) {
  if (threadIdx.x == 0) factors.first = wanted.decayed[m];
  if (threadIdx.x == 32) factors.root = 1 / sqrt(wanted.decayed[m + 1]);
}

// Takes the sums u of a segment; the numbers of the step stay in registers.
template <class T>
struct Rescaled {
  static constexpr bool kApart = false;
  static constexpr int V = Vector<T>::size;
  struct Ahead {
    Vector<T> second, fake;
  };
  char *out, *second, *fake;
  int kind;
  Average<T> average;
  Wide<T> first, ratio;
  T root;

  __device__ __forceinline__ Rescaled(const Table& table, const Entry& entry, const Outgoing& wanted,
                                      const Factors& factors)
      : out(result_of(table, entry, 0)),
        second(reinterpret_cast<char*>(entry[3 + table.m])),
        fake(reinterpret_cast<char*>(entry[4 + table.m])),
        kind(wanted.kind),
        average(wanted.beta.second),
        first(static_cast<Wide<T>>(factors.first)),
        ratio(static_cast<Wide<T>>(wanted.beta.first / (1 - wanted.beta.first))),
        root(static_cast<T>(factors.root)) {}

  // fake_t = first u; gradient = (fake_t - beta_1 fake_(t-1)) / (1 - beta_1), in a form that rounding beta_1 does not
  // bias.
  __device__ __forceinline__ T step(double u, T& square, T& merged) const {
    const Wide<T> now = static_cast<Wide<T>>(u) * first, before = merged;
    const Wide<T> gradient = fma(now - before, ratio, now);
    merged = static_cast<T>(now);
    square = average(square, gradient * gradient);
    return static_cast<T>(u) / (sqrt(square) * root + static_cast<T>(kEpsilon));
  }

  __device__ __forceinline__ Ahead ahead(int64_t index) const {
    return {load<T, Read::last>(true, second, index), load<T, Read::last>(true, fake, index)};
  }

  __device__ __forceinline__ void put(int64_t index, const double (&sum)[V], Ahead state) const {
    T result[V];
#pragma unroll
    for (int e = 0; e < V; ++e) result[e] = step(sum[e], state.second.x[e], state.fake.x[e]);
    store(second, index, state.second);
    store(fake, index, state.fake);
    with_kind(kind, [&](auto type) { store_beside<typename decltype(type)::type>(out, index, result); });
  }

  __device__ __forceinline__ void put_column(int64_t column, double sum) const {
    const T result = step(sum, reinterpret_cast<T*>(second)[column], reinterpret_cast<T*>(fake)[column]);
    with_kind(kind, [&](auto type) {
      round_to(reinterpret_cast<typename decltype(type)::type*>(out)[column], result);
    });
  }
};

template <class T>
__global__ void __launch_bounds__(combine_threads, 1)
    rescale(const __grid_constant__ Table table, const double* coefficients, const __grid_constant__ Outgoing wanted) {
  __shared__ double c[kMostRows];
  __shared__ Factors factors;
  const int i = threadIdx.x;
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  prepare(factors, wanted, table.m);
  if (i < kMostRows)
    c[i] = i >= table.m ? 0 : coefficients == nullptr ? 1 : coefficients[i] / wanted.decayed[i];
  __syncthreads();
  combine_share<T, kGroup, false>(
      table, c, [&](const Entry& entry) { return Rescaled<T>(table, entry, wanted, factors); });
}

template <class T, int M, Weight WEIGHT>
__global__ void __launch_bounds__(combine_threads, 1)
    finish_momentum(const __grid_constant__ Table table, const double* partials, int programs,
                    const __grid_constant__ Stage stage, const __grid_constant__ Outgoing wanted) {
  __shared__ StageMemory<M, WEIGHT> memory;
  __shared__ Factors factors;
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  prepare(factors, wanted, table.m);
  solve_in_block<M, combine_threads>(memory, partials, programs, table.m, 0, stage, wanted.decayed);
  combine_share<T, kGroupOf<M>, (M <= kSmallRows)>(
      table, memory.c, [&](const Entry& entry) { return Rescaled<T>(table, entry, wanted, factors); });
}

}  // namespace

void launch_rescale(const Context& context, const Plan& plan, const Table& table, const double* c,
                    const Outgoing& wanted) {
  with_state(context.kind, [&](auto type) {
    launch(context, rescale<typename decltype(type)::type>, plan.blocks, 1, combine_threads, Mode::following, table, c,
           wanted);
  });
}

void launch_finish_momentum(const Context& context, const Plan& plan, const Table& table, int programs,
                            const double* partials, const Stage& stage, const Outgoing& wanted) {
  with_state(context.kind, [&](auto type) {
    using T = typename decltype(type)::type;
    with_stage_rows<kSolvedRows>(stage, table.m, [&](auto rows, auto weight) {
      launch(context, finish_momentum<T, decltype(rows)::value, decltype(weight)::value>, plan.blocks, 1,
             combine_threads, Mode::following, table, partials, programs, stage, wanted);
    });
  });
}

}  // namespace fastconfig

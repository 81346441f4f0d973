// First pass of a momentum step: momenta in place, and the Gram matrix of what was rounded to the state's elements.
#include "gram.cuh"
#include "momentum.cuh"

namespace fastconfig {
namespace {

// Vectors of a row that a thread loads at once: of M rows, or of one after the other.
template <int M>
constexpr int kUnrolled = M <= 4 ? 2 : 1;
constexpr int kUnrolledAlone = 4;

// Momenta that are written as they are read.
template <class T, int M>
struct MovedRows {
  static constexpr bool kApart = false;
  static constexpr int V = Vector<T>::size;
  const Table& table;
  const Incoming& given;
  Rows<M> rows;
  GradientRows gradients;
  Average<T> average;

  __device__ __forceinline__ MovedRows(const Table& all, const Entry& entry, const Incoming& incoming)
      : table(all),
        given(incoming),
        rows(all, entry, 0),
        gradients(all, entry),
        average(incoming.beta.first) {}

  template <int U>
  __device__ __forceinline__ void read(Vector<T> (&v)[U][M], int64_t index, int step, int64_t end) const {
    const int left = clipped(end - index);
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int i = 0; i < M; ++i)
        v[u][i] = load<T, Read::written>(rows.row[i] != nullptr && (u == 0 || u * step < left), rows.row[i],
                                         index + u * step);
    for (int j = 0; j < given.count; ++j) {
      const int row = given.chosen[j];
      Wide<T> gradient[U][V];
      gradients.read(j, given.kind, gradient, index, step, end);
#pragma unroll
      for (int i = 0; i < M; ++i) {
        if (i != row || rows.row[i] == nullptr) continue;
#pragma unroll
        for (int u = 0; u < U; ++u) {
          if (u > 0 && u * step >= left) continue;
          average(v[u][i], gradient[u]);
          store_momentum(rows.row[i], index + u * step, v[u][i]);
        }
      }
    }
  }

  __device__ __forceinline__ void read_column(Real<T> (&x)[M], int64_t column) const {
#pragma unroll
    for (int i = 0; i < M; ++i) x[i] = rows.row[i] == nullptr ? T(0) : reinterpret_cast<const T*>(rows.row[i])[column];
    for (int j = 0; j < given.count; ++j) {
      const int row = given.chosen[j];
      const Wide<T> gradient = gradients.template element<Wide<T>>(j, given.kind, column, table);
#pragma unroll
      for (int i = 0; i < M; ++i) {
        if (i != row || rows.row[i] == nullptr) continue;
        x[i] = average(x[i], gradient);
        reinterpret_cast<T*>(const_cast<char*>(rows.row[i]))[column] = x[i];
      }
    }
  }
};

template <class T, int M>
__global__ void __launch_bounds__(moved_threads(M), 1)
    accumulate_gram(const __grid_constant__ Table table, double* partials, const __grid_constant__ Incoming given) {
  Products<M> products;
  tick(given, table.m);
  add_share<T, kUnrolled<M>, moved_threads(M)>(
      table, products, [&](const Entry& entry) { return MovedRows<T, M>(table, entry, given); });
  put_partial<moved_threads(M)>(products, table.m, partials);
}

// U vectors of a momentum.
template <int U, class T>
__device__ __forceinline__ void move_vectors(const char* row, const GradientRows& gradients, int j, int kind,
                                             int64_t index, const Average<T>& average) {
  constexpr int V = Vector<T>::size;
  Vector<T> v[U];
#pragma unroll
  for (int u = 0; u < U; ++u) v[u] = load<T, Read::written>(true, row, index + u * combine_threads);
  Wide<T> gradient[U][V];
  gradients.read(j, kind, gradient, index, combine_threads);
#pragma unroll
  for (int u = 0; u < U; ++u) {
    average(v[u], gradient[u]);
    store_momentum(row, index + u * combine_threads, v[u]);
  }
}

// The momenta alone that gradients have come for, one after the other.
template <class T>
__global__ void __launch_bounds__(combine_threads, 1)
    accumulate(const __grid_constant__ Table table, const __grid_constant__ Incoming given) {
  constexpr int U = kUnrolledAlone, V = Vector<T>::size, kThreads = combine_threads;
  const Average<T> average(given.beta.first);
  tick(given, table.m);
  for_pieces(table, share(table.chunks, gridDim.x, blockIdx.x), share(table.chunks, gridDim.x, blockIdx.x + 1),
             kChunkWidth<T>, [&](const Piece& piece) {
               const GradientRows gradients(table, piece.entry);
               for (int j = 0; j < given.count; ++j) {
                 const char* row = Rows<1>(table, piece.entry, 0, given.chosen[j]).row[0];
                 if (row == nullptr) continue;
                 const int64_t end = piece.vectors_end(V);
                 int64_t index = piece.first / V + threadIdx.x;
                 for (; index + (U - 1) * kThreads < end; index += U * kThreads)
                   move_vectors<U, T>(row, gradients, j, given.kind, index, average);
                 for (; index < end; index += kThreads)
                   move_vectors<1, T>(row, gradients, j, given.kind, index, average);
                 T* elements = reinterpret_cast<T*>(const_cast<char*>(row));
                 for (int64_t column = piece.columns_begin(V) + threadIdx.x; column < piece.last; column += kThreads)
                   elements[column] = average(
                       elements[column], gradients.template element<Wide<T>>(j, given.kind, column, table));
               }
             });
}

}  // namespace

void launch_accumulate(const Context& context, const Plan& plan, const Table& table, const Incoming& given) {
  with_state(context.kind, [&](auto type) {
    launch(context, accumulate<typename decltype(type)::type>, plan.blocks, 1, combine_threads, Mode::ordinary, table,
           given);
  });
}

void launch_accumulate_gram(const Context& context, const Plan& plan, const Table& table, double* partials,
                            const Incoming& given) {
  if (plan.tiles && plan.rows <= kMovedRows) return launch_accumulate_tiles(context, plan, table, partials, given);
  if (plan.tiles) {
    launch_accumulate(context, plan, table, given);
    return launch_gram_tiles(context, plan, table, 1, partials);
  }
  with_state(context.kind, [&](auto type) {
    using T = typename decltype(type)::type;
    with_small_rows(plan.rows, [&](auto rows) {
      constexpr int M = decltype(rows)::value;
      launch(context, accumulate_gram<T, M>, plan.blocks, 1, moved_threads(M), Mode::ordinary, table, partials, given);
    });
  });
}

}  // namespace fastconfig

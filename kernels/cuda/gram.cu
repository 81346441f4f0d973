// First launch for few gradients: every block's Gram matrix of its share of the columns.
#include "gram.cuh"

namespace fastconfig {
namespace {

template <int M>
constexpr int kUnrolled = M <= 4 ? 2 : 1;  // vectors of a row that a thread loads before it multiplies

template <class T, int M>
__global__ void __launch_bounds__(gram_threads(M, sizeof(T)), 1)
    gram_small(const __grid_constant__ Table table, double* partials) {
  constexpr int kThreads = gram_threads(M, sizeof(T));
  Products<M> products;
  add_share<T, kUnrolled<M>, kThreads>(table, products,
                                       [&](const Entry& entry) { return GivenRows<T, M>(table, entry); });
  put_partial<kThreads>(products, table.m, partials);
}

}  // namespace

void launch_gram(const Context& context, const Plan& plan, const Table& table, int64_t problems, double* partials) {
  if (plan.tiles) return launch_gram_tiles(context, plan, table, problems, partials);
  with_type(context.kind, [&](auto type) {
    using T = typename decltype(type)::type;
    with_small_rows(plan.rows, [&](auto rows) {
      constexpr int M = decltype(rows)::value;
      launch(context, gram_small<T, M>, plan.blocks, problems, gram_threads(M, sizeof(T)), Mode::ordinary, table,
             partials);
    });
  });
}

}  // namespace fastconfig

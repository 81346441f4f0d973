// Elements of any kind beside those of the state, and the arithmetic of a momentum step.
#pragma once

#include <type_traits>

#include "momentum.hpp"
#include "vectors.cuh"

namespace fastconfig {

// What a state of T is computed in.
template <class T>
using Wide = std::conditional_t<kFloat64 || sizeof(T) == 8, double, float>;

// The V elements that lie beside vector `index` of the state, in words of up to 16 bytes.
template <class E, int V>
struct Beside {
  static constexpr int bytes = V * sizeof(E);
  using Word = std::conditional_t<(bytes >= 16), uint4, std::conditional_t<bytes == 8, uint2, unsigned>>;
  static constexpr int words = bytes / sizeof(Word);
};

template <class E, class R, int V>
__device__ __forceinline__ void load_beside(const char* row, int64_t index, R (&x)[V]) {
  using Shape = Beside<E, V>;
  typename Shape::Word word[Shape::words];
#pragma unroll
  for (int k = 0; k < Shape::words; ++k)
    word[k] = __ldcs(reinterpret_cast<const typename Shape::Word*>(row) + index * Shape::words + k);
  E element[V];
  memcpy(element, word, sizeof word);
#pragma unroll
  for (int e = 0; e < V; ++e) x[e] = widen(element[e]);
}

template <class E, class R, int V>
__device__ __forceinline__ void store_beside(char* row, int64_t index, const R (&x)[V]) {
  using Shape = Beside<E, V>;
  E element[V];
#pragma unroll
  for (int e = 0; e < V; ++e) round_to(element[e], x[e]);
  typename Shape::Word word[Shape::words];
  memcpy(word, element, sizeof word);
#pragma unroll
  for (int k = 0; k < Shape::words; ++k)
    __stcs(reinterpret_cast<typename Shape::Word*>(row) + index * Shape::words + k, word[k]);
}

// f(Type<E>) for the elements of a kind; a branch that all threads take together, and cheaper than a kernel a kind.
template <class F>
__device__ __forceinline__ void with_kind(int kind, F f) {
  switch (kind) {
    case 0: return f(Type<float>{});
    case 1: return f(Type<double>{});
    case 2: return f(Type<__nv_bfloat16>{});
    default: return f(Type<__half>{});
  }
}

// A moving average: from the heavier one of both towards the other, so that beta and 1 - beta add up to one however
// they are rounded, and a large number that beta leaves little of does not cancel a small one.
template <class T>
struct Average {
  Wide<T> weight;
  bool keeps;  // whether what was is the heavier one

  __device__ __forceinline__ explicit Average(double beta)
      : weight(static_cast<Wide<T>>(beta < 0.5 ? beta : 1 - beta)), keeps(beta >= 0.5) {}

  __device__ __forceinline__ T operator()(T before, Wide<T> now) const {
    const Wide<T> was = before, from = keeps ? was : now, to = keeps ? now : was;
    return static_cast<T>(fma(weight, to - from, from));
  }

  __device__ __forceinline__ void operator()(Vector<T>& v, const Wide<T> (&now)[Vector<T>::size]) const {
#pragma unroll
    for (int e = 0; e < Vector<T>::size; ++e) v.x[e] = (*this)(v.x[e], now[e]);
  }
};

// beta^t by squares.
__device__ __forceinline__ double power(double beta, int64_t t) {
  double result = 1;
  for (; t != 0; t >>= 1, beta *= beta)
    if (t & 1) result *= beta;
  return result;
}

// Counts the gradients of a step, and says what has decayed by now; one block does it for all.
__device__ __forceinline__ void tick(const Incoming& given, int m) {
  const int i = threadIdx.x;
  if (blockIdx.x != 0 || i >= m + kBeside || given.steps == nullptr) return;
  int64_t t = given.steps[i] + (i >= m && given.update);
  for (int j = 0; j < given.count; ++j) t += given.chosen[j] == i;
  given.steps[i] = t;
  given.decayed[i] = 1 - power(i <= m ? given.beta.first : given.beta.second, t);
}

// An entry's gradients, in the order of Incoming::chosen.
struct GradientRows {
  Entry address;
  int beside;  // number of the first one among the addresses of an entry

  __device__ __forceinline__ GradientRows(const Table& table, const Entry& entry)
      : address(entry + 3 + table.m + kBeside), beside(table.m + kBeside) {}

  // U vectors of gradient j, zeros where it is missing, `apart` apart from `index` on; none from `end` on.
  template <class R, int U, int V>
  __device__ __forceinline__ void read(int j, int kind, R (&x)[U][V], int64_t index, int apart,
                                       int64_t end = INT64_MAX) const {
    const auto* row = reinterpret_cast<const char*>(address[j]);
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int e = 0; e < V; ++e) x[u][e] = 0;
    if (row == nullptr) return;
    with_kind(kind, [&](auto type) {
#pragma unroll
      for (int u = 0; u < U; ++u) {
        // one branch for all: a load again is cheaper than a load less
        const int64_t place = U == 1 || index + u * apart < end ? index + u * apart : index;
        load_beside<typename decltype(type)::type>(row, place, x[u]);
      }
    });
  }

  template <class R>
  __device__ __forceinline__ R element(int j, int kind, int64_t column, const Table& table) const {
    const auto* row = reinterpret_cast<const char*>(address[j]);
    R x = 0;
    if (row == nullptr) return x;
    with_kind(kind, [&](auto type) {
      using E = typename decltype(type)::type;
      x = widen(reinterpret_cast<const E*>(row)[column * table.step(beside + j)]);
    });
    return x;
  }
};

// To where the second pass reads it from.
template <class T>
__device__ __forceinline__ void store_momentum(const char* row, int64_t index, const Vector<T>& v) {
  uint4 bits;
  memcpy(&bits, &v, sizeof v);
  __stcg(reinterpret_cast<uint4*>(const_cast<char*>(row)) + index, bits);
}

}  // namespace fastconfig

// The bridge between the bindings and the kernels: what every launch needs, and the launches by name.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "plan.hpp"
#include "rules.hpp"
#include "table.hpp"

namespace fastconfig {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
}

// A device that runs all blocks of a launch at once may refuse to where it is shared: MPS, green contexts.
struct RefusedAtOnce {};

struct Context {
  cudaStream_t stream;
  Device device;
  int kind;         // of the elements, as in fastconfig.numbers.DTYPES
  bool overlapped;  // a launch may begin before the one it follows has ended
};

// The m x m stage as a kernel is told of it.
struct Stage {
  Rule rule;
  double rcond;
};

inline bool is_light(const Stage& stage) { return weight_of(stage.rule.method) == Weight::light; }

// Whether the m x m stage runs within the kernels that read or write the gradients, where it runs alone otherwise.
inline bool is_fused(const Stage& stage, int64_t m) {
  return is_light(stage) || (m <= kFewRows && weight_of(stage.rule.method) == Weight::medium);
}

enum class Mode { ordinary, following, cooperative };

// A launch whose blocks take `shared` bytes of dynamic_shared(); more than 48 KB a kernel has to be allowed before.
template <class... Parameters, class... Arguments>
void launch_shared(const Context& context, void (*kernel)(Parameters...), int64_t blocks, int64_t problems, int threads,
                   int shared, Mode mode, Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.gridDim = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(problems));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = context.stream;
  cudaLaunchAttribute attribute{};
  config.attrs = &attribute;
  if (mode == Mode::cooperative) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    config.numAttrs = 1;
  } else if (mode == Mode::following && context.overlapped) {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.numAttrs = 1;
  }
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  if (mode == Mode::cooperative && (error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorNotSupported)) {
    cudaGetLastError();  // is told once
    throw RefusedAtOnce{};
  }
  check(error, "launch of a kernel");
}

template <class... Parameters, class... Arguments>
void launch(const Context& context, void (*kernel)(Parameters...), int64_t blocks, int64_t problems, int threads,
            Mode mode, Arguments&&... arguments) {
  launch_shared(context, kernel, blocks, problems, threads, 0, mode, std::forward<Arguments>(arguments)...);
}

template <int N>
struct Number {
  static constexpr int value = N;
};

template <Weight WEIGHT>
struct Weighs {
  static constexpr Weight value = WEIGHT;
};

template <class T>
struct Type {
  using type = T;
};

// f(Type<T>) for the element type of a kind.
template <class F>
void with_type(int kind, F f) {
  switch (kind) {
    case 0: return f(Type<float>{});
    case 1: return f(Type<double>{});
    case 2: return f(Type<__nv_bfloat16>{});
    default: return f(Type<__half>{});
  }
}

// The same for the elements of a state of momenta, which are float32 or float64.
template <class F>
void with_state(int kind, F f) {
  kind == 1 ? f(Type<double>{}) : f(Type<float>{});
}

// f(Number<rows>) for rows that kernels of few gradients are compiled for: small_rows in plan.hpp.
template <class F>
void with_small_rows(int rows, F f) {
  switch (rows) {
    case 2: return f(Number<2>{});
    case 3: return f(Number<3>{});
    case 4: return f(Number<4>{});
    case 6: return f(Number<6>{});
    default: return f(Number<8>{});
  }
}

// The same for m up to kFewRows.
template <class F>
void with_few_rows(int m, F f) {
  m <= 2 ? f(Number<2>{}) : m == 3 ? f(Number<3>{}) : f(Number<kFewRows>{});
}

// f(Number<tiles>) for tiles of 8 rows, in the kernels that move momenta and in all others: tile_rows in plan.hpp.
template <class F>
void with_moved_tiles(int tiles, F f) {
  switch (tiles) {
    case 1: return f(Number<1>{});
    case 2: return f(Number<2>{});
    case 3: return f(Number<3>{});
    default: return f(Number<4>{});
  }
}

template <class F>
void with_tiles(int tiles, F f) {
  tiles <= 4 ? with_moved_tiles(tiles, f) : tiles == 6 ? f(Number<6>{}) : f(Number<8>{});
}

// f(Number<rows>, Weighs<weight>) for the kernels that solve the m x m problem of a fused stage, of up to MOST gradients.
template <int MOST, class F>
void with_stage_rows(const Stage& stage, int m, F f) {
  const auto light = [&](auto rows) { f(rows, Weighs<Weight::light>{}); };
  if (!is_light(stage))
    with_few_rows(m, [&](auto rows) { f(rows, Weighs<Weight::medium>{}); });
  else if (m <= kSmallRows)
    with_small_rows(small_rows(m), light);
  else if constexpr (MOST > kSmallRows)
    light(Number<MOST>{});
}

// Partial Gram matrices, a packed upper triangle a block, problem by problem.
void launch_gram(const Context&, const Plan&, const Table&, int64_t problems, double* partials);
void launch_gram_tiles(const Context&, const Plan&, const Table&, int64_t problems, double* partials);

// Gram matrices (problems, m, m) from partial ones; corrections: null, or of every row what its products are divided by.
void launch_sum(const Context&, int programs, int m, int64_t problems, const double* partials, double* gram,
                const double* corrections = nullptr);

// The same of groups, whose partial Gram matrices begin at starts[0], .. of them all.
void launch_sum_groups(const Context&, const int64_t* starts, int m, int64_t groups, const double* partials,
                       double* gram);

// Coefficients (problems, m) from Gram matrices; first: the number of the first problem, for the rule; scratch:
// problems * m * m numbers.
void launch_solve(const Context&, int m, int64_t first, int64_t problems, const double* gram, double* c,
                  double* scratch, const Stage&);

// The same by a method that is not light; scratch: heavy_doubles numbers.
void launch_heavy(const Context&, int m, int64_t first, int64_t problems, const double* gram, double* c, double* scratch,
                  const Stage&);
int64_t heavy_doubles(Method, int m, int64_t problems);

// The result from coefficients.
void launch_combine(const Context&, const Plan&, const Table&, int64_t problems, const double* c);

// The result from partial Gram matrices, or from Gram matrices where programs is 0: every block adds up and solves.
void launch_finish(const Context&, const Plan&, const Table&, int64_t first, int64_t problems, int programs,
                   const double* partials, const Stage&);

// Everything at once, for one problem.
void launch_whole(const Context&, const Plan&, const Table&, double* partials, const Stage&);

// Words to device memory through the parameters of launches.
void launch_write(const Context&, const int64_t* words, int64_t count, int64_t* target);

// The compute capability, 10 * major + minor, that the kernels which run on the current device were compiled for.
int compiled_capability();

}  // namespace fastconfig

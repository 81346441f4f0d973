// What the kernels of a momentum step are told beside a table and the m x m stage.
//
// A table's rows are m momenta; behind them an entry has the addresses of the second moment, of the last merged
// momentum and of k gradients. The result and the gradients are of one kind of elements, all others of another one.
#pragma once

#include <cstdint>

#include "launch.hpp"

namespace fastconfig {

constexpr int kBeside = 2;  // addresses between those of the momenta and those of the gradients

struct Betas {
  double first, second;
};

// Gradients that come, and the counters of a device that runs behind the host.
struct Incoming {
  Betas beta;
  int64_t* steps;   // how often every gradient has come, and twice the number of updates; or null
  double* decayed;  // where 1 - beta^t goes, of every counter
  int32_t kind;
  int32_t count;
  bool update;  // counts as an update
  uint8_t chosen[kMostRows];  // their momenta
};

// The result.
struct Outgoing {
  Betas beta;
  const double* decayed;  // of every momentum 1 - beta_1^t, then that of the updates, and 1 - beta_2^t
  int32_t kind;
};

// Momenta with the gradients that have come; counts them.
void launch_accumulate(const Context&, const Plan&, const Table&, const Incoming&);

// The same, and partial Gram matrices of all momenta.
void launch_accumulate_gram(const Context&, const Plan&, const Table&, double* partials, const Incoming&);
void launch_accumulate_tiles(const Context&, const Plan&, const Table&, double* partials, const Incoming&);

// Second moment, last merged momentum and result from partial Gram matrices, or from a corrected one where programs is
// 0.
void launch_finish_momentum(const Context&, const Plan&, const Table&, int programs, const double* partials,
                            const Stage&, const Outgoing&);

// The same from coefficients, which are still to be corrected; null is a single row that has been.
void launch_rescale(const Context&, const Plan&, const Table&, const double* c, const Outgoing&);

}  // namespace fastconfig

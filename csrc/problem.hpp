// What a method of rules/ is told: one Gram matrix, and the rule with its settings.
#pragma once

#include <cstdint>

#include "host_device.hpp"

namespace fastconfig {

#define FASTCONFIG_RULE(name, weight, more) name,
enum class Method : int32_t {
#include "rules.def"
};
#undef FASTCONFIG_RULE

// In the order of LENGTHS of fastconfig/methods/base.py.
enum class Length : int32_t { projection, minimum, maximum, harmonic, arithmetic, geometric, specific, none };

struct Rule {
  Method method = Method::config;
  Length length = Length::projection;
  int64_t track_id = 0;
  bool mean = false;
  const double* weights = nullptr;  // (m) or (batch, m); null is all ones
  int64_t weights_step = 0;         // from one problem to the next
  const int64_t* order = nullptr;   // (m, m) or (batch, m, m) for PCGrad; null is 0..m-1
  int64_t order_step = 0;
  double parameters[4] = {};  // a method's own numbers: Rule.parameters of fastconfig/methods/base.py
  double* state = nullptr;    // (m, m) or (batch, m, m), which a call changes in place; null for none
  int64_t state_step = 0;
  const int64_t* places = nullptr;  // addresses of weights, order and state, problem by problem, instead of these

  FASTCONFIG_HD const double* weights_of(int64_t problem) const { return place(weights, weights_step, problem, 0); }
  FASTCONFIG_HD const int64_t* order_of(int64_t problem) const { return place(order, order_step, problem, 1); }
  FASTCONFIG_HD double* state_of(int64_t problem) const { return place(state, state_step, problem, 2); }

 private:
  template <class T>
  FASTCONFIG_HD T* place(T* first, int64_t step, int64_t problem, int which) const {
    if (places != nullptr) return reinterpret_cast<T*>(places[3 * problem + which]);
    return first != nullptr ? first + problem * step : nullptr;
  }
};

struct Problem {
  const double* gram;  // m x m, row-major, symmetric
  int m;
  const Rule& rule;
  int64_t index;  // in its batch, for the rule's weights and order
  double rcond;

  FASTCONFIG_HD const double* weights() const { return rule.weights_of(index); }
};

}  // namespace fastconfig

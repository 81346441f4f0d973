// Gram matrix -> coefficients, in float64: one source for the host and, compiled by nvcc, for the device.
//
// All methods work on C = D^-1 G D^-1 and on coefficients of the unit gradients, so that row norms from 1e-30 to 1e30
// meet no overflow; the division by d comes last. fastconfig/methods is the same in plain torch.
//
// A method is a function of rules/ by its own name, which leaves its coefficients in w.x, and never sees NaN or Inf. It
// finds C in w.cosines, d in w.norms and 1 / d (zero for a zero gradient) in w.inverse; it may write over C, and the rest of
// the workspace is its scratch memory.
#pragma once

#include <cmath>
#include <cstdint>

#include "linalg.hpp"
#include "problem.hpp"
#include "rules.def"

namespace fastconfig {

enum class Weight { light, medium, heavy };

constexpr Weight weight_of(Method method) {
  switch (method) {
#define FASTCONFIG_RULE(name, weight, more) \
  case Method::name: return Weight::weight;
#include "rules.def"
#undef FASTCONFIG_RULE
  }
  return Weight::heavy;
}

// Whether many gradients keep more than a warp busy.
FASTCONFIG_HD constexpr bool has_use_for_a_block(Method method) {
  return method == Method::upgrad || method == Method::nash || method == Method::fairgrad || method == Method::aligned;
}

// Of the scratch memory of a workspace for a method, on a team of so many lanes.
constexpr int64_t scratch_doubles(Method method, int64_t m, [[maybe_unused]] int64_t lanes = 1) {
  switch (method) {
#define FASTCONFIG_RULE(name, weight, more) \
  case Method::name: return Workspace::doubles(m) + (more);
#include "rules.def"
#undef FASTCONFIG_RULE
  }
  return 0;
}

// The same of any method up to a weight.
constexpr int64_t most_scratch_doubles(Weight most, int64_t m, int64_t lanes) {
  int64_t doubles = 0;
#define FASTCONFIG_RULE(name, weight, more)                                                        \
  if (Weight::weight <= most && scratch_doubles(Method::name, m, lanes) > doubles)                 \
    doubles = scratch_doubles(Method::name, m, lanes);
#include "rules.def"
#undef FASTCONFIG_RULE
  return doubles;
}

// c (m) of a problem. All NaN if a diagonal entry of its Gram matrix is, or by a method that weighs more than MOST or less
// than LEAST, which is left out: its code would take registers from the others.
template <Weight MOST, Weight LEAST = Weight::light, class Team>
FASTCONFIG_HD void coefficients(const Team& team, const Workspace& w, const Problem& p, double* c) {
  const int m = p.m;
  const double* gram = p.gram;
  const double broken = team_sum(team, m, [&](int i) { return std::isfinite(gram[i * m + i]) ? 0.0 : 1.0; });
  team_for(team, m, [&](int i) {
    w.norms[i] = sqrt(gram[i * m + i]);
    w.inverse[i] = w.norms[i] > 0 ? 1 / w.norms[i] : 0;
  });
  team_parts(team, m, [&](const auto& part, int i) {
    FASTCONFIG_ROLLED for (int j = part.lane(); j < m; j += part.width)
      w.cosines[i * m + j] = i == j ? 1 : gram[i * m + j] * w.inverse[i] * w.inverse[j];
  });
  bool served = false;
  if (!(broken > 0)) {
    switch (p.rule.method) {
#define FASTCONFIG_RULE(name, weight, more)                                     \
  case Method::name:                                                            \
    if constexpr (Weight::weight >= LEAST && Weight::weight <= MOST &&          \
                  (Team::width <= 32 || has_use_for_a_block(Method::name))) {   \
      name(team, w, p);                                                         \
      served = true;                                                            \
    }                                                                           \
    break;
#include "rules.def"
#undef FASTCONFIG_RULE
    }
  }
  team_for(team, m, [&](int i) { c[i] = served ? w.x[i] * w.inverse[i] : double{NAN}; });
}

}  // namespace fastconfig

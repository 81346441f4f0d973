#pragma once

#include "linalg.hpp"
#include "problem.hpp"

namespace fastconfig {

// Weighted sums, whatever the gradients are. G only tells of NaN and Inf.
template <class Team>
FASTCONFIG_HD void mean(const Team& team, const Workspace& w, const Problem& p) {
  team_for(team, p.m, [&](int i) { w.x[i] = w.norms[i] / p.m; });
}

template <class Team>
FASTCONFIG_HD void constant(const Team& team, const Workspace& w, const Problem& p) {
  const double* weights = p.weights();
  team_for(team, p.m, [&](int i) { w.x[i] = weights ? weights[i] * w.norms[i] : w.norms[i]; });
}

}  // namespace fastconfig

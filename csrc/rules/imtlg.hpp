#pragma once

#include <cfloat>
#include <cmath>

#include "linalg.hpp"
#include "problem.hpp"

namespace fastconfig {

// IMTL-G (Liu et al. 2021): equal projections on all unit gradients, coefficients that sum to one.
template <class Team>
FASTCONFIG_HD void imtlg(const Team& team, const Workspace& w, const Problem& p) {
  const int m = p.m;
  team_for(team, m, [&](int i) { w.x[i] = w.norms[i] > 0 ? 1.0 : 0.0; });
  pinv_apply(team, w, m, p.rcond);
  const double total = team_sum(team, m, [&](int i) { return w.x[i] * w.inverse[i]; });
  const double size = team_sum(team, m, [&](int i) { return fabs(w.x[i] * w.inverse[i]); });
  const bool resolved = fabs(total) > m * DBL_EPSILON * size;
  team.sync();
  team_for(team, m, [&](int i) { w.x[i] = resolved ? w.x[i] / total : 0; });
}

}  // namespace fastconfig

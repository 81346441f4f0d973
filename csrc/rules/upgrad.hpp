#pragma once

#include "dual_cone.hpp"
#include "linalg.hpp"
#include "problem.hpp"

namespace fastconfig {

// UPGrad (arXiv:2406.16232): every gradient projected on the dual cone of all, then the mean.
template <class Team>
FASTCONFIG_CALLED void upgrad(const Team& team, const Workspace& w, const Problem& p) {
  const int m = p.m;
  const double* weights = p.weights();
  if (team.lane() == 0) {
    ActiveSet set(w, m, p.rcond);
    double* start = w.more + m;
    for (int j = 0; j < m; ++j) w.x[j] = start[j] = 0;
    for (int i = 0; i < m; ++i) {
      const double share = weights ? w.norms[i] * weights[i] : w.norms[i] / m;
      if (!(share > 0)) continue;
      start[i] = 1;
      add_projection(set, w.cosines + i * m, start, share, p.rcond, w.x);
      start[i] = 0;
    }
  }
  team.sync();
}

}  // namespace fastconfig

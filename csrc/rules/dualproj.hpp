#pragma once

#include <cmath>

#include "dual_cone.hpp"
#include "linalg.hpp"
#include "problem.hpp"

namespace fastconfig {

// DualProj (arXiv:1706.08840): the gradients' mean, projected on the dual cone of all.
template <class Team>
FASTCONFIG_CALLED void dualproj(const Team& team, const Workspace& w, const Problem& p) {
  const int m = p.m;
  const double* weights = p.weights();
  if (team.lane() == 0) {
    ActiveSet set(w, m, p.rcond);
    double *start = w.more + m, *q = start + m, largest = 0;
    FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) {
      w.x[j] = 0;
      start[j] = weights ? w.norms[j] * weights[j] : w.norms[j] / m;
      largest = fmax(largest, start[j]);
    }
    if (largest > 0) {
      FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) start[j] /= largest;
      FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) q[j] = dot(w.cosines + j * m, start, m);
      add_projection(set, q, start, largest, p.rcond, w.x);
    }
  }
  team.sync();
}

}  // namespace fastconfig

#pragma once

#include <cmath>

#include "active_set.hpp"
#include "linalg.hpp"
#include "problem.hpp"

namespace fastconfig {

// set.mu becomes y >= 0 of least |sum_i y_i u_i|^2 + (1 - r . y)^2. Returns r . y, or zero where rounding leaves nothing
// certain of that sum. Writes C + r r^T to `matrix` and -r to q.
FASTCONFIG_HD double shortest(ActiveSet& set, const double* cosines, const double* r, double* matrix, double* q,
                              double rcond) {
  const int m = set.m;
  FASTCONFIG_ROLLED for (int i = 0; i < m; ++i) {
    q[i] = -r[i];
    FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) matrix[i * m + j] = cosines[i * m + j] + r[i] * r[j];
  }
  set.matrix = matrix;
  set.solve(q, 1);
  double squared = 0, share = 0, parts = 0;
  FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) {
    const double y = set.mu[j];
    squared += y * (set.slope[j] + r[j]);
    share += y * r[j];
    parts += y;
  }
  return certain(squared - share * share, parts, rcond) ? share : 0;
}

// MGDA (Desideri 2012): the shortest convex combination, y = c d up to its length for r_i the least norm over d_i.
template <class Team>
FASTCONFIG_CALLED void mgda(const Team& team, const Workspace& w, const Problem& p) {
  const int m = p.m;
  if (team.lane() == 0) {
    double *r = w.more + m, *q = r + m, *matrix = q + m, least = w.norms[0];
    FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) {
      w.x[j] = 0;
      least = fmin(least, w.norms[j]);
    }
    ActiveSet set(w, m, p.rcond);
    bool uneven = false;
    FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) {
      uneven = uneven || w.norms[j] > least;
      r[j] = 1;
    }
    // the shortest of unit gradients tells stationary ones
    double share = least > 0 ? shortest(set, w.cosines, r, matrix, q, p.rcond) : 0;
    if (share > 0 && uneven) {
      FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) r[j] = least * w.inverse[j];
      share = shortest(set, w.cosines, r, matrix, q, p.rcond);
    }
    if (share > 0)
      FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) w.x[j] = set.mu[j] * (least / share);
  }
  team.sync();
}

}  // namespace fastconfig

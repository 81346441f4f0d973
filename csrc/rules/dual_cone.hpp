// Projection on the dual cone of the gradients, for one thread.
#pragma once

#include "active_set.hpp"

namespace fastconfig {

// x += share w, of which sum_j w_j u_j is sum_j start_j u_j projected on {v: u_j . v >= 0 for all j}; start_j >= 0, and
// q = C start.
FASTCONFIG_HD void add_projection(ActiveSet& set, const double* q, const double* start, double share, double rcond,
                                  double* x) {
  double size = 0;
  FASTCONFIG_ROLLED for (int j = 0; j < set.m; ++j) size += start[j];
  set.solve(q, size);
  double squared = 0, parts = 0;
  FASTCONFIG_ROLLED for (int j = 0; j < set.m; ++j) {
    const double w = start[j] + set.mu[j];
    squared += w * set.slope[j];
    parts += w;
  }
  if (!certain(squared, parts, rcond)) return;
  FASTCONFIG_ROLLED for (int j = 0; j < set.m; ++j) x[j] += share * (start[j] + set.mu[j]);
}

}  // namespace fastconfig

// Projection on the dual cone of the gradients, for one thread.
#pragma once

#include <cfloat>
#include <cmath>

#include "active_set.hpp"

namespace fastconfig {

// Whether rounding of C leaves something certain of v = sum_j w_j u_j, which is to conflict with none: |v|^2, the sum of
// w_j, and the least of u_j . v.
FASTCONFIG_HD bool certainly_free(double squared, double parts, double least, double rcond) {
  rcond = fmax(rcond, 64 * DBL_EPSILON);
  return squared > rcond / 8 * parts * parts && least >= -sqrt(rcond * squared);
}

// x += share w, of which sum_j w_j u_j is sum_j start_j u_j projected on {v: u_j . v >= 0 for all j}; start_j >= 0, and
// q = C start.
FASTCONFIG_HD void add_projection(ActiveSet& set, const double* q, const double* start, double share, double rcond,
                                  double* x) {
  double size = 0;
  FASTCONFIG_ROLLED for (int j = 0; j < set.m; ++j) size += start[j];
  bool free = false;
  // of gradients that nearly depend on each other, all at once may leave a set that one by one does not
  FASTCONFIG_ROLLED for (int together = ActiveSet::kTogether; !free && together >= 0; together -= ActiveSet::kTogether) {
    set.solve(q, size, together);
    double squared = 0, parts = 0, least = 0;
    FASTCONFIG_ROLLED for (int j = 0; j < set.m; ++j) {
      const double w = start[j] + set.mu[j];
      squared += w * set.slope[j];
      parts += w;
      least = fmin(least, set.slope[j]);
    }
    free = certainly_free(squared, parts, least, rcond);
  }
  if (!free) return;
  FASTCONFIG_ROLLED for (int j = 0; j < set.m; ++j) x[j] += share * (start[j] + set.mu[j]);
}

}  // namespace fastconfig

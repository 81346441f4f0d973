// What rounding of C = D^-1 G D^-1 leaves of what is computed from it.
#pragma once

#include <cfloat>
#include <cmath>

#include "host_device.hpp"

namespace fastconfig {

// A quadratic program adds this to the diagonal of C: as if every unit gradient had a part of that squared length that it
// shares with none, so that none depends on the others. Products with the answer move by no more than rounding of C and of
// the Cholesky factor, which must not use up the ridge: it grows with m.
FASTCONFIG_HD double ridge_of(double rcond, int m) { return fmax(rcond / 64, (m < 8 ? 8 : m) * DBL_EPSILON); }

// Whether not all of v = sum_j w_j u_j is rounding of C: of |v|^2 and sum_j |w_j|.
FASTCONFIG_HD bool certain(double squared, double parts, double rcond) {
  return squared > fmax(rcond / 8, 8 * DBL_EPSILON) * parts * parts;
}

}  // namespace fastconfig

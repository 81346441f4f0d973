#pragma once

#include <cmath>

#include "linalg.hpp"
#include "problem.hpp"
#include "rules/newton.hpp"

namespace fastconfig {

// Nash-MTL (Navon et al. 2022): C b = 1 / b. Parameters: the greatest length, 0 for none; and whether the root of the
// Frobenius norm of G comes in before.
template <class Team>
FASTCONFIG_HD void nash(const Team& team, const Workspace& w, const Problem& p) {
  const int m = p.m;
  const double longest = p.rule.parameters[0];
  const auto own = team.leader();
  const double count = team_sum(own, m, [&](int i) { return w.norms[i] > 0 ? 1.0 : 0.0; });
  const bool exists = newton::nash_point(team, w, m, p.rcond);
  double scale = 1;
  if (p.rule.parameters[1] != 0) {
    const double most = newton::team_max(own, m, [&](int i) { return w.norms[i]; });
    const double squares = team_sum(own, m, [&](int i) {
      double sum = 0;
      FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) {
        const double e = w.norms[i] / most * w.cosines[i * m + j] * (w.norms[j] / most);
        sum += e * e;
      }
      return sum;
    });
    scale = most * sqrt(sqrt(squares));
  }
  if (longest > 0) scale = fmin(scale, longest / sqrt(count));
  team.sync();
  team_for(team, m, [&](int i) { w.x[i] = exists && w.norms[i] > 0 ? scale * w.x[i] : 0; });
}

}  // namespace fastconfig

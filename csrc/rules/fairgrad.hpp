#pragma once

#include <cmath>

#include "linalg.hpp"
#include "problem.hpp"
#include "rules/newton.hpp"

namespace fastconfig {

// FairGrad (Ban and Ji 2024): G c = c^(-1 / alpha), alpha the first parameter.
template <class Team>
FASTCONFIG_HD void fairgrad(const Team& team, const Workspace& w, const Problem& p) {
  const int m = p.m;
  const double alpha = p.rule.parameters[0];
  if (alpha == 0) {
    team_for(team, m, [&](int i) { w.x[i] = w.norms[i] / m; });
    return;
  }
  const double power = 1 / alpha;
  const bool exists = newton::nash_point(team, w, m, p.rcond);
  double scale = 1;
  if (exists && alpha != 1) {
    double *logs = w.more, *t = logs + m, *ratio = t + m;
    const double most = newton::team_max(team.leader(), m, [&](int i) { return w.norms[i]; });
    team_for(team, m, [&](int i) { logs[i] = w.norms[i] > 0 ? (power - 1) * log(w.norms[i] / most) : 0; });
    newton::fair_point(team, w, logs, t, ratio, power, m);
    scale = pow(most, (power - 1) / (power + 1));
  }
  team.sync();
  team_for(team, m, [&](int i) { w.x[i] = exists && w.norms[i] > 0 ? scale * w.x[i] : 0; });
}

}  // namespace fastconfig

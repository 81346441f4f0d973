#pragma once

#include "dual_cone.hpp"
#include "linalg.hpp"
#include "problem.hpp"

namespace fastconfig {

// UPGrad (arXiv:2406.16232): every gradient projected on the dual cone of all, each by a lane of its own, then the mean.
template <class Team>
FASTCONFIG_CALLED void upgrad(const Team& team, const Workspace& w, const Problem& p) {
  const int m = p.m;
  const double* weights = p.weights();
  team_for(team, m, [&](int i) {
    ActiveSet set(w.cosines, w.more + team.lane() * ActiveSet::doubles(m), m, p.rcond);
    double *start = set.beside(), *projected = w.factor + i * m;
    FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) start[j] = projected[j] = 0;
    const double share = weights ? w.norms[i] * weights[i] : w.norms[i] / m;
    if (!(share > 0)) return;
    start[i] = 1;
    add_projection(set, w.cosines + i * m, start, share, p.rcond, projected);
  });
  team_for(team, m, [&](int j) {
    double s = 0;
    FASTCONFIG_ROLLED for (int i = 0; i < m; ++i) s += w.factor[i * m + j];
    w.x[j] = s;
  });
}

}  // namespace fastconfig

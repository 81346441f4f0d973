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
  // lanes of one warp that go different ways wait for each other
  FASTCONFIG_ROLLED for (int i = team.apart(); i < m; i += Team::width) {
    ActiveSet set(w.cosines, w.more + team.apart() * ActiveSet::doubles(m), m, p.rcond);
    double *start = set.beside(), *projected = w.factor + i * m;
    FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) start[j] = projected[j] = 0;
    const double share = weights ? w.norms[i] * weights[i] : w.norms[i] / m;
    if (!(share > 0)) continue;
    start[i] = 1;
    add_projection(set, w.cosines + i * m, start, share, p.rcond, projected);
  }
  team.sync();
  team_for(team, m, [&](int j) {
    double s = 0;
    FASTCONFIG_ROLLED for (int i = 0; i < m; ++i) s += w.factor[i * m + j];
    w.x[j] = s;
  });
}

}  // namespace fastconfig

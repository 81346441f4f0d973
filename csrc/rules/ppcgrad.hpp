#pragma once

#include "linalg.hpp"
#include "problem.hpp"

namespace fastconfig {

// PPCGrad: every projection against the original gradients.
template <class Team>
FASTCONFIG_HD void ppcgrad(const Team& team, const Workspace& w, const Problem& p) {
  const int m = p.m;
  team_for(team, m, [&](int j) {
    double s = w.norms[j];
    FASTCONFIG_ROLLED for (int i = 0; i < m; ++i)
      if (i != j && w.cosines[i * m + j] < 0) s -= w.norms[i] * w.cosines[i * m + j];
    w.x[j] = p.rule.mean ? s / m : s;
  });
}

}  // namespace fastconfig

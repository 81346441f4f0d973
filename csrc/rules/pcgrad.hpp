#pragma once

#include <cstdint>

#include "linalg.hpp"
#include "problem.hpp"

namespace fastconfig {

// PCGrad (arXiv:2001.06782, algorithm 1) for a given order; every gradient i on a lane of its own.
template <class Team>
FASTCONFIG_CALLED void pcgrad(const Team& team, const Workspace& w, const Problem& p) {
  const Rule& rule = p.rule;
  const int m = p.m;
  const int64_t* order = rule.order_of(p.index);
  team_for(team, m, [&](int i) {
    double* b = w.factor + i * m;
    FASTCONFIG_ROLLED for (int k = 0; k < m; ++k) b[k] = 0;
    b[i] = w.norms[i];
    FASTCONFIG_ROLLED for (int step = 0; step < m; ++step) {
      const int j = order ? static_cast<int>(order[i * m + step]) : step;
      if (j == i) continue;
      const double along = dot(b, w.cosines + j * m, m);
      if (along < 0) b[j] -= along;
    }
  });
  team_for(team, m, [&](int j) {
    double s = 0;
    FASTCONFIG_ROLLED for (int i = 0; i < m; ++i) s += w.factor[i * m + j];
    w.x[j] = rule.mean ? s / m : s;
  });
}

}  // namespace fastconfig

#pragma once

#include <cstdint>

#include "linalg.hpp"
#include "problem.hpp"

namespace fastconfig {

// GradVac (arXiv:2010.05874, algorithm 1) for a given order; every gradient i on a lane of its own. beta is the first
// parameter, the state is the targets (m, m).
template <class Team>
FASTCONFIG_CALLED void gradvac(const Team& team, const Workspace& w, const Problem& p) {
  const Rule& rule = p.rule;
  const int m = p.m;
  const int64_t* order = rule.order_of(p.index);
  double* targets = rule.state_of(p.index);
  const double beta = rule.parameters[0], least = p.rcond > 0x1p-52 ? p.rcond : 0x1p-52;
  team_for(team, m, [&](int i) {
    double* b = w.factor + i * m;  // gradient i over |g_i|, in units of the unit gradients, while it is raised
    double* along = w.more + i * m;  // its products with all unit gradients
    FASTCONFIG_ROLLED for (int k = 0; k < m; ++k) {
      b[k] = 0;
      along[k] = w.cosines[i * m + k];
    }
    b[i] = 1;
    double squared = 1, parts = 1;
    FASTCONFIG_ROLLED for (int step = 0; step < m; ++step) {
      const int j = order ? static_cast<int>(order[i * m + step]) : step;
      if (j == i || !(w.norms[i] > 0) || !(w.norms[j] > 0)) continue;
      const double length = squared > p.rcond * parts * parts ? sqrt(squared) : 0;
      const double ratio = length > 0 ? along[j] / length : 0;
      const double cosine = ratio < -1 ? -1 : ratio > 1 ? 1 : ratio;
      const double target = targets ? targets[i * m + j] : 0;
      if (cosine < target) {
        const double rest = 1 - target * target;
        const double sine = sqrt(1 - cosine * cosine), wanted = sqrt(rest > least ? rest : least);
        const double taken = length * (target * sine - cosine * wanted) / wanted;
        parts += fabs(b[j] + taken) - fabs(b[j]);
        b[j] += taken;
        FASTCONFIG_ROLLED for (int k = 0; k < m; ++k) along[k] += taken * w.cosines[j * m + k];
        squared = dot(b, along, m);
      }
      if (targets) targets[i * m + j] = target + beta * (cosine - target);
    }
  });
  team_for(team, m, [&](int j) {
    double s = 0;
    FASTCONFIG_ROLLED for (int i = 0; i < m; ++i) s += w.norms[i] * w.factor[i * m + j];
    w.x[j] = s;
  });
}

}  // namespace fastconfig

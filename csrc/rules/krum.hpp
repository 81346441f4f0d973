#pragma once

#include <cfloat>
#include <cmath>

#include "linalg.hpp"
#include "problem.hpp"

namespace fastconfig {

// Krum and Multi-Krum (Blanchard et al. 2017, section 4): the parameters are f, how many gradients may be anything, and how
// many to average. Every score on a lane of its own. Of those that rounding of C leaves equal the first counts. NaN for fewer
// gradients than they need.
template <class Team>
FASTCONFIG_CALLED void krum(const Team& team, const Workspace& w, const Problem& p) {
  const int m = p.m, count = static_cast<int>(p.rule.parameters[1]);
  const int closest = m - 2 - static_cast<int>(p.rule.parameters[0]);
  if (closest < 1 || count > m) {
    team_for(team, m, [&](int i) { w.x[i] = NAN; });
    return;
  }
  double *least = w.y, *most = w.z, size = 0;
  FASTCONFIG_ROLLED for (int i = 0; i < m; ++i) size = fmax(size, w.norms[i]);
  const double inverse = size > 0 ? 1 / size : 0;
  team_for(team, m, [&](int i) {
    double* apart = w.factor + i * m;  // squared distances, in no order
    const double own = w.norms[i] * inverse;
    int end = 0;
    FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) {
      if (j == i) continue;
      const double other = w.norms[j] * inverse, gap = own - other;
      const double angle = 2 - (w.cosines[i * m + j] + w.cosines[j * m + i]);  // the same bits both ways
      apart[end++] = gap * gap + own * other * fmax(angle, 0.0);
    }
    FASTCONFIG_ROLLED for (; end > closest; --end) {  // the greatest leave
      int greatest = 0;
      FASTCONFIG_ROLLED for (int k = 1; k < end; ++k)
        if (apart[k] > apart[greatest]) greatest = k;
      apart[greatest] = apart[end - 1];
    }
    double score = 0;
    FASTCONFIG_ROLLED for (int k = 0; k < end; ++k) score += apart[k];
    const double rounding = 8 * DBL_EPSILON * closest * (own * own + score);
    least[i] = score - rounding;
    most[i] = score + rounding;
    w.x[i] = 0;
  });
  FASTCONFIG_ROLLED for (int round = 0; round < count; ++round) {
    double bound = -INFINITY;
    int best = m;
    FASTCONFIG_ROLLED for (int i = team.lane(); i < m; i += Team::width)
      if (-most[i] > bound) {
        bound = -most[i];
        best = i;
      }
    team.argmax(bound, best);
    double before = -m;
    int first = best;
    FASTCONFIG_ROLLED for (int i = team.lane(); i < m; i += Team::width)
      if (least[i] <= -bound && -i > before) {
        before = -i;
        first = i;
      }
    team.argmax(before, first);
    if (team.lane() == 0) {
      w.x[first] = w.norms[first] / count;
      least[first] = most[first] = INFINITY;
    }
    team.sync();
  }
}

}  // namespace fastconfig

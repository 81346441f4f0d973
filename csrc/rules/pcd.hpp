#pragma once

#include <cfloat>
#include <cmath>

#include "linalg.hpp"
#include "problem.hpp"

namespace fastconfig {

// s_i of PCD, from |g_i|^2 or from their moving averages, which go a call further. Their state: m averages, then the calls.
template <class Team>
FASTCONFIG_HD void scales(const Team& team, const Problem& p, const double* norms, double* s) {
  const int m = p.m;
  const double beta = p.rule.parameters[1], eps = p.rule.parameters[2];
  double* averages = p.rule.state_of(p.index);
  const double calls = averages ? averages[m] + 1 : 0, share = averages ? 1 - pow(beta, calls) : 1;
  team.sync();
  team_for(team, m, [&](int i) {
    double average = norms[i] * norms[i];
    if (averages) average = (averages[i] = beta * averages[i] + (1 - beta) * average) / share;
    s[i] = average + eps > 0 ? 1 / sqrt(average + eps) : 0;
    if (averages && i == 0) averages[m] = calls;
  });
}

// Constraints C_j . y >= wanted_j of j = 1..m - 1, a factor L L^T of C over those in use, and y. Goldfarb and Idnani 1983;
// nearest_in_cone of fastconfig/methods/solvers.py says more.
template <class Team>
struct Cone {
  enum Use { kFree = 0, kUsed = 1, kLetGo = 2 };

  const Team& team;
  const Workspace& w;
  const int m;
  double *const y, *const wanted, *const use, *const slack, *const held;
  int* const used;  // `count` of them, as their rows in the factor
  int count = 0;

  FASTCONFIG_HD Cone(const Team& team, const Workspace& w, int m)
      : team(team), w(w), m(m), y(w.y), wanted(w.more), use(w.more + m), slack(w.schur), held(w.z), used(w.pivots) {}

  // Row `place` of L but its diagonal, of constraint j and the rows before; the squared distance of j from their span.
  FASTCONFIG_HD double factored(int place, int j) const {
    double* row = w.factor + place * m;
    team_for(team, place, [&](int k) { row[k] = w.cosines[j * m + used[k]]; });
    lower_solve(team, w.factor, m, place, row);
    return 1 - team_sum(team, place, [&](int k) { return row[k] * row[k]; });
  }

  FASTCONFIG_HD void enter(int j, double squared) {
    if (team.lane() == 0) {
      w.factor[count * m + count] = sqrt(squared);
      used[count] = j;
      use[j] = kUsed;
    }
    ++count;
    team.sync();
  }

  // What stood behind it in the factor enters again.
  FASTCONFIG_HD void drop(int place) {
    if (team.lane() == 0) {
      y[used[place]] = 0;
      use[used[place]] = kFree;
    }
    const int end = count;
    count = place;
    FASTCONFIG_ROLLED for (int k = place + 1; k < end; ++k) {
      team.sync();
      const int j = used[k];
      const double squared = factored(count, j);
      team.sync();
      enter(j, squared > 0 ? squared : DBL_MIN);
    }
    team.sync();
  }

  // Moves y until all are met. False if they contradict each other by more than what rcond says of the unit vectors.
  FASTCONFIG_CALLED bool meet(double size, double rcond) {
    const double least = fmax(2 * rcond, 1e-12);
    int entering = 0;
    FASTCONFIG_ROLLED for (int step = 0; step < 10 * (m - 1); ++step) {
      const double parts = size + team_sum(team, m, [&](int j) { return fabs(y[j]); });
      double worst = -1;
      int j = 0;
      FASTCONFIG_ROLLED for (int i = 1 + team.lane(); i < m; i += Team::width) {
        const double scale = parts + fabs(wanted[i]);
        slack[i] = dot(w.cosines + i * m, y, m) - wanted[i];
        const double lack = use[i] == kFree ? -slack[i] / (scale > 0 ? scale : 1) : 0;
        if (lack > worst) {
          worst = lack;
          j = i;
        }
      }
      team.argmax(worst, j);
      team.sync();
      if (entering == 0 && !(worst > 1e-13)) return true;
      if (entering > 0) j = entering;
      const double apart = factored(count, j);
      team_for(team, count, [&](int k) { held[k] = w.factor[count * m + k]; });
      upper_solve(team, w.factor, m, count, held);
      double nearest = -INFINITY;  // minus how far y can go until one in use stands in its way
      int leaving = 0;
      FASTCONFIG_ROLLED for (int k = team.lane(); k < count; k += Team::width)
        if (held[k] > 0 && -y[used[k]] / held[k] > nearest) {
          nearest = -y[used[k]] / held[k];
          leaving = k;
        }
      team.argmax(nearest, leaving);
      const double whole = apart > least ? -slack[j] / apart : INFINITY;
      const double length = fmin(-nearest, whole);
      if (length == INFINITY) {
        if (-slack[j] > sqrt(least) * (parts + fabs(wanted[j]))) return false;
        if (team.lane() == 0) use[j] = kLetGo;
        entering = 0;
        team.sync();
        continue;
      }
      team_for(team, count, [&](int k) { y[used[k]] -= length * held[k]; });
      if (team.lane() == 0) y[j] += length;
      entering = whole <= -nearest ? 0 : j;
      if (entering == 0)
        enter(j, apart);
      else
        drop(leaving);
    }
    return true;
  }
};

// PCD (arXiv:2606.29521). The weights are tau of each gradient but the first, or the first parameter is tau of all; beta and
// eps are the others.
template <class Team>
FASTCONFIG_CALLED void pcd(const Team& team, const Workspace& w, const Problem& p) {
  const int m = p.m;
  const double* taus = p.weights();
  double *x = w.x, *lengths = w.z;
  scales(team, p, w.norms, lengths);
  team_for(team, m, [&](int i) { lengths[i] *= w.norms[i]; });
  Cone<Team> cone(team, w, m);
  const double size = lengths[0];
  team_for(team, m, [&](int j) {
    const double share = (taus && j > 0 ? taus[j - 1] : p.rule.parameters[0]) * lengths[j];
    cone.wanted[j] = lengths[j] > 0 ? share - size * w.cosines[j] : 0;
    cone.y[j] = cone.use[j] = 0;
  });
  const bool met = cone.meet(size, p.rcond);
  team.sync();
  team_for(team, m, [&](int j) { x[j] = j == 0 ? size : met ? cone.y[j] : 0; });
  const double squared = team_sum(team, m, [&](int j) { return x[j] * dot(w.cosines + j * m, x, m); });
  const double parts = team_sum(team, m, [&](int j) { return fabs(x[j]); });
  const bool present = w.norms[0] > 0 && squared > p.rcond * parts * parts;
  const double factor = present ? w.norms[0] / sqrt(squared) : 0;
  team.sync();
  team_for(team, m, [&](int j) { x[j] *= factor; });
}

}  // namespace fastconfig

#pragma once

#include <cmath>

#include "linalg.hpp"
#include "problem.hpp"
#include "rounding.hpp"

namespace fastconfig {

// The active set of CAGrad; fastconfig/methods/cagrad.py says how it goes.
template <class Team>
struct ConflictAverse {
  const Team& team;
  const Workspace& w;
  const int m;
  const double ridge;  // on the diagonal of C
  double *mean, *along, *weights, *x;
  int count = 0;  // of the set; w.pivots has it, w.factor its Cholesky factor

  FASTCONFIG_HD ConflictAverse(const Team& team, const Workspace& w, int m, double rcond)
      : team(team), w(w), m(m), ridge(ridge_of(rcond, m)), mean(w.more), along(mean + m),
        weights(along + m), x(w.x) {}

  FASTCONFIG_HD double inverse(int i) const { return mean[i] > 0 ? 1 / mean[i] : 0; }
  FASTCONFIG_HD const double* row(int k) const { return w.cosines + w.pivots[k] * m; }

  // Appends a gradient to the set, and a row to the factor.
  FASTCONFIG_CALLED void enter(int i) {
    double* l = w.factor + count * m;
    FASTCONFIG_ROLLED for (int a = 0; a < count; ++a) {
      const double* of = w.factor + a * m;
      const double s = team_sum(team, a, [&](int j) { return of[j] * l[j]; });
      team.sync();
      if (team.lane() == 0) l[a] = (w.cosines[i * m + w.pivots[a]] - s) / of[a];
      team.sync();
    }
    const double rest = 1 + ridge - team_sum(team, count, [&](int j) { return l[j] * l[j]; });
    if (team.lane() == 0) {
      w.pivots[count] = i;
      l[count] = sqrt(fmax(rest, ridge / 2));
    }
    ++count;
    team.sync();
  }

  // v := L^-T v.
  FASTCONFIG_CALLED void backward(double* v, int k) const {
    FASTCONFIG_ROLLED for (int a = k - 1; a >= 0; --a) {
      const double value = v[a] / w.factor[a * m + a];
      team.sync();
      if (team.lane() == 0) v[a] = value;
      team_for(team, a, [&](int j) { v[j] -= w.factor[a * m + j] * value; });
    }
  }

  // Those of weight zero leave, and the factor is made anew.
  FASTCONFIG_CALLED void without_zeros() {
    const int before = count;
    count = 0;
    FASTCONFIG_ROLLED for (int k = 0; k < before; ++k) {
      const int i = w.pivots[k];
      if (weights[i] > 0) enter(i);
    }
  }

  enum class At { way, best, end };

  // A step to the set's best vector: on the way there a gradient left; or x is there; or rounding ends all.
  FASTCONFIG_CALLED At advance(double radius, double& level) {
    double *p = w.y, *q = w.z, *z = w.schur;
    FASTCONFIG_ROLLED for (int a = 0; a < count; ++a) {
      const double* l = w.factor + a * m;
      const double before_p = team_sum(team, a, [&](int j) { return l[j] * p[j]; });
      const double before_q = team_sum(team, a, [&](int j) { return l[j] * q[j]; });
      if (team.lane() == 0) {
        p[a] = (inverse(w.pivots[a]) - before_p) / l[a];
        q[a] = (along[w.pivots[a]] - before_q) / l[a];
      }
      team.sync();
    }
    const double squared = team_sum(team, count, [&](int a) { return p[a] * p[a]; });
    const double mu = team_sum(team, count, [&](int a) { return p[a] * q[a]; }) / squared;
    const double off = team_sum(team, count, [&](int a) { return (q[a] - mu * p[a]) * (q[a] - mu * p[a]); });
    const double gap = radius * radius - off;
    const double over = gap > 0 ? sqrt(gap / squared) : 0;
    level = mu + over;
    team.sync();
    team_for(team, count, [&](int a) { z[a] = over * p[a] - (q[a] - mu * p[a]); });
    backward(z, count);
    team_for(team, count, [&](int a) {  // the way of the weights
      const int i = w.pivots[a];
      const double toward = z[a] * inverse(i);
      p[a] = gap > 0 ? toward / (over * squared) - weights[i] : toward;
    });
    double nearest = -INFINITY;
    int at = 0;
    FASTCONFIG_ROLLED for (int a = team.lane(); a < count; a += Team::width) {
      const double weight = weights[w.pivots[a]];
      const bool ends = gap > 0 ? !(z[a] > 0) : p[a] < 0;
      const double ratio = weight > 0 ? -weight / p[a] : 0;
      if (ends && -ratio > nearest) {
        nearest = -ratio;
        at = a;
      }
    }
    team.argmax(nearest, at);
    const bool leaves = nearest > -INFINITY;
    const double step = !leaves ? (gap > 0 ? 1 : 0) : gap > 0 ? fmin(-nearest, 1.0) : -nearest;
    team.sync();
    team_for(team, count, [&](int a) {
      const int i = w.pivots[a];
      weights[i] = leaves && a == at ? 0 : fmax(weights[i] + step * p[a], 0.0);
    });
    if (leaves) {
      without_zeros();
      return At::way;
    }
    if (!(gap > 0)) return At::end;
    team_for(team, m, [&](int i) { x[i] = 0; });
    team_for(team, count, [&](int a) { x[w.pivots[a]] = z[a]; });
    return At::best;
  }

  // The gradient furthest below the level enters; false if there is none.
  FASTCONFIG_CALLED bool found(double level) {
    double *below = w.y, *v = w.schur;
    const double size = team_sum(team, m, [&](int i) { return mean[i] + fabs(x[i]); });
    team_for(team, count, [&](int a) { v[a] = x[w.pivots[a]]; });
    team_for(team, m, [&](int i) {
      double product = along[i];
      FASTCONFIG_ROLLED for (int a = 0; a < count; ++a) product += row(a)[i] * v[a];
      below[i] = mean[i] > 0 ? level * inverse(i) - product : -1;
    });
    team_for(team, count, [&](int a) { below[w.pivots[a]] = -1; });
    double most = -1;
    int i = 0;
    FASTCONFIG_ROLLED for (int j = team.lane(); j < m; j += Team::width)
      if (below[j] > most) {
        most = below[j];
        i = j;
      }
    team.argmax(most, i);
    if (!(most > ridge * size)) return false;
    enter(i);
    return true;
  }
};

// Whether not all of sum_i x_i u_i is rounding of C.
template <class Team>
FASTCONFIG_CALLED bool certain(const Team& team, const Workspace& w, const double* x, int m, double rcond) {
  const double squared = team_sum(team, m, [&](int i) { return x[i] * dot(w.cosines + i * m, x, m); });
  const double whole = team_sum(team, m, [&](int i) { return fabs(x[i]); });
  team.sync();
  return certain(squared, whole, rcond);
}

// CAGrad (Liu et al. 2021, algorithm 1). Parameters: c, and what the update is multiplied by.
template <class Team>
FASTCONFIG_CALLED void cagrad(const Team& team, const Workspace& w, const Problem& p) {
  const int m = p.m;
  const double c = p.rule.parameters[0], factor = p.rule.parameters[1];
  double most = 0;
  FASTCONFIG_ROLLED for (int i = 0; i < m; ++i) most = fmax(most, w.norms[i]);
  team_for(team, m, [&](int i) { w.x[i] = most > 0 ? w.norms[i] / m : 0; });
  if (c == 0 || most == 0) return;

  ConflictAverse<Team> set(team, w, m, p.rcond);
  double *mean = set.mean, *along = set.along;
  team_for(team, m, [&](int i) {
    mean[i] = w.norms[i] / (m * most);
    set.weights[i] = w.x[i] = 0;
  });
  team_for(team, m, [&](int i) { along[i] = dot(w.cosines + i * m, mean, m); });
  if (!certain(team, w, mean, m, p.rcond)) return;
  const double radius = c * sqrt(team_sum(team, m, [&](int i) { return mean[i] * along[i]; }));
  double best = -INFINITY;
  int first = 0;
  FASTCONFIG_ROLLED for (int i = team.lane(); i < m; i += Team::width)
    if (mean[i] > 0 && -mean[i] * (along[i] + radius) > best) {
      best = -mean[i] * (along[i] + radius);
      first = i;
    }
  team.argmax(best, first);
  if (team.lane() == 0) {
    set.weights[first] = 1;
    w.x[first] = radius;
  }
  team.sync();
  set.enter(first);
  FASTCONFIG_ROLLED for (int step = 0; step < 4 * m + 10 && set.count > 0; ++step) {
    double level = 0;
    using At = typename ConflictAverse<Team>::At;
    const At at = set.advance(radius, level);
    if (at == At::end || (at == At::best && !set.found(level))) break;
  }
  const bool away = certain(team, w, w.x, m, p.rcond);
  team_for(team, m, [&](int i) { w.x[i] += mean[i]; });
  const bool sure = away && certain(team, w, w.x, m, p.rcond);
  team_for(team, m, [&](int i) { w.x[i] = sure ? factor * most * w.x[i] : 0; });
}

}  // namespace fastconfig

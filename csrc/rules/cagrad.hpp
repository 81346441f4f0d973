#pragma once

#include <cfloat>
#include <cmath>

#include "linalg.hpp"
#include "problem.hpp"

namespace fastconfig {

// The active set of CAGrad; fastconfig/methods/cagrad.py says how it goes.
template <class Team>
struct ConflictAverse {
  const Team& team;
  const Workspace& w;
  const int m;
  const double rcond;
  double *mean, *along, *weights, *parts, *state, *x;
  int count = 0;  // of the set; w.pivots has it, w.factor its Cholesky factor
  bool stationary = false;

  FASTCONFIG_HD ConflictAverse(const Team& team, const Workspace& w, int m, double rcond)
      : team(team), w(w), m(m), rcond(rcond), mean(w.more), along(mean + m), weights(along + m), parts(weights + m),
        state(parts + m), x(w.x) {}

  FASTCONFIG_HD double inverse(int i) const { return mean[i] > 0 ? 1 / mean[i] : 0; }
  FASTCONFIG_HD const double* row(int k) const { return w.cosines + w.pivots[k] * m; }

  // Appends a row to the factor; what the gradient is made of goes to `parts`. The squared rest.
  FASTCONFIG_CALLED double appended(int i, int k) const {
    double* l = w.factor + k * m;
    FASTCONFIG_ROLLED for (int a = 0; a < k; ++a) {
      const double* of = w.factor + a * m;
      const double s = team_sum(team, a, [&](int j) { return of[j] * l[j]; });
      team.sync();
      if (team.lane() == 0) l[a] = (w.cosines[i * m + w.pivots[a]] - s) / of[a];
      team.sync();
    }
    const double rest = 1 - team_sum(team, k, [&](int j) { return l[j] * l[j]; });
    team_for(team, k, [&](int j) { parts[j] = l[j]; });
    backward(parts, k);
    return rest;
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

  FASTCONFIG_HD void enter(int i, double rest) {
    if (team.lane() == 0) {
      w.pivots[count] = i;
      w.factor[count * m + count] = sqrt(rest);
    }
    ++count;
    team.sync();
  }

  // Those of weight zero leave, and the factor is made anew.
  FASTCONFIG_CALLED void without_zeros() {
    const int before = count;
    count = 0;
    FASTCONFIG_ROLLED for (int k = 0; k < before; ++k) {
      const int i = w.pivots[k];
      if (!(weights[i] > 0)) continue;
      const double rest = appended(i, count);
      if (rest > 0)
        enter(i, rest);
      else if (team.lane() == 0)
        weights[i] = 0;
      team.sync();
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
    if (step > 0)
      team_for(team, m, [&](int i) { state[i] = 0; });  // nothing is blocked any more
    else if (leaves && team.lane() == 0)
      state[w.pivots[at]] = 1;
    team.sync();
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
      below[i] = mean[i] > 0 && state[i] == 0 ? level * inverse(i) - product : -1;
    });
    team_for(team, count, [&](int a) { below[w.pivots[a]] = -1; });
    FASTCONFIG_ROLLED for (int tries = 0; tries < m; ++tries) {
      double most = -1;
      int i = 0;
      FASTCONFIG_ROLLED for (int j = team.lane(); j < m; j += Team::width)
        if (below[j] > most) {
          most = below[j];
          i = j;
        }
      team.argmax(most, i);
      if (!(most > 8 * DBL_EPSILON * size)) return false;
      const double rest = fmax(appended(i, count), 0.0);
      const double whole = 1 + team_sum(team, count, [&](int j) { return fabs(parts[j]); });
      const bool dependent = rest <= fmax(2 * rcond, rcond / 64 * whole * whole);
      const double apart = dependent ? sqrt(fmax(rest - 4 * DBL_EPSILON * whole * whole, 0.0)) : 0;
      const double noise = 8 * DBL_EPSILON * size * whole + 2 * apart * size;
      if (most > noise) {
        if (!dependent)
          enter(i, rest);
        else
          exchange(i, sqrt(rcond) * whole);
        return !stationary;
      }
      if (team.lane() == 0) below[i] = -1;
      team.sync();
    }
    return false;
  }

  // A gradient that depends on the set takes the place of one of it, of which it is made by more than `least`.
  FASTCONFIG_CALLED void exchange(int i, double least) {
    double nearest = -INFINITY;
    int at = 0;
    FASTCONFIG_ROLLED for (int a = team.lane(); a < count; a += Team::width) {
      const int j = w.pivots[a];
      const double share = -weights[j] / (parts[a] * inverse(j));
      if (parts[a] > least && share > nearest) {
        nearest = share;
        at = a;
      }
    }
    team.argmax(nearest, at);
    if (nearest == -INFINITY) {  // it is the negative of a combination of the others
      stationary = true;
      return;
    }
    team.sync();
    team_for(team, count, [&](int a) {
      const int j = w.pivots[a];
      weights[j] = a == at ? 0 : fmax(weights[j] + nearest * parts[a] * inverse(j), 0.0);
    });
    if (team.lane() == 0) weights[i] = -nearest * inverse(i);
    team.sync();
    const double sum = team_sum(team, m, [&](int j) { return weights[j]; });
    team.sync();
    team_for(team, m, [&](int j) { weights[j] /= sum; });
    without_zeros();
    const double rest = appended(i, count);
    if (rest > 0)
      enter(i, rest);
    else if (team.lane() == 0)
      weights[i] = 0;
    team.sync();
  }
};

// Whether not all of sum_i x_i u_i is rounding of C.
template <class Team>
FASTCONFIG_CALLED bool certain(const Team& team, const Workspace& w, const double* x, int m, double rcond) {
  const double squared = team_sum(team, m, [&](int i) { return x[i] * dot(w.cosines + i * m, x, m); });
  const double whole = team_sum(team, m, [&](int i) { return fabs(x[i]); });
  team.sync();
  return squared > fmax(rcond / 8, 8 * DBL_EPSILON) * whole * whole;
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
    set.weights[i] = set.state[i] = w.x[i] = 0;
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
  set.enter(first, 1);
  FASTCONFIG_ROLLED for (int step = 0; step < 4 * m + 10 && set.count > 0; ++step) {
    double level = 0;
    using At = typename ConflictAverse<Team>::At;
    const At at = set.advance(radius, level);
    if (at == At::end || (at == At::best && !set.found(level))) break;
  }
  const bool away = certain(team, w, w.x, m, p.rcond);
  team_for(team, m, [&](int i) { w.x[i] += mean[i]; });
  const bool sure = !set.stationary && away && certain(team, w, w.x, m, p.rcond);
  team_for(team, m, [&](int i) { w.x[i] = sure ? factor * most * w.x[i] : 0; });
}

}  // namespace fastconfig

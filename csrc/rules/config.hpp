#pragma once

#include <cmath>
#include <cstdint>

#include "linalg.hpp"
#include "problem.hpp"

namespace fastconfig {

// The length that the Track* models scale every gradient to, over the non-zero gradients; 0 if there are none.
template <class Team>
FASTCONFIG_CALLED double tracked(const Team& team, const double* norms, int m, const Rule& rule) {
  if (rule.length == Length::specific) return norms[rule.track_id];
  double least = INFINITY, most = 0;
  FASTCONFIG_ROLLED for (int i = 0; i < m; ++i) {
    if (norms[i] > 0 && norms[i] < least) least = norms[i];
    if (norms[i] > most) most = norms[i];
  }
  if (most == 0) return 0;
  if (rule.length == Length::minimum) return least;
  if (rule.length == Length::maximum) return most;
  const double count = team_sum(team, m, [&](int i) { return norms[i] > 0 ? 1.0 : 0.0; });
  if (rule.length == Length::harmonic)
    return count / team_sum(team, m, [&](int i) { return norms[i] > 0 ? 1 / norms[i] : 0; });
  if (rule.length == Length::arithmetic) return team_sum(team, m, [&](int i) { return norms[i]; }) / count;
  return exp(team_sum(team, m, [&](int i) { return norms[i] > 0 ? log(norms[i]) : 0; }) / count);
}

// ConFIG (arXiv:2408.11104, equations 2 and 3): x = pinv(C) w, scaled by the length model.
template <class Team>
FASTCONFIG_HD void config(const Team& team, const Workspace& w, const Problem& p) {
  const double *gram = p.gram, *weights = p.weights();
  const Rule& rule = p.rule;
  const int m = p.m;
  team_for(team, m, [&](int i) { w.x[i] = w.norms[i] > 0 ? (weights ? weights[i] : 1.0) : 0.0; });
  pinv_apply(team, w, m, p.rcond);
  if (rule.length == Length::none) return;
  team_for(team, m, [&](int i) { w.z[i] = w.inverse[i] * w.x[i]; });
  team_for(team, m, [&](int i) {  // unit gradients on the direction; exactly one on themselves
    const double* row = gram + i * m;
    const double others = dot(row, w.z, i) + dot(row + i + 1, w.z + i + 1, m - i - 1);
    w.y[i] = w.norms[i] > 0 ? w.x[i] + w.inverse[i] * others : 0;
  });
  const double squared = team_sum(team, m, [&](int i) { return w.x[i] * w.y[i]; });
  const bool projection = rule.length == Length::projection;
  double total = team_sum(team, m, [&](int i) { return projection ? w.norms[i] * w.y[i] : w.y[i]; });
  if (!projection) total *= tracked(team, w.norms, m, rule);
  const double scale = squared > 0 ? total / squared : 0;
  team.sync();
  team_for(team, m, [&](int i) { w.x[i] *= scale; });
}

}  // namespace fastconfig

#pragma once

#include <cfloat>
#include <cmath>

#include "linalg.hpp"
#include "problem.hpp"

namespace fastconfig {

// Newton's method for C b = w b^-p, b > 0; fastconfig/methods/newton.py says why it goes the way it goes.
namespace newton {

constexpr int kNashSteps = 30;
constexpr int kFairSteps = 200;
constexpr double kToTheEdge = 0.9;

// x := (S C S + shift)^-1 x, S = diag(scale), with scratch memory h; false if a pivot is not positive.
template <class Team>
FASTCONFIG_CALLED bool solved(const Team& team, const double* c, const double* scale, double shift, int m, double* h,
                              double* x) {
  const double surely = 1 + 4 * m * DBL_EPSILON;  // what rounding may have taken from the eigenvalues of C
  team_parts(team, m, [&](const auto& part, int i) {
    FASTCONFIG_ROLLED for (int j = part.lane(); j < m; j += part.width)
      h[i * m + j] = i == j ? scale[i] * surely * scale[i] + shift : scale[i] * c[i * m + j] * scale[j];
  });
  return solve_positive(team, h, m, m, x);
}

template <class Team, class F>
FASTCONFIG_HD double team_max(const Team& team, int n, F f) {
  double most = -INFINITY;
  int at = 0;
  FASTCONFIG_ROLLED for (int i = team.lane(); i < n; i += Team::width) most = fmax(most, f(i));
  team.argmax(most, at);
  return most;
}

// The t for which 1/2 |1 + t s|^2 in K = B C B less sum log(1 + t s) is about least.
template <class Team>
FASTCONFIG_CALLED double line_search(const Team& team, const double* s, double slope, double bend, int m) {
  double low = 0, high = 1 / fmax(team_max(team, m, [&](int i) { return -s[i]; }), 1e-30);
  double t = fmin(kToTheEdge * high, 1.0);
  FASTCONFIG_ROLLED for (int k = 0; k < 8; ++k) {
    const double sum = team_sum(team, m, [&](int i) { return s[i] / (1 + t * s[i]); });
    const double squares = team_sum(team, m, [&](int i) { return s[i] / (1 + t * s[i]) * (s[i] / (1 + t * s[i])); });
    const double rise = slope + bend * t - sum;
    (rise < 0 ? low : high) = t;
    const double next = t - rise / (bend + squares);
    const bool found = fabs(next - t) < 1e-2 * t;
    t = next > low && next < high ? next : fmin((low + high) / 2, low == 0 ? t : 4 * low);
    if (found) break;
  }
  return t;
}

// w.x := b with C b = 1 / b, 1 for zero gradients; false if a combination of the others vanishes.
template <class Team>
FASTCONFIG_CALLED bool nash_point(const Team& team, const Workspace& w, int m, double rcond) {
  double *b = w.x, *shares = w.y, *s = w.z, *along = w.schur, *c = w.cosines;
  const auto alive = [&](int i) { return w.norms[i] > 0 ? 1.0 : 0.0; };
  const auto own = team.leader();  // every warp adds up for itself, without a barrier of the whole
  const double count = team_sum(own, m, alive);
  double total = team_sum(own, m, [&](int i) {
    double sum = 0;
    FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) sum += c[i * m + j];
    return alive(i) * sum;  // of alive ones: the others have zeros beside their one
  });
  total = fmax(total, 1e-6 * count);
  team_for(team, m, [&](int i) { b[i] = w.norms[i] > 0 ? sqrt(count / total) : 1; });
  const double longest = count / fmax(rcond, DBL_EPSILON);
  double last = INFINITY;
  FASTCONFIG_ROLLED for (int step = 0; step < kNashSteps; ++step) {
    team_parts(team, m, [&](const auto& part, int i) {
      const double share = b[i] * team_sum(part, m, [&](int j) { return c[i * m + j] * b[j]; });
      if (part.lane() > 0) return;
      shares[i] = share;
      s[i] = 1 - share;
    });
    if (!solved(team, c, b, 1, m, w.factor, s)) return false;
    const double decrement = team_sum(own, m, [&](int i) { return (1 - shares[i]) * s[i]; });
    if (!std::isfinite(decrement)) return false;
    const bool near = decrement < 1. / 16;  // from here on the error is squared in every step
    if (near && decrement > last / 4) break;  // or it is rounding
    double t = 1;
    if (!near) {
      team_for(team, m, [&](int i) { along[i] = b[i] * s[i]; });
      double* const bends = w.factor;
      team_parts(team, m, [&](const auto& part, int i) {
        const double product = team_sum(part, m, [&](int j) { return c[i * m + j] * along[j]; });
        if (part.lane() == 0) bends[i] = along[i] * product;
      });
      const double bend = team_sum(own, m, [&](int i) { return bends[i]; });
      const double slope = team_sum(own, m, [&](int i) { return shares[i] * s[i]; });
      t = line_search(own, s, slope, bend, m);
    }
    team.sync();
    team_for(team, m, [&](int i) { b[i] *= 1 + t * s[i]; });
    if (near && decrement < 1e-18) break;
    if (!(team_sum(own, m, [&](int i) { return alive(i) * b[i] * b[i]; }) < longest)) return false;
    last = near ? decrement : INFINITY;
    team.sync();
  }
  return team_sum(own, m, [&](int i) { return alive(i) * b[i] * b[i]; }) < longest;
}

// w.x := b with C b = w b^-p, from that of nash_point; log w in `logs`.
template <class Team>
FASTCONFIG_CALLED void fair_point(const Team& team, const Workspace& w, const double* logs, double* t, double* scale,
                                  double power, int m) {
  double *b = w.x, *rest = w.y, *s = w.z, *size = w.schur, *c = w.cosines;
  const auto own = team.leader();
  team_for(team, m, [&](int i) { t[i] = 1 / b[i]; });
  double last = INFINITY;
  FASTCONFIG_ROLLED for (int step = 0; step < kFairSteps; ++step) {
    team_for(team, m, [&](int i) { rest[i] = logs[i] - log(t[i]) - power * log(b[i]); });
    const double error = team_max(own, m, [&](int i) { return fabs(rest[i]); });
    if (error < 1e-15 || (error < 1e-8 && error > last / 2)) return;
    last = error;
    team_parts(team, m, [&](const auto& part, int i) {
      const double product = team_sum(part, m, [&](int j) { return c[i * m + j] * b[j]; });
      if (part.lane() > 0) return;
      scale[i] = sqrt(b[i] / t[i]);
      size[i] = sqrt(b[i] * t[i]);
      s[i] = size[i] * rest[i] + scale[i] * (t[i] - product);
    });
    if (!solved(team, c, scale, power, m, w.factor, s)) return;
    team_for(team, m, [&](int i) { s[i] /= size[i]; });
    const double lowest = -team_max(own, m, [&](int i) { return fmax(-s[i], power * s[i] - rest[i]); });
    const double sound = team_sum(own, m, [&](int i) { return std::isfinite(s[i]) ? 0.0 : 1.0; });
    if (sound > 0) return;
    const double length = kToTheEdge / fmax(-lowest, kToTheEdge);
    team.sync();
    team_for(team, m, [&](int i) {
      b[i] *= 1 + length * s[i];
      t[i] *= 1 + length * (rest[i] - power * s[i]);
    });
  }
}

}  // namespace newton
}  // namespace fastconfig

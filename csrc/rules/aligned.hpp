#pragma once

#include <cfloat>
#include <cmath>

#include "linalg.hpp"
#include "problem.hpp"

namespace fastconfig {

// C = L L^T, the longest rest of a gradient first, L (m, m) in the gradients' own order; fastconfig/methods/aligned.py
// says more. The rank.
template <class Team>
FASTCONFIG_CALLED int longest_first(const Team& team, const Workspace& w, double* parts, double* size, double most, int m,
                                    double rcond) {
  double *l = w.factor, *rest = w.schur;
  team_for(team, m, [&](int i) {
    rest[i] = w.norms[i] > 0 ? 1 : 0;
    size[i] = w.norms[i] / most;
    FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) l[i * m + j] = parts[i * m + j] = 0;
  });
  FASTCONFIG_ROLLED for (int k = 0; k < m; ++k) {
    double best = 0;
    int pivot = 0;
    FASTCONFIG_ROLLED for (int i = team.lane(); i < m; i += Team::width) {
      double whole = 1;
      FASTCONFIG_ROLLED for (int j = 0; j < k; ++j) whole += fabs(parts[i * m + j]);
      const double value = rest[i] * (size[i] * size[i]);
      if (rest[i] > fmax(2 * rcond, rcond / 64 * whole * whole) && value > best) {
        best = value;
        pivot = i;
      }
    }
    team.argmax(best, pivot);
    if (!(best > 0)) return k;
    const double root = sqrt(rest[pivot]);
    team.sync();
    team_for(team, m, [&](int i) {
      if (i == pivot || rest[i] == -INFINITY) return;
      const double value = (w.cosines[i * m + pivot] - dot(l + i * m, l + pivot * m, k)) / root;
      l[i * m + k] = value;
      rest[i] -= value * value;
      const double part = value / root;
      FASTCONFIG_ROLLED for (int j = 0; j < k; ++j) parts[i * m + j] -= part * parts[pivot * m + j];
      parts[i * m + k] = part;
    });
    if (team.lane() == 0) {
      l[pivot * m + k] = root;
      rest[pivot] = -INFINITY;
      w.pivots[k] = pivot;
    }
    team.sync();
  }
  return m;
}

template <class Team>
FASTCONFIG_HD void turn(const Team& team, double* __restrict left, double* __restrict right, double scale, double sine,
                        int n) {
  FASTCONFIG_ROLLED for (int k = team.lane(); k < n; k += Team::width) {
    const double held = left[k];
    left[k] = scale * held - sine * right[k];
    right[k] = sine * held + scale * right[k];
  }
  team.sync();
}

// One-sided Jacobi: the rows of v (r, m) become orthogonal, those of j (r, r), the identity at first, turn with them.
template <class Team>
FASTCONFIG_CALLED void rotate(const Team& team, double* v, double* j, double* squares, int r, int m) {
  const double tolerance = (m * DBL_EPSILON / 4) * (m * DBL_EPSILON / 4);
  FASTCONFIG_ROLLED for (int sweep = 0; sweep < 12; ++sweep) {
    team_for(team, r, [&](int a) { squares[a] = dot(v + a * m, v + a * m, m); });
    double largest = 0;
    FASTCONFIG_ROLLED for (int a = 0; a + 1 < r; ++a)
      FASTCONFIG_ROLLED for (int b = a + 1; b < r; ++b) {
        double *one = v + a * m, *other = v + b * m;
        const double first = squares[a], second = squares[b];
        const double product = Team::width == 1 ? dot(one, other, m) : team_sum(team, m, [&](int k) { return one[k] * other[k]; });
        team.sync();
        const double cosine = product * product / (first * second);  // squared
        if (!(cosine > tolerance)) continue;
        largest = fmax(largest, cosine);
        const double gap = second - first;
        const double tangent = (gap < 0 ? -2 : 2) * product / (fabs(gap) + sqrt(gap * gap + 4 * product * product));
        const double scale = 1 / sqrt(1 + tangent * tangent);
        turn(team, one, other, scale, scale * tangent, m);
        turn(team, j + a * r, j + b * r, scale, scale * tangent, r);
        if (team.lane() == 0) {
          squares[a] = first - tangent * product;
          squares[b] = second + tangent * product;
        }
        team.sync();
      }
    if (largest < 1e-16) break;  // the next ones would be below its square
  }
}

// Aligned-MTL (Senushkin et al. 2023). The parameter: 0 takes the least eigenvalue, 1 the median, 2 the mean.
template <class Team>
FASTCONFIG_CALLED void aligned(const Team& team, const Workspace& w, const Problem& p) {
  const int m = p.m;
  const double* weights = p.weights();
  double *turned = w.more, *size = turned + m * m, *lengths = size + m, *y = w.y, *z = w.z, *l = w.factor, *v = w.cosines;
  double most = 0;
  FASTCONFIG_ROLLED for (int i = 0; i < m; ++i) most = fmax(most, w.norms[i]);
  team_for(team, m, [&](int i) { w.x[i] = 0; });
  if (most == 0) return;
  const int r = longest_first(team, w, turned, size, most, m, p.rcond);
  team_for(team, r, [&](int a) {
    FASTCONFIG_ROLLED for (int i = 0; i < m; ++i) v[a * m + i] = size[i] * l[i * m + a];
    FASTCONFIG_ROLLED for (int b = 0; b < r; ++b) turned[a * r + b] = a == b;
  });
  rotate(team, v, turned, lengths, r, m);
  team_for(team, r, [&](int a) {
    double share = 0;
    FASTCONFIG_ROLLED for (int i = 0; i < m; ++i) share += v[a * m + i] * (weights ? weights[i] : 1. / m);
    lengths[a] = sqrt(dot(v + a * m, v + a * m, m));
    z[a] = share / lengths[a];
  });
  double scale = 0;
  FASTCONFIG_ROLLED for (int a = 0; a < r; ++a) {
    const double length = lengths[a];
    if (p.rule.parameters[0] == 2) {
      scale += length * length / r;
      continue;
    }
    int shorter = 0;
    FASTCONFIG_ROLLED for (int b = 0; b < r; ++b) shorter += lengths[b] < length || (lengths[b] == length && b < a);
    if (shorter == (p.rule.parameters[0] == 1 ? (r - 1) / 2 : 0)) scale = length * length;
  }
  scale = most * sqrt(scale);
  team_for(team, r, [&](int b) {
    double sum = 0;
    FASTCONFIG_ROLLED for (int a = 0; a < r; ++a) sum += turned[a * r + b] * z[a];
    y[b] = scale * sum;
  });
  // the vector with the coordinates y in the base of the Cholesky factor: L^T x = y
  if (r == m) {
    FASTCONFIG_ROLLED for (int k = m - 1; k >= 0; --k) {
      const int i = w.pivots[k];
      const double value = y[k] / l[i * m + k];
      team.sync();
      if (team.lane() == 0) w.x[i] = value;
      team_for(team, k, [&](int a) { y[a] -= l[i * m + a] * value; });
    }
    return;
  }
  team_for(team, r * r, [&](int e) {
    const int a = e / r, b = e % r;
    double sum = 0;
    FASTCONFIG_ROLLED for (int i = 0; i < m; ++i) sum += l[i * m + a] * l[i * m + b];
    v[a * m + b] = sum;
  });
  cholesky(team, v, m, r);
  cholesky_solve(team, v, m, r, y);
  team_for(team, m, [&](int i) { w.x[i] = dot(l + i * m, y, r); });
}

}  // namespace fastconfig

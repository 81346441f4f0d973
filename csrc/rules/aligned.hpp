#pragma once

#include <cfloat>
#include <cmath>

#include "linalg.hpp"
#include "problem.hpp"

namespace fastconfig {

// C = L L^T, the longest rest of a gradient first, L (m, m) in the gradients' own order; fastconfig/methods/aligned.py
// says more. What is left of C lies in its place, what the gradients are made of in `parts`. The rank.
template <class Team>
FASTCONFIG_CALLED int longest_first(const Team& team, const Workspace& w, double* parts, double* size, double* most_parts,
                                    double most, int m, double rcond) {
  double *l = w.factor, *rest = w.schur, *left = w.cosines;
  team_parts(team, m, [&](const auto& part, int i) {
    FASTCONFIG_ROLLED for (int j = part.lane(); j < m; j += part.width) l[i * m + j] = parts[i * m + j] = 0;
    if (part.lane() > 0) return;
    rest[i] = w.norms[i] > 0 ? 1 : 0;
    size[i] = w.norms[i] / most;
    most_parts[i] = 1;
  });
  FASTCONFIG_ROLLED for (int k = 0; k < m; ++k) {
    // by every part for itself: there is no barrier in it
    const auto part = team.part();
    const auto independent = [&](int i) {
      const auto surely = [&](double whole) { return rest[i] > fmax(2 * rcond, rcond / 64 * whole * whole); };
      if (surely(most_parts[i]) || !surely(1)) return surely(1);
      double whole = 1;
      FASTCONFIG_ROLLED for (int j = 0; j < k; ++j) whole += fabs(parts[i * m + j]);
      return surely(whole);
    };
    double best = 0;
    int pivot = 0;
    FASTCONFIG_ROLLED for (int i = part.lane(); i < m; i += part.width) {
      const double value = rest[i] * (size[i] * size[i]);
      if (value > best && independent(i)) {
        best = value;
        pivot = i;
      }
    }
    part.argmax(best, pivot);
    if (!(best > 0)) return k;
    const double inverse = reciprocal_root(rest[pivot]), root = rest[pivot] * inverse, whole = most_parts[pivot];
    team.sync();
    team_parts(team, m, [&](const auto& part, int i) {
      const double *row = left + pivot * m, *of = parts + pivot * m;
      if (i == pivot) {
        if (part.lane() > 0) return;
        l[i * m + k] = root;
        rest[i] = -INFINITY;
        w.pivots[k] = i;
        return;
      }
      if (rest[i] == -INFINITY) return;
      const double value = left[i * m + pivot] * inverse, share = value * inverse;
      FASTCONFIG_ROLLED for (int j = part.lane(); j < m; j += part.width) {
        if (j != pivot) left[i * m + j] -= share * row[j];
        if (j < k) parts[i * m + j] -= share * of[j];
      }
      part.sync();
      if (part.lane() > 0) return;
      l[i * m + k] = value;
      parts[i * m + k] = share;
      most_parts[i] += fabs(share) * whole;
      rest[i] -= value * value;
    });
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
}

// The rows a and b of v, and those of j, become orthogonal. How far from it they were: 0 if they were, 1 if far.
template <class Part>
FASTCONFIG_HD int turned_pair(const Part& part, double* v, double* j, double* squares, int a, int b, int r, int m) {
  const double tolerance = (m * DBL_EPSILON / 4) * (m * DBL_EPSILON / 4);
  double *one = v + a * m, *other = v + b * m;
  const double first = squares[a], second = squares[b];
  const double product = Part::width == 1 ? dot(one, other, m) : team_sum(part, m, [&](int k) { return one[k] * other[k]; });
  const double squared = product * product, both = first * second;
  if (!(squared > tolerance * both)) return 0;
  // of the tangent t: half of the greater angle's cosine and 1/2 more are 1 / (1 + t^2)
  const double gap = second - first, by = reciprocal_root(gap * gap + 4 * squared);
  const double share = 0.5 + 0.5 * fabs(gap) * by, secant = reciprocal_root(share), tangent_by = by * secant * secant;
  const double scale = share * secant, sine = (gap < 0 ? -product : product) * by * secant;
  turn(part, one, other, scale, sine, m);
  turn(part, j + a * r, j + b * r, scale, sine, r);
  if (part.lane() == 0) {
    const double moved = (gap < 0 ? -squared : squared) * tangent_by;
    squares[a] = first - moved;
    squares[b] = second + moved;
  }
  return squared >= 1e-16 * both;
}

// One-sided Jacobi: the rows of v (r, m) become orthogonal, those of j (r, r), the identity at first, turn with them. In each
// round every row meets one other. far: of every meeting of a round, whether rows were far from orthogonal in a sweep.
template <class Team>
FASTCONFIG_CALLED void rotate(const Team& team, double* v, double* j, double* squares, double* far, int r, int m) {
  const int last = r - 1 + r % 2, meetings = (last + 1) / 2;  // an odd row pauses
  FASTCONFIG_ROLLED for (int sweep = 0; sweep < 12; ++sweep) {
    team_parts(team, r, [&](const auto& part, int a) {
      const double square = team_sum(part, m, [&](int k) { return v[a * m + k] * v[a * m + k]; });
      if (part.lane() > 0) return;
      squares[a] = square;
      if (a < meetings) far[a] = 0;
    });
    FASTCONFIG_ROLLED for (int round = 0; round < last; ++round)
      team_parts(team, meetings, [&](const auto& part, int number) {
        int a = round - number, b = round + number;
        a += a < 0 ? last : 0;
        b = number == 0 ? last : b - (b < last ? 0 : last);
        if (a >= r || b >= r) return;
        if (turned_pair(part, v, j, squares, a < b ? a : b, a < b ? b : a, r, m) && part.lane() == 0) far[number] = 1;
      });
    const auto part = team.part();
    const bool again = team_sum(part, meetings, [&](int number) { return far[number]; }) > 0;
    team.sync();
    if (!again) break;  // the next ones would be below the square of what was far
  }
}

// w.x := the vector with the coordinates w.y in the base of the Cholesky factor of rank r: L^T x = y.
template <class Team>
FASTCONFIG_CALLED void of_coordinates(const Team& team, const Workspace& w, int r, int m) {
  double *l = w.factor, *v = w.cosines, *y = w.y;
  if (r == m) {
    team_for(team, m, [&](int k) { w.schur[k] = 1 / l[w.pivots[k] * m + k]; });
    team_leads(team, [&](const auto& leader) {
      FASTCONFIG_ROLLED for (int k = m - 1; k > 0; --k) {
        const double *row = l + w.pivots[k] * m, value = y[k] * w.schur[k];
        team_for(leader, k, [&](int a) { y[a] -= row[a] * value; });
      }
    });
    team_for(team, m, [&](int k) { w.x[w.pivots[k]] = y[k] * w.schur[k]; });
    return;
  }
  team_parts(team, r, [&](const auto& part, int a) {
    FASTCONFIG_ROLLED for (int b = part.lane(); b < r; b += part.width) {
      double sum = 0;
      FASTCONFIG_ROLLED for (int i = 0; i < m; ++i) sum += l[i * m + a] * l[i * m + b];
      v[a * m + b] = sum;
    }
  });
  const bool solved = solve_positive(team, v, m, r, y);
  team_for(team, m, [&](int i) { w.x[i] = solved ? dot(l + i * m, y, r) : 0; });
}

// w.y := the update in the base of the Cholesky factor, from components, the rows of w.cosines, that rotations `turned` led to.
template <class Team>
FASTCONFIG_CALLED void weigh(const Team& team, const Workspace& w, const Problem& p, const double* turned, double* lengths,
                             double most, int r) {
  const int m = p.m;
  const double *weights = p.weights(), *v = w.cosines;
  double *y = w.y, *z = w.z;
  team_parts(team, r, [&](const auto& part, int a) {
    const double* row = v + a * m;
    const double share = team_sum(part, m, [&](int i) { return row[i] * (weights ? weights[i] : 1. / m); });
    const double length = sqrt(team_sum(part, m, [&](int i) { return row[i] * row[i]; }));
    if (part.lane() > 0) return;
    lengths[a] = length;
    z[a] = share / length;
  });
  double* const chosen = w.schur;
  team_for(team, r, [&](int a) {
    const double length = lengths[a];
    int shorter = 0;
    double squares = 0;
    FASTCONFIG_ROLLED for (int b = 0; b < r; ++b) {
      shorter += lengths[b] < length || (lengths[b] == length && b < a);
      squares += lengths[b] * lengths[b];
    }
    if (p.rule.parameters[0] == 2) {
      if (a == 0) chosen[0] = squares / r;
    } else if (shorter == (p.rule.parameters[0] == 1 ? (r - 1) / 2 : 0)) {
      chosen[0] = length * length;
    }
  });
  const double scale = most * sqrt(chosen[0]);
  team_for(team, r, [&](int b) {
    double sum = 0;
    FASTCONFIG_ROLLED for (int a = 0; a < r; ++a) sum += turned[a * r + b] * z[a];
    y[b] = scale * sum;
  });
}

// Aligned-MTL (Senushkin et al. 2023). The parameter: 0 takes the least eigenvalue, 1 the median, 2 the mean.
template <class Team>
FASTCONFIG_CALLED void aligned(const Team& team, const Workspace& w, const Problem& p) {
  const int m = p.m;
  double *turned = w.more, *size = turned + m * m, *lengths = size + m, *l = w.factor, *v = w.cosines;
  double most = 0;
  FASTCONFIG_ROLLED for (int i = 0; i < m; ++i) most = fmax(most, w.norms[i]);
  team_for(team, m, [&](int i) { w.x[i] = 0; });
  if (most == 0) return;
  const int r = longest_first(team, w, turned, size, lengths, most, m, p.rcond);
  if (r == 0) return;
  team_parts(team, r, [&](const auto& part, int a) {
    FASTCONFIG_ROLLED for (int i = part.lane(); i < m; i += part.width) v[a * m + i] = size[i] * l[i * m + a];
    FASTCONFIG_ROLLED for (int b = part.lane(); b < r; b += part.width) turned[a * r + b] = a == b;
  });
  rotate(team, v, turned, lengths, w.y, r, m);
  weigh(team, w, p, turned, lengths, most, r);
  of_coordinates(team, w, r, m);
}

}  // namespace fastconfig

// Small dense linear algebra in float64 on the host and, compiled by nvcc, on the device.
#pragma once

#include <cstdint>

#include "host_device.hpp"
#include "teams.hpp"

namespace fastconfig {

// Scratch of one team.
struct Workspace {
  double* cosines;  // m * m
  double* factor;   // m * m
  double* norms;    // m, and so on
  double* inverse;
  double* x;
  double* y;
  double* z;
  double* schur;
  int* pivots;  // m
  double* more;  // what a method asks for in rules.def

  static constexpr int64_t doubles(int64_t m) { return 2 * m * m + 6 * m; }  // without `more`

  FASTCONFIG_HD Workspace(double* memory, int* pivot_memory, int m)
      : Workspace(memory, memory + m * m, memory + 2 * m * m, pivot_memory, m) {}

  // The same from pieces: m * m, m * m and at least 6 * m doubles.
  FASTCONFIG_HD Workspace(double* first, double* second, double* vectors, int* pivot_memory, int m)
      : cosines(first),
        factor(second),
        norms(vectors),
        inverse(norms + m),
        x(inverse + m),
        y(x + m),
        z(y + m),
        schur(z + m),
        pivots(pivot_memory),
        more(schur + m) {}
};

// sum_{i < n} f(i), lanes side by side.
template <class Team, class F>
FASTCONFIG_HD double team_sum(const Team& team, int n, F f) {
  double s = 0;
  FASTCONFIG_ROLLED for (int i = team.lane(); i < n; i += Team::width) s += f(i);
  return team.sum(s);
}

// f(i) for i < n, lanes side by side; ends with a barrier.
template <class Team, class F>
FASTCONFIG_HD void team_for(const Team& team, int n, F f) {
  FASTCONFIG_ROLLED for (int i = team.lane(); i < n; i += Team::width) f(i);
  team.sync();
}

// sum_{k < n} a[k] b[k] in four chains: one alone waits for each of its additions.
FASTCONFIG_HD double dot(const double* a, const double* b, int n) {
  double s[4] = {0, 0, 0, 0};
  int k = 0;
  FASTCONFIG_ROLLED for (; k + 4 <= n; k += 4)
    for (int c = 0; c < 4; ++c) s[c] += a[k + c] * b[k + c];
  FASTCONFIG_ROLLED for (; k < n; ++k) s[0] += a[k] * b[k];
  return (s[0] + s[1]) + (s[2] + s[3]);
}

// Pivoted Cholesky of C (full storage; its lower part becomes L, rows in pivot order). Stops when the
// largest Schur diagonal, sin^2 of the angle to the span of the rows already taken, is <= tolerance.
template <class Team>
FASTCONFIG_HD int pivoted_cholesky(const Team& team, double* c, int m, double tolerance, int* pivots,
                                   double* schur) {
  team_for(team, m, [&](int i) {
    pivots[i] = i;
    schur[i] = c[i * m + i];
  });
  FASTCONFIG_ROLLED for (int k = 0; k < m; ++k) {
    double best = -1;
    int p = k;
    FASTCONFIG_ROLLED for (int i = k + team.lane(); i < m; i += Team::width)
      if (schur[i] > best) {
        best = schur[i];
        p = i;
      }
    team.argmax(best, p);
    if (!(best > tolerance)) return k;
    if (p != k) {
      team_for(team, m, [&](int j) {
        const double held = c[k * m + j];
        c[k * m + j] = c[p * m + j];
        c[p * m + j] = held;
      });
      team_for(team, m, [&](int j) {
        const double held = c[j * m + k];
        c[j * m + k] = c[j * m + p];
        c[j * m + p] = held;
      });
      if (team.lane() == 0) {
        const int row = pivots[k];
        pivots[k] = pivots[p];
        pivots[p] = row;
        schur[p] = schur[k];
      }
      team.sync();
    }
    const double root = sqrt(best);
    if (team.lane() == 0) c[k * m + k] = root;
    team_for(team, m - k - 1, [&](int i) {
      i += k + 1;
      const double v = (c[i * m + k] - dot(c + i * m, c + k * m, k)) / root;
      c[i * m + k] = v;
      schur[i] -= v * v;
    });
  }
  return m;
}

// Cholesky in place of the r x r matrix b with leading dimension ld; only its lower part is used.
template <class Team>
FASTCONFIG_HD void cholesky(const Team& team, double* b, int ld, int r) {
  FASTCONFIG_ROLLED for (int k = 0; k < r; ++k) {
    const double rest = b[k * ld + k] - team_sum(team, k, [&](int j) { return b[k * ld + j] * b[k * ld + j]; });
    const double root = sqrt(rest > 0 ? rest : 0);
    team.sync();
    if (team.lane() == 0) b[k * ld + k] = root;
    team_for(team, r - k - 1, [&](int i) {
      i += k + 1;
      const double v = b[i * ld + k] - dot(b + i * ld, b + k * ld, k);
      b[i * ld + k] = root > 0 ? v / root : 0;
    });
  }
}

// x := L^-1 x for the lower factor l (r x r, leading dimension ld).
template <class Team>
FASTCONFIG_HD void lower_solve(const Team& team, const double* l, int ld, int r, double* x) {
  FASTCONFIG_ROLLED for (int k = 0; k < r; ++k) {
    const double s = team_sum(team, k, [&](int j) { return l[k * ld + j] * x[j]; });
    if (team.lane() == 0) x[k] = (x[k] - s) / l[k * ld + k];
    team.sync();
  }
}

// x := L^-T x.
template <class Team>
FASTCONFIG_HD void upper_solve(const Team& team, const double* l, int ld, int r, double* x) {
  FASTCONFIG_ROLLED for (int k = r - 1; k >= 0; --k) {
    const double s = team_sum(team, r - k - 1, [&](int j) { return l[(k + 1 + j) * ld + k] * x[k + 1 + j]; });
    if (team.lane() == 0) x[k] = (x[k] - s) / l[k * ld + k];
    team.sync();
  }
}

// x := (L L^T)^-1 x.
template <class Team>
FASTCONFIG_CALLED void cholesky_solve(const Team& team, const double* l, int ld, int r, double* x) {
  lower_solve(team, l, ld, r, x);
  upper_solve(team, l, ld, r, x);
}

// x := a^-1 x for a symmetric positive definite a (n x n, leading dimension ld, all of it), which is written over, in one
// barrier a step; false, and x of no use, if a pivot is not positive.
template <class Team>
FASTCONFIG_CALLED bool solve_positive(const Team& team, double* a, int ld, int n, double* x) {
  FASTCONFIG_ROLLED for (int k = 0; k < n; ++k) {
    const double *row = a + k * ld, pivot = row[k], beside = x[k];
    if (!(pivot > 0)) return false;
    const double inverse = 1 / pivot;
    team_parts(team, n - k - 1, [&](const auto& part, int i) {
      i += k + 1;
      const double factor = a[i * ld + k] * inverse;
      FASTCONFIG_ROLLED for (int j = k + 1 + part.lane(); j < n; j += part.width) a[i * ld + j] -= factor * row[j];
      if (part.lane() == 0) x[i] -= factor * beside;
    });
  }
  team_for(team, n, [&](int k) { a[k * ld + k] = 1 / a[k * ld + k]; });
  team_leads(team, [&](const auto& leader) {
    FASTCONFIG_ROLLED for (int k = n - 1; k > 0; --k) {
      const double *row = a + k * ld, value = x[k] * row[k];
      team_for(leader, k, [&](int i) { x[i] -= row[i] * value; });
    }
  });
  team_for(team, n, [&](int k) { x[k] *= a[k * ld + k]; });
  return true;
}

// w.x := pinv(C) w.x, the minimum-norm solution; w.cosines becomes its factor. At full rank C x = b is solved
// directly; below, pinv(C) = L (L^T L)^-2 L^T. Weights that the range of C does not support give zero.
template <class Team>
FASTCONFIG_CALLED void pinv_apply(const Team& team, const Workspace& w, int m, double rcond) {
  double *l = w.cosines, *b = w.factor, *y = w.y, *z = w.z;
  const int rank = pivoted_cholesky(team, l, m, 2 * rcond, w.pivots, w.schur);
  team_for(team, m, [&](int i) { z[i] = w.x[w.pivots[i]]; });
  if (rank == m) {
    cholesky_solve(team, l, m, m, z);
  } else {
    // L^T z and L^T L; row q of L ends at column min(q, rank - 1)
    team_for(team, rank, [&](int i) {
      double s = 0;
      FASTCONFIG_ROLLED for (int q = i; q < m; ++q) s += l[q * m + i] * z[q];
      y[i] = w.schur[i] = s;
    });
    team_for(team, rank * rank, [&](int e) {
      const int i = e / rank, j = e % rank;
      if (j > i) return;
      double s = 0;
      FASTCONFIG_ROLLED for (int q = i; q < m; ++q) s += l[q * m + i] * l[q * m + j];
      b[i * m + j] = s;
    });
    cholesky(team, b, m, rank);
    cholesky_solve(team, b, m, rank, y);
    const double supported = team_sum(team, rank, [&](int i) { return w.schur[i] * y[i]; });
    const double whole = team_sum(team, m, [&](int i) { return z[i] * z[i]; });
    team.sync();
    cholesky_solve(team, b, m, rank, y);
    const bool zero = !(supported > rcond * rcond * whole);
    team_for(team, m, [&](int i) {
      double s = 0;
      FASTCONFIG_ROLLED for (int j = 0; j < rank && j <= i; ++j) s += l[i * m + j] * y[j];
      z[i] = zero ? 0 : s;
    });
  }
  team_for(team, m, [&](int i) { w.x[w.pivots[i]] = z[i]; });
}

}  // namespace fastconfig

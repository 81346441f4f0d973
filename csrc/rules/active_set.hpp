// Non-negative least squares by inner products, for one thread: mu >= 0 of least 1/2 mu^T M mu + q^T mu.
#pragma once

#include <cfloat>
#include <cmath>

#include "linalg.hpp"
#include "rounding.hpp"

namespace fastconfig {

// The active set method of Lawson and Hanson (1974, chapter 23) on a Cholesky factor that grows by a row for all that
// enter. First all enter that lower the objective, as most will stay; later the one that promises most. Each round lowers
// the objective, so no set comes twice; where rounding has the last word, the number of rounds is bounded. The same in
// torch, why M gets a ridge, and what M, q and `size` have to be: nonnegative of fastconfig/methods/solvers.py.
struct ActiveSet {
  const double* matrix;  // m x m
  int m;
  double ridge;   // on the diagonal of M
  double* factor;  // m x m; row k of L, its diagonal inverted, for the k-th of the set
  double* mu;      // m, and so on: the solution
  double* slope;   // M mu + q
  double* solved;  // by position: the solution on the set
  double* forward;  // by position: L forward = -q
  int* order;       // m: first the set
  int count;        // of the set

  // With scratch memory of a workspace, of which `more` has one vector here.
  FASTCONFIG_HD ActiveSet(const Workspace& w, int m, double rcond)
      : matrix(w.cosines),
        m(m),
        ridge(ridge_of(rcond, m)),
        factor(w.factor),
        mu(w.y),
        slope(w.schur),
        solved(w.z),
        forward(w.more),
        order(w.pivots),
        count(0) {}

  // On memory of its own, doubles(m); `beside` has room for a vector more.
  FASTCONFIG_HD ActiveSet(const double* matrix, double* memory, int m, double rcond)
      : matrix(matrix),
        m(m),
        ridge(ridge_of(rcond, m)),
        factor(memory),
        mu(factor + m * m),
        slope(mu + m),
        solved(slope + m),
        forward(solved + m),
        order(reinterpret_cast<int*>(forward + 2 * m)),
        count(0) {}

  FASTCONFIG_HD double* beside() const { return forward + m; }

  // Odd: lanes that do the same side by side then meet at few banks of shared memory.
  FASTCONFIG_HD static constexpr int64_t doubles(int64_t m) { return (m * m + 5 * m + (m + 1) / 2) | 1; }

  FASTCONFIG_CALLED void solve(const double* q, double size) {
    FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) {
      mu[j] = 0;
      slope[j] = q[j];
      order[j] = j;
    }
    count = 0;
    double total = size;
    FASTCONFIG_ROLLED for (int round = 0; round < 4 * m + 10; ++round) {
      const int before = count;
      if (round < kTogether)
        enter_all(q, ridge / 4 * total);
      else
        enter_best(q, ridge / 4 * total);
      if (count == before) break;
      settle(q);
      total = slopes(q, size);
    }
    refine(q, size);
  }

 private:
  static constexpr int kTogether = 6;  // rounds in which all may enter, before one by one

  FASTCONFIG_HD void swap(int a, int b) {
    const int held = order[a];
    order[a] = order[b];
    order[b] = held;
  }

  FASTCONFIG_HD void enter_all(const double* q, double least) {
    FASTCONFIG_ROLLED for (int k = count; k < m; ++k)
      if (slope[order[k]] < -least) append(q, k);
  }

  FASTCONFIG_HD void enter_best(const double* q, double least) {
    int best = -1;
    FASTCONFIG_ROLLED for (int k = count; k < m; ++k)
      if (slope[order[k]] < -least && (best < 0 || slope[order[k]] < slope[order[best]])) best = k;
    if (best >= 0) append(q, best);
  }

  // The gradient at a place behind the set becomes its last, with a row of the factor.
  FASTCONFIG_HD void append(const double* q, int place) {
    const int j = order[place];
    double* row = factor + count * m;
    const double* products = matrix + j * m;
    FASTCONFIG_ROLLED for (int k = 0; k < count; ++k)
      row[k] = (products[order[k]] - dot(row, factor + k * m, k)) * factor[k * m + k];
    const double rest = fmax(products[j] + ridge - dot(row, row, count), ridge / 2);
    row[count] = 1 / sqrt(rest);
    forward[count] = (-q[j] - dot(row, forward, count)) * row[count];
    swap(place, count++);
  }

  // solved := L^-T solved
  FASTCONFIG_HD void back_substitute() {
    FASTCONFIG_ROLLED for (int k = count - 1; k >= 0; --k) {
      const double* row = factor + k * m;
      const double v = solved[k] *= row[k];
      FASTCONFIG_ROLLED for (int i = 0; i < k; ++i) solved[i] -= v * row[i];
    }
  }

  // Moves mu to the solution on the set, from which leaves what would be negative.
  FASTCONFIG_HD void settle(const double* q) {
    while (true) {
      FASTCONFIG_ROLLED for (int k = 0; k < count; ++k) solved[k] = forward[k];
      back_substitute();
      double step = 1;
      bool all_stay = true;
      FASTCONFIG_ROLLED for (int k = 0; k < count; ++k)
        if (!(solved[k] > 0)) {
          step = fmin(step, ratio(k));
          all_stay = false;
        }
      FASTCONFIG_ROLLED for (int k = 0; k < count; ++k) {
        double& now = mu[order[k]];
        const bool leaves = !(solved[k] > 0) && !(ratio(k) > step);  // also what is not a number: the loop has an end
        now = leaves ? 0 : fmax(now + step * (solved[k] - now), 0.0);
        if (leaves) order[k] = ~order[k];
      }
      if (all_stay) return;
      shrink(q);
    }
  }

  // Takes out of mu what the ridge costs, but for its square, unless that leaves slopes further from the optimum's.
  FASTCONFIG_HD void refine(const double* q, double size) {
    const double before = error();
    FASTCONFIG_ROLLED for (int k = 0; k < count; ++k)
      solved[k] = (-slope[order[k]] - dot(factor + k * m, solved, k)) * factor[k * m + k];
    back_substitute();
    FASTCONFIG_ROLLED for (int k = 0; k < count; ++k) {
      forward[k] = mu[order[k]];
      mu[order[k]] = fmax(mu[order[k]] + solved[k], 0.0);
    }
    slopes(q, size);
    if (error() <= before) return;
    FASTCONFIG_ROLLED for (int k = 0; k < count; ++k) mu[order[k]] = forward[k];
    slopes(q, size);
  }

  FASTCONFIG_HD double error() const {
    double most = 0;
    FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) most = fmax(most, mu[j] > 0 ? fabs(slope[j]) : -slope[j]);
    return most;
  }

  FASTCONFIG_HD double ratio(int k) const {
    const double now = mu[order[k]];
    return now > 0 ? now / (now - solved[k]) : 0;
  }

  // Without the marked members, which go behind the set; rows after the first of them are made again.
  FASTCONFIG_HD void shrink(const double* q) {
    const int end = count;
    int kept = 0;
    while (order[kept] >= 0) ++kept;
    count = kept;
    FASTCONFIG_ROLLED for (int k = kept; k < end; ++k)
      if (order[k] >= 0) swap(k, kept++);
    FASTCONFIG_ROLLED for (int k = kept; k < end; ++k) order[k] = ~order[k];
    while (count < kept) append(q, count);
  }

  // slope := M mu + q; what its entries are made of.
  FASTCONFIG_HD double slopes(const double* q, double size) {
    FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) slope[j] = q[j];
    FASTCONFIG_ROLLED for (int k = 0; k < count; ++k) {
      const double v = mu[order[k]];
      const double* products = matrix + order[k] * m;
      FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) slope[j] += v * products[j];
      size += v;
    }
    return size;
  }
};

}  // namespace fastconfig

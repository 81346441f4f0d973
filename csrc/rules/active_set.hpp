// Non-negative least squares by inner products, for one thread: mu >= 0 of least 1/2 mu^T M mu + q^T mu.
#pragma once

#include <cfloat>
#include <cmath>

#include "linalg.hpp"

namespace fastconfig {

// The active set method of Lawson and Hanson (1974, chapter 23) on a Cholesky factor that grows by a row for all that
// enter. First all enter that lower the objective, as most will stay; later the one that promises most. Each round lowers
// the objective, so no set comes twice; where rounding has the last word, the number of rounds is bounded. The same in
// torch, and what M, q and `size` have to be: nonnegative of fastconfig/methods/solvers.py.
struct ActiveSet {
  const double* matrix;  // m x m
  int m;
  double noise;
  double* factor;  // m x m; row k of L, its diagonal inverted, for the k-th of the set
  double* mu;      // m, and so on: the solution
  double* slope;   // M mu + q
  double* solved;  // by position: the solution on the set
  double* forward;  // by position: L forward = -q
  int* order;       // m: first the set, then what may enter, at last what may not before something has moved
  int count;        // of the set
  int open;         // where those begin that may not enter

  // With scratch memory of a workspace, of which `more` has one vector here.
  FASTCONFIG_HD ActiveSet(const Workspace& w, int m, double rcond)
      : matrix(w.cosines),
        m(m),
        noise(noise_of(rcond)),
        factor(w.factor),
        mu(w.y),
        slope(w.schur),
        solved(w.z),
        forward(w.more),
        order(w.pivots),
        count(0),
        open(m) {}

  // On memory of its own, doubles(m); `beside` has room for a vector more.
  FASTCONFIG_HD ActiveSet(const double* matrix, double* memory, int m, double rcond)
      : matrix(matrix),
        m(m),
        noise(noise_of(rcond)),
        factor(memory),
        mu(factor + m * m),
        slope(mu + m),
        solved(slope + m),
        forward(solved + m),
        order(reinterpret_cast<int*>(forward + 2 * m)),
        count(0),
        open(m) {}

  FASTCONFIG_HD double* beside() const { return forward + m; }

  // Odd: lanes that do the same side by side then meet at few banks of shared memory.
  FASTCONFIG_HD static constexpr int64_t doubles(int64_t m) { return (m * m + 5 * m + (m + 1) / 2) | 1; }

  FASTCONFIG_HD static double noise_of(double rcond) { return fmax(rcond / 256, 2 * DBL_EPSILON); }

  static constexpr int kTogether = 6;

  // In the first rounds all may enter, then one by one.
  FASTCONFIG_CALLED void solve(const double* q, double size, int together = kTogether) {
    FASTCONFIG_ROLLED for (int j = 0; j < m; ++j) {
      mu[j] = 0;
      slope[j] = q[j];
      order[j] = j;
    }
    count = 0;
    open = m;
    double total = size;
    FASTCONFIG_ROLLED for (int round = 0; round < 4 * m + 10; ++round) {
      const int before = count;
      if (round < together)
        enter_all(q, noise * total);
      else
        enter_best(q, noise * total);
      if (count == before) return;
      const int after = count;
      const double moved = settle(q);
      if (moved > noise * total) {
        open = m;
      } else {  // what came and went, all at the ends of their parts, waits
        FASTCONFIG_ROLLED for (int left = after - count; left > 0; --left) swap(count + left - 1, --open);
      }
      total = slopes(q, size);
    }
  }

 private:
  FASTCONFIG_HD void swap(int a, int b) {
    const int held = order[a];
    order[a] = order[b];
    order[b] = held;
  }

  FASTCONFIG_HD void enter_all(const double* q, double least) {
    FASTCONFIG_ROLLED for (int k = count; k < open; ++k)
      if (slope[order[k]] < -least && append(q, order[k])) swap(k, count++);
  }

  FASTCONFIG_HD void enter_best(const double* q, double least) {
    int end = open;  // those that depend on the set go behind it for now
    while (true) {
      int best = -1;
      FASTCONFIG_ROLLED for (int k = count; k < end; ++k)
        if (slope[order[k]] < -least && (best < 0 || slope[order[k]] < slope[order[best]])) best = k;
      if (best < 0) return;
      if (append(q, order[best])) {
        swap(best, count++);
        return;
      }
      swap(best, --end);
    }
  }

  // Adds row `count` to the factor; false if the vector is a combination of those of the set.
  FASTCONFIG_HD bool append(const double* q, int j) {
    double* row = factor + count * m;
    const double* products = matrix + j * m;
    FASTCONFIG_ROLLED for (int k = 0; k < count; ++k)
      row[k] = (products[order[k]] - dot(row, factor + k * m, k)) * factor[k * m + k];
    const double rest = products[j] - dot(row, row, count);
    double parts = 1;
    if (rest < 1e-3) {  // only then they decide
      FASTCONFIG_ROLLED for (int k = 0; k < count; ++k) solved[k] = row[k];
      back_substitute();
      FASTCONFIG_ROLLED for (int k = 0; k < count; ++k) parts += fabs(solved[k]);
    }
    if (!(rest > 4 * noise * parts * parts)) return false;
    row[count] = 1 / sqrt(rest);
    forward[count] = (-q[j] - dot(row, forward, count)) * row[count];
    return true;
  }

  // solved := L^-T solved
  FASTCONFIG_HD void back_substitute() {
    FASTCONFIG_ROLLED for (int k = count - 1; k >= 0; --k) {
      const double* row = factor + k * m;
      const double v = solved[k] *= row[k];
      FASTCONFIG_ROLLED for (int i = 0; i < k; ++i) solved[i] -= v * row[i];
    }
  }

  // Moves mu to the solution on the set, from which leaves what would be negative; how far in all.
  FASTCONFIG_HD double settle(const double* q) {
    double moved = 0;
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
        const bool leaves = !(solved[k] > 0) && ratio(k) <= step;
        const double next = leaves ? 0 : fmax(now + step * (solved[k] - now), 0.0);
        moved += fabs(next - now);
        now = next;
        if (leaves) order[k] = ~order[k];
      }
      if (all_stay) return moved;
      shrink(q);
    }
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
    FASTCONFIG_ROLLED for (int k = count; k < kept; ++k) {
      if (append(q, order[k]))
        swap(k, count++);
      else
        mu[order[k]] = 0;
    }
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

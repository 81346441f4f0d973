// The m x m stage of csrc/coefficients.hpp on one thread, to be run under sanitizers; takes a seed.
//
// Every property is judged on the rows or the Gram matrix itself, and every array has exactly its size. In
// unit gradients, x_i = c_i |g_i|, ConFIG's direction is the one x with C x = P w and P x = x, where P
// projects onto the range of C; each kind of problem is built so that its P is known.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "coefficients.hpp"

namespace {

using fastconfig::Length;
using fastconfig::Method;
using fastconfig::Rule;
using Team = fastconfig::ThreadTeam;
using Vector = std::vector<double>;

constexpr double kEps = DBL_EPSILON;
constexpr double kCutoff = 1e-10;
constexpr double kGuard = -8.5e250;
constexpr double kGarbage = 3.25e270;
// Of C on its range: m random rows of 3 m + 8 elements, or pairs of such, stay well below.
constexpr double kCondition = 50;

const char* const kMethods[] = {"config", "pcgrad", "ppcgrad", "imtlg"};
const char* const kLengths[] = {"projection", "minimum",   "maximum",  "harmonic",
                                "arithmetic", "geometric", "specific", "none"};

unsigned long seed = 0;
std::mt19937_64 generator;

double uniform(double from, double to) { return std::uniform_real_distribution<double>(from, to)(generator); }
int below(int end) { return std::uniform_int_distribution<int>(0, end - 1)(generator); }
double sign() { return below(2) ? 1 : -1; }

std::vector<int> shuffled(int m) {
  std::vector<int> order(m);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), generator);
  return order;
}

double dot(const double* a, const double* b, int n) { return std::inner_product(a, a + n, b, 0.0); }
double sum(const Vector& v) { return std::accumulate(v.begin(), v.end(), 0.0); }
double norm(const Vector& v) { return std::sqrt(dot(v.data(), v.data(), static_cast<int>(v.size()))); }

double size(const Vector& v) {
  return std::accumulate(v.begin(), v.end(), 0.0, [](double s, double e) { return s + std::fabs(e); });
}

// (m, m) times (m).
Vector times(const Vector& a, const Vector& v) {
  const int m = static_cast<int>(v.size());
  Vector out(m);
  for (int i = 0; i < m; ++i) out[i] = dot(&a[i * m], v.data(), m);
  return out;
}

struct Problem {
  std::string kind;
  int m = 0;
  int n = 0;
  bool full = true;            // the rows that are not zero are independent
  Vector units;                // (m, n)
  Vector lengths;              // (m) what the rows are scaled to
  Vector range;                // (m, m) the projector onto the range of C
  Vector weights;              // (m)
  std::vector<int64_t> order;  // (m, m)
  Vector gram;                 // (m, m)
  Vector norms;                // (m) roots of its diagonal
  Vector cosines;              // (m, m) C, but zero for zero rows
};

// Weights and PCGrad's order are the problem's if wanted, else absent.
Rule make_rule(const Problem& p, Method method, bool weighted_or_ordered, Length length = Length::none) {
  Rule rule;
  rule.method = method;
  rule.length = length;
  rule.weights = weighted_or_ordered ? p.weights.data() : nullptr;
  rule.order = weighted_or_ordered ? p.order.data() : nullptr;
  return rule;
}

[[noreturn]] void fail(const Problem& p, const Rule& rule, const std::string& what) {
  std::fprintf(stderr, "%s, length %s%s%s, m = %d, %s, seed %lu: %s\n", kMethods[static_cast<int>(rule.method)],
               kLengths[static_cast<int>(rule.length)], rule.weights ? ", weights, order" : "",
               rule.mean ? ", mean" : "", p.m, p.kind.c_str(), seed, what.c_str());
  std::exit(1);
}

void near(const Problem& p, const Rule& rule, const char* what, double is, double wanted, double bound) {
  if (std::fabs(is - wanted) <= bound) return;
  char text[160];
  std::snprintf(text, sizeof text, "%s: got %.17g, want %.17g within %.2g", what, is, wanted, bound);
  fail(p, rule, text);
}

// Random unit rows, of which all count; norms within 10^-decades .. 10^decades.
Problem independent(const std::string& kind, int m, double decades) {
  Problem p;
  p.kind = kind;
  p.m = m;
  p.n = 3 * m + 8;
  p.units.resize(m * p.n);
  p.range.resize(m * m);
  std::normal_distribution<double> normal;
  for (int i = 0; i < m; ++i) {
    double* row = &p.units[i * p.n];
    std::generate(row, row + p.n, [&] { return normal(generator); });
    const double length = std::sqrt(dot(row, row, p.n));
    for (int k = 0; k < p.n; ++k) row[k] /= length;
    p.lengths.push_back(std::pow(10, uniform(-decades, decades)));
    p.range[i * m + i] = 1;
    p.weights.push_back(sign() * uniform(0.5, 2));
    for (int j : shuffled(m)) p.order.push_back(j);
  }
  p.weights.shrink_to_fit();
  p.order.shrink_to_fit();
  return p;
}

Problem finished(Problem p) {
  const int m = p.m, n = p.n;
  p.gram.resize(m * m);
  p.norms.resize(m);
  p.cosines.resize(m * m);
  Vector rows(p.units);
  for (int e = 0; e < m * n; ++e) rows[e] *= p.lengths[e / n];
  for (int i = 0; i < m; ++i)
    for (int j = 0; j <= i; ++j) p.gram[i * m + j] = p.gram[j * m + i] = dot(&rows[i * n], &rows[j * n], n);
  for (int i = 0; i < m; ++i) p.norms[i] = std::sqrt(p.gram[i * m + i]);
  for (int e = 0; e < m * m; ++e) {
    const double a = p.norms[e / m], b = p.norms[e % m];
    p.cosines[e] = a > 0 && b > 0 ? p.gram[e] / a / b : 0;
  }
  return p;
}

Problem with_zero_rows(int m, const char* kind, bool all) {
  Problem p = independent(kind, m, 30);
  const int certain = below(m);
  for (int i = 0; i < m; ++i)
    if (all || i == certain || below(2)) p.lengths[i] = p.range[i * m + i] = 0;
  return finished(p);
}

// Every row but the last of an odd number has a partner: itself times `sign`, scaled; one more may be zero.
Problem paired(const std::string& kind, int m, double sign, bool zero = false) {
  Problem p = independent(kind, m, 30);
  const std::vector<int> at = shuffled(m);
  if (zero) p.lengths[at[m - 1]] = p.range[at[m - 1] * (m + 1)] = 0;
  for (int k = 0; k + 1 < m - zero; k += 2) {
    p.full = false;
    const int i = at[k], j = at[k + 1];
    for (int e = 0; e < p.n; ++e) p.units[j * p.n + e] = sign * p.units[i * p.n + e];
    p.range[i * m + i] = p.range[j * m + j] = 0.5;
    p.range[i * m + j] = p.range[j * m + i] = sign * 0.5;
  }
  return finished(p);
}

// Rows +-u: C = s s^T, P = s s^T / m.
Problem of_rank_one(int m) {
  Problem p = independent("rank 1", m, 30);
  p.full = m == 1;
  Vector s(m);
  std::generate(s.begin() + 1, s.end(), sign);
  s[0] = 1;
  for (int e = 0; e < m * p.n; ++e) p.units[e] = s[e / p.n] * p.units[e % p.n];
  for (int e = 0; e < m * m; ++e) p.range[e] = s[e / m] * s[e % m] / m;
  return finished(p);
}

// Two orthonormal bases of r = m / 2 dimensions, the unit vectors and their reflection, and for odd m unit
// vector 0 once more: A^T A = 2 I, or 2 I + e_0 e_0^T, and P = A (A^T A)^-1 A^T.
Problem of_half_rank(int m) {
  Problem p = independent("rank m / 2", m, 30);
  if (m == 1) return finished(p);
  p.full = false;
  const int n = p.n, r = m / 2;
  const Vector v(p.units.begin(), p.units.begin() + r);
  const double squared = dot(v.data(), v.data(), r);
  std::fill(p.units.begin(), p.units.end(), 0.0);
  const std::vector<int> at = shuffled(m);
  for (int i = 0; i < r; ++i) {
    p.units[at[i] * n + i] = 1;
    for (int k = 0; k < r; ++k) p.units[at[r + i] * n + k] = (i == k) - 2 * v[i] * v[k] / squared;
  }
  if (m % 2) p.units[at[m - 1] * n] = 1;
  for (int e = 0; e < m * m; ++e) {
    const double *a = &p.units[e / m * n], *b = &p.units[e % m * n];
    p.range[e] = (dot(a, b, n) - (m % 2 ? a[0] * b[0] / 3 : 0)) / 2;
  }
  return finished(p);
}

// One call on memory of exactly the size that the bindings allocate, and one with every array of the scratch
// on its own and c between guard words. What lies in that memory before differs, and must not matter.
Vector run(const Problem& p, const Rule& rule, double rcond = kCutoff, int64_t problem = 0) {
  const int m = p.m;
  Vector memory(fastconfig::Workspace::doubles(m), double{NAN}), c(m, double{NAN});
  std::vector<int> pivots(m, -1), others(m, 1 << 30);
  const auto call = [&](const fastconfig::Workspace& scratch, double* out) {
    fastconfig::coefficients(Team{}, scratch, p.gram.data(), out, m, rule, problem, rcond);
  };
  call(fastconfig::Workspace(memory.data(), pivots.data(), m), c.data());

  Vector cosines(m * m, kGarbage), factor(m * m, kGarbage), guarded(3 * m, kGuard);
  std::vector<Vector> six(6, Vector(m, kGarbage));
  fastconfig::Workspace apart(memory.data(), others.data(), m);
  apart.cosines = cosines.data();
  apart.factor = factor.data();
  double** const arrays[] = {&apart.norms, &apart.inverse, &apart.x, &apart.y, &apart.z, &apart.schur};
  for (int k = 0; k < 6; ++k) *arrays[k] = six[k].data();
  std::fill_n(&guarded[m], m, kGarbage);
  call(apart, &guarded[m]);

  if (std::memcmp(&guarded[m], c.data(), m * sizeof(double)) != 0)
    fail(p, rule, "the content of the memory before the call changes the coefficients");
  for (int k = 0; k < m; ++k) {
    if (guarded[k] != kGuard || guarded[2 * m + k] != kGuard) fail(p, rule, "writes around the coefficients");
    if (p.norms[k] == 0 && c[k] != 0) fail(p, rule, "a zero gradient has a coefficient");
  }
  return c;
}

// All rules, for problems whose answer is the same for all.
void check_all(const Problem& p, const char* what, double rcond, bool (*holds)(double)) {
  for (int method = 0; method < 4; ++method)
    for (int length = 0; length < (method == 0 ? 8 : 1); ++length)
      for (bool with : {false, true}) {
        Rule rule = make_rule(p, static_cast<Method>(method), with, static_cast<Length>(length));
        rule.mean = with;
        for (double e : run(p, rule, rcond))
          if (!holds(e)) fail(p, rule, what + std::to_string(e) + " at cut-off " + std::to_string(rcond));
      }
}

Vector in_units(const Problem& p, const Vector& c) {
  Vector x(c);
  for (int i = 0; i < p.m; ++i) x[i] *= p.norms[i];
  return x;
}

double tracked(const Problem& p, const Rule& rule) {
  Vector alive, inverse, logs;
  for (double e : p.norms)
    if (e > 0) {
      alive.push_back(e);
      inverse.push_back(1 / e);
      logs.push_back(std::log(e));
    }
  const double count = static_cast<double>(alive.size());
  switch (rule.length) {
    case Length::minimum: return *std::min_element(alive.begin(), alive.end());
    case Length::maximum: return *std::max_element(alive.begin(), alive.end());
    case Length::harmonic: return count / sum(inverse);
    case Length::arithmetic: return sum(alive) / count;
    case Length::geometric: return std::exp(sum(logs) / count);
    default: return p.norms[rule.track_id];
  }
}

// Length none, in unit gradients.
void check_direction(const Problem& p, const Rule& rule, const Vector& x, const Vector& wanted, double w) {
  const Vector along = times(p.cosines, x), kept = times(p.range, x);
  // full: (C + E) x = w with |E_ij| <= (3 m + 1) eps for a unit diagonal (Higham, theorem 10.4), + rounding
  // C, x and C x here; below, pinv(C) is two solves with L^T L, of the condition of C
  const double bound = p.full ? (4 * p.m + 16) * kEps * size(x) : kCondition * kCondition * p.m * kEps * w;
  for (int i = 0; i < p.m; ++i) {
    near(p, rule, "C x against P w", along[i], wanted[i], bound);
    near(p, rule, "P x against x", kept[i], x[i], bound);
  }
}

// The other length models scale that direction.
void check_scaled(const Problem& p, const Rule& rule, const Vector& x, const Vector& unscaled) {
  const int m = p.m;
  const Vector along = times(p.cosines, unscaled);
  const bool projection = rule.length == Length::projection;
  const double by = projection ? 1 : tracked(p, rule), squared = dot(unscaled.data(), along.data(), m);
  const double total = projection ? dot(p.norms.data(), along.data(), m) : by * sum(along);
  // both sides: an entry of C x is a sum of m products, off by this; the log of a norm is below 100
  const double off = 2 * (m + 8) * kEps * size(unscaled);
  const double total_off = projection ? off * sum(p.norms) + m * kEps * size(in_units(p, along))
                                      : by * (m * off + 100 * (m + 8) * kEps * size(along));
  const double factor_off = total_off + std::fabs(total) * (off * size(unscaled) / squared + 8 * kEps);
  for (int i = 0; i < m; ++i)
    near(p, rule, "x against the scaled direction", x[i], unscaled[i] * (total / squared),
         2 * std::fabs(unscaled[i]) * factor_off / squared);
}

void check_config(const Problem& p, bool weighted) {
  const Vector w = weighted ? p.weights : Vector(p.m, 1.0), wanted = times(p.range, w);
  // opposed rows leave nothing of ones; random weights do not come this close
  const bool supported = norm(wanted) > 1e-9 * norm(w);
  Vector unscaled;
  for (int length = 7; length >= 0; --length) {  // none comes first
    Rule rule = make_rule(p, Method::config, weighted, static_cast<Length>(length));
    rule.track_id = below(p.m);
    const Vector x = in_units(p, run(p, rule));
    if (!supported) {
      near(p, rule, "unsupported weights", size(x), 0, 0);
    } else if (rule.length == Length::none) {
      check_direction(p, rule, x, wanted, norm(w));
      unscaled = x;
    } else {
      check_scaled(p, rule, x, unscaled);
    }
  }
}

void check_permuted(const Problem& p) {
  const int m = p.m;
  const std::vector<int> from = shuffled(m);
  Problem q(p);
  for (int i = 0; i < m; ++i) {
    q.weights[i] = p.weights[from[i]];
    q.norms[i] = p.norms[from[i]];
    for (int j = 0; j < m; ++j) q.gram[i * m + j] = p.gram[from[i] * m + from[j]];
  }
  for (Length length : {Length::minimum, Length::specific, Length::none}) {
    Rule rule = make_rule(p, Method::config, true, length);
    rule.track_id = from[0];
    const Vector x = in_units(p, run(p, rule));
    const Vector y = in_units(q, run(q, make_rule(q, Method::config, true, length)));
    // both lie within condition * 4 m eps of the exact x; as much again for the sums of the length
    for (int i = 0; i < m; ++i)
      near(p, rule, "x of a permuted gradient", y[i], x[from[i]], 16 * kCondition * m * kEps * size(x));
  }
}

// The paper's algorithm on the rows.
Vector projected(const Problem& p, bool ordered) {
  const int m = p.m, n = p.n;
  Vector total(n), g(n);
  for (int i = 0; i < m; ++i) {
    for (int k = 0; k < n; ++k) g[k] = p.units[i * n + k] * p.lengths[i];
    for (int step = 0; step < m; ++step) {
      const int j = ordered ? static_cast<int>(p.order[i * m + step]) : step;
      const double* unit = &p.units[j * n];
      const double along = dot(g.data(), unit, n);
      if (j == i || p.lengths[j] == 0 || along >= 0) continue;
      for (int k = 0; k < n; ++k) g[k] -= along * unit[k];
    }
    for (int k = 0; k < n; ++k) total[k] += g[k];
  }
  return total;
}

void check_pcgrad(const Problem& p, bool ordered) {
  const int m = p.m, n = p.n;
  Rule rule = make_rule(p, Method::pcgrad, ordered);
  const Vector c = run(p, rule), x = in_units(p, c);
  Vector difference = projected(p, ordered);
  for (int e = 0; e < m * n; ++e) difference[e % n] -= x[e / n] * p.units[e];
  // m projections, none of which enlarges an error; each dot product is off by (m + n + 8) eps sum x at most
  near(p, rule, "the update less the rows'", norm(difference), 0, 2 * m * (m + n + 8) * kEps * size(x));
  if (p.kind == "opposed rows" && m == 2)  // each is projected away, by its whole length along the other
    for (double e : x) near(p, rule, "x of two opposed gradients", e, sum(p.norms), (2 * n + 8) * kEps * e);
  rule.mean = true;
  const Vector mean = run(p, rule);
  for (int i = 0; i < m; ++i) near(p, rule, "a coefficient", mean[i], c[i] / m, 4 * kEps * c[i] / m);
}

// c_j = 1 - sum_i min(G_ij, 0) / G_jj: a sum of m positive terms.
void check_ppcgrad(const Problem& p) {
  const int m = p.m;
  for (bool mean : {false, true}) {
    Rule rule = make_rule(p, Method::ppcgrad, false);
    rule.mean = mean;
    const Vector c = run(p, rule);
    for (int j = 0; j < m; ++j) {
      double wanted = p.norms[j] > 0 ? 1 : 0;
      for (int i = 0; i < m && wanted > 0; ++i) wanted -= std::min(p.gram[i * m + j], 0.0) / p.gram[j * m + j];
      if (mean) wanted /= m;
      near(p, rule, "a coefficient", c[j], wanted, 2 * (m + 8) * kEps * wanted);
    }
  }
}

void check_imtlg(const Problem& p) {
  const Rule rule = make_rule(p, Method::imtlg, false);
  const Vector c = run(p, rule), equal = run(p, make_rule(p, Method::config, false));
  const double total = sum(equal), rounding = 2 * (p.m + 8) * kEps;
  if (std::fabs(total) <= rounding * size(equal) && size(c) == 0) return;
  near(p, rule, "the sum of the coefficients", sum(c), 1, rounding * size(c));
  for (int i = 0; i < p.m; ++i)  // the direction of equal projections, divided by a sum of m terms
    near(p, rule, "a coefficient times their sum", c[i] * total, equal[i],
         rounding * size(equal) * std::fabs(c[i]));
}

// Problem k of three reads its own weights and its own order, or the shared ones where the step is 0.
void check_batch(const Problem& p) {
  const int m = p.m;
  for (int k = 0; k < 3; ++k)
    for (Method method : {Method::config, Method::pcgrad}) {
      Vector weights(3 * m, double{NAN});
      std::vector<int64_t> order(3 * m * m);
      std::copy(p.weights.begin(), p.weights.end(), &weights[k * m]);
      std::copy(p.order.begin(), p.order.end(), &order[k * m * m]);
      Rule rule = make_rule(p, method, true);
      const Vector alone = run(p, rule);
      if (alone != run(p, rule, kCutoff, k)) fail(p, rule, "what is shared moves with the problem");
      rule.weights = weights.data();
      rule.weights_step = m;
      rule.order = order.data();
      rule.order_step = m * m;
      if (alone != run(p, rule, kCutoff, k)) fail(p, rule, "weights or order of another problem");
    }
}

// NaN or Inf in one row: its entries, or the diagonal alone.
void check_broken(Problem p, const char* kind, double value) {
  const int m = p.m, row = below(m);
  if (below(2))
    for (int k = 0; k < m; ++k) p.gram[row * m + k] = p.gram[k * m + row] = value;
  p.gram[row * m + row] = value;
  p.kind = kind;
  check_all(p, "not NaN: ", kCutoff, [](double e) { return std::isnan(e); });
}

void check_size(int m) {
  const Problem full = finished(independent("full rank", m, 2));
  const Problem wide = finished(independent("full rank, norms 1e-30 to 1e30", m, 30));
  const Problem opposed = paired("opposed rows", m, -1);
  for (const Problem& p :
       {full, wide, opposed, paired("duplicate rows", m, 1), paired("opposed rows and a zero row", m, -1, true),
        of_rank_one(m), of_half_rank(m), with_zero_rows(m, "zero rows", false)}) {
    for (bool given : {false, true}) {
      check_config(p, given);
      check_pcgrad(p, given);
    }
    check_ppcgrad(p);
    check_imtlg(p);
    const double rcond = below(2) ? 0.0 : 0.6;  // the ends of what a user may pass; above 1 / 2 no row counts
    check_all(p, "not finite: ", rcond, [](double e) { return std::isfinite(e); });
  }
  for (const Problem& p : {full, wide}) check_permuted(p);
  for (const Problem& p : {full, opposed}) check_batch(p);
  check_broken(full, "NaN", double{NAN});
  check_broken(full, "Inf", double{INFINITY});
  check_all(with_zero_rows(m, "all zero", true), "not zero: ", kCutoff, [](double e) { return e == 0; });
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "usage: %s SEED\n", arguments[0]);
    return 2;
  }
  seed = std::strtoul(arguments[1], nullptr, 10);
  generator.seed(seed);
  for (int m : {1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100}) check_size(m);
  return 0;
}

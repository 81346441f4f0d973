// Gram matrices of gradients whose directions are known, for coefficients.cpp.
#pragma once

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

#include "rules.hpp"

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

#define FASTCONFIG_RULE(name, weight, more) #name,
const char* const kMethods[] = {
#include "rules.def"
};
#undef FASTCONFIG_RULE
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
  const bool bargains = method == Method::nash || method == Method::fairgrad;
  if (weighted_or_ordered && (bargains || method == Method::cagrad || method == Method::aligned))
    rule.parameters[0] = 2, rule.parameters[1] = 1;
  if (method == Method::krum) rule.parameters[1] = 1;
  if (method == Method::pcd) rule.parameters[0] = 0.1, rule.parameters[1] = 0.9;
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

}  // namespace

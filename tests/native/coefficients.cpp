// The m x m stage of csrc/rules.hpp on one thread, to be run under sanitizers, or that of the kernels; takes a seed.
//
// Every property is judged on the rows or the Gram matrix itself, and every array has exactly its size. In
// unit gradients, x_i = c_i |g_i|, ConFIG's direction is the one x with C x = P w and P x = x, where P
// projects onto the range of C; each kind of problem is built so that its P is known.
#if defined(FASTCONFIG_EMULATED)
#include "on_device.hpp"
#else
#include "problems.hpp"
#endif

namespace {

#if !defined(FASTCONFIG_EMULATED)
// One call on memory of exactly the size that the bindings allocate, and one with every array of the scratch
// on its own and c between guard words. What lies in that memory before differs, and must not matter.
Vector run(const Problem& p, const Rule& rule, double rcond = kCutoff, int64_t problem = 0) {
  const int m = p.m;
  Vector memory(fastconfig::scratch_doubles(rule.method, m), double{NAN}), c(m, double{NAN});
  std::vector<int> pivots(m, -1), others(m, 1 << 30);
  const auto call = [&](const fastconfig::Workspace& scratch, double* out) {
    fastconfig::coefficients<fastconfig::Weight::heavy>(Team{}, scratch, {p.gram.data(), m, rule, problem, rcond}, out);
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

const std::vector<int> kSizes = {1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100};
constexpr auto kMost = fastconfig::Weight::heavy;
#endif

// The methods that the stage under test has.
const std::vector<Method> kServed = [] {
  std::vector<Method> served;
  for (std::size_t k = 0; k < std::size(kMethods); ++k)
    if (weight_of(static_cast<Method>(k)) <= kMost) served.push_back(static_cast<Method>(k));
  return served;
}();

// All rules, for problems whose answer is the same for all.
void check_all(const Problem& p, const char* what, double rcond, bool (*holds)(double)) {
  for (Method method : kServed) {
    if (method == Method::krum && p.m < 3) continue;  // which is refused
    for (int length = 0; length < (method == Method::config ? 8 : 1); ++length)
      for (bool with : {false, true}) {
        Rule rule = make_rule(p, method, with, static_cast<Length>(length));
        rule.mean = with;
        for (double e : run(p, rule, rcond))
          if (!holds(e)) fail(p, rule, what + std::to_string(e) + " at cut-off " + std::to_string(rcond));
      }
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
    for (Method method : {Method::config, Method::pcgrad, Method::upgrad, Method::dualproj}) {
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
  for (int m : kSizes) check_size(m);
  return 0;
}

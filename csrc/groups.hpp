// Updates of several groups of parameters, each with a Gram matrix and coefficients of its own, in one call.
#pragma once

#include <Python.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "rows.hpp"
#include "vectors.hpp"

namespace fastconfig {

// The groups of a call, and how a thread updates one: both passes, with G, c and gradients in its own caches.
struct Groups {
  struct Group {
    int64_t table, segments, bytes, rule;  // table: where the group's entries begin
  };

  Run run;
  std::vector<int64_t> table;  // kernels/numba/gram.py
  std::vector<Group> groups;   // the largest first
  int64_t m, size, team, gram_body, combine_body;
  double rcond;
  std::atomic<size_t> next{0};

  void update(const Group& group, int64_t threads) const {
    std::vector<double> scratch(m * (m + 1));  // G, then c
    run(kUpdate, integer(table.data() + group.table), 1, group.segments, m, integer(scratch.data()),
        integer(scratch.data() + m * m), integer(reinterpret_cast<const void*>(&fastconfig_coefficients)), group.rule,
        rcond, size, threads, team, gram_body, combine_body);
  }

  static void take(void* job) {
    Groups& all = *static_cast<Groups*>(job);
    for (size_t i = all.next++; i < all.groups.size(); i = all.next++) all.update(all.groups[i], 1);
  }

  // Those that would keep one thread busy while others wait take a team each; the others share one. enough: bytes that
  // are worth a team.
  void update_all(int64_t threads, int64_t enough) {
    int64_t left = 0;
    for (const Group& group : groups) left += group.bytes;
    const int64_t large = std::max(enough, left / (2 * threads));
    while (threads > 1 && next < groups.size() && groups[next].bytes >= large) {
      left -= groups[next].bytes;
      update(groups[next++], threads);
    }
    if (threads == 1 || left < enough || groups.size() - next < 2) {
      take(this);
      return;
    }
    using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
    const auto* functions = reinterpret_cast<const int64_t*>(team);
    reinterpret_cast<Parallel>(functions[0])(&take, this, static_cast<unsigned>(threads), 0);
  }
};

// run_groups(run, rows, out, places, rules, size, threads, enough, team, gram_body, combine_body, rcond): the update of
// rows that scan has accepted, group by group. rows: a list of m rows of tensors, one a parameter; out: a list of results;
// places: a list of lists, of each group the numbers of its parameters; rules: a list of addresses, one a group.
inline PyObject* run_groups(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 12 || exchange == nullptr || !PyList_Check(arguments[1]) || PyList_GET_SIZE(arguments[1]) == 0 ||
      !PyList_Check(arguments[2]) || !PyList_Check(arguments[3]) || !PyList_Check(arguments[4]) ||
      PyList_GET_SIZE(arguments[3]) != PyList_GET_SIZE(arguments[4])) {
    PyErr_SetString(PyExc_TypeError, "run_groups takes 12 arguments: run, lists of rows, results, places and rules, ...");
    return nullptr;
  }
  PyObject *rows = arguments[1], *out = arguments[2], *places = arguments[3], *rules = arguments[4];
  int64_t function, v[6];
  if (!as_int(arguments[0], function) || !as_ints(arguments + 5, v, 6)) return nullptr;
  Groups all;
  all.rcond = PyFloat_AsDouble(arguments[11]);
  if (all.rcond == -1 && PyErr_Occurred()) return nullptr;
  all.run = reinterpret_cast<Run>(function);
  all.m = PyList_GET_SIZE(rows);
  all.size = v[0], all.team = v[3], all.gram_body = v[4], all.combine_body = v[5];
  const int64_t entry = 2 + 2 * all.m;
  for (Py_ssize_t g = 0; g < PyList_GET_SIZE(places); ++g) {
    PyObject* some = PyList_GET_ITEM(places, g);
    Groups::Group group{static_cast<int64_t>(all.table.size()), 0, 0, 0};
    if (!PyList_Check(some) || !as_int(PyList_GET_ITEM(rules, g), group.rule)) {
      if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "run_groups: places: want a list of lists");
      return nullptr;
    }
    for (Py_ssize_t k = 0; k < PyList_GET_SIZE(some); ++k) {
      int64_t p;
      if (!as_int(PyList_GET_ITEM(some, k), p)) return nullptr;
      if (p < 0 || p >= PyList_GET_SIZE(out)) {
        PyErr_SetString(PyExc_IndexError, "run_groups: places: got one beyond the parameters");
        return nullptr;
      }
      if (!append_entry(all.table, rows, p, false, PyList_GET_ITEM(out, p))) return nullptr;
    }
    group.segments = (static_cast<int64_t>(all.table.size()) - group.table) / entry;
    for (int64_t s = 0; s < group.segments; ++s) group.bytes += all.table[group.table + s * entry] * all.m * all.size;
    if (group.segments != 0) all.groups.push_back(group);
  }
  std::stable_sort(all.groups.begin(), all.groups.end(),
                   [](const Groups::Group& a, const Groups::Group& b) { return a.bytes > b.bytes; });
  Py_BEGIN_ALLOW_THREADS
  all.update_all(v[1], v[2]);
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

}  // namespace fastconfig

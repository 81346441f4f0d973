// A momentum step of short vectors on the CPU, checked and handed to the kernels in one call. Anything else answers None,
// and fastconfig/momentum_operator.py looks closer (and explains what is wrong).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "ring.hpp"
#include "rows.hpp"
#include "vectors.hpp"

namespace fastconfig {
namespace {

constexpr int64_t kStep = 7;  // ACCUMULATE + GRAM + RESCALE of kernels/numba/momentum.py

Kernels kept_kernels[2][4] = {};  // by the kinds of the state and of the gradients

// keep_step_kernels(kind, given, empty_like, threads_for, run, team, accumulate_body, rescale_body, size, alone, most): how
// short_step makes a result, and the kernels, for a state of a kind and gradients of another one; the rest as
// keep_kernels has it, size and most of the state's elements.
PyObject* keep_step_kernels(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  int64_t kind, given;
  if (count != 11 || !as_int(arguments[0], kind) || !as_int(arguments[1], given) || kind < 0 || kind > 1 || given < 0 ||
      given > 3) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "keep_step_kernels takes two kinds and 9 more arguments");
    return nullptr;
  }
  if (!kept_kernels[kind][given].read(arguments + 2)) return nullptr;
  Py_RETURN_NONE;
}

// Which of m momenta are meant, by an integer or a list or tuple of them; false if these are not plain, or not all
// different, or none.
bool read_indexes(PyObject* indexes, int64_t m, std::vector<int64_t>& chosen) {
  const bool one = PyLong_CheckExact(indexes);
  if (!one && !PyList_CheckExact(indexes) && !PyTuple_CheckExact(indexes)) return false;
  const Py_ssize_t count = one ? 1 : Py_SIZE(indexes);
  for (Py_ssize_t k = 0; k < count; ++k) {
    PyObject* index = one ? indexes : item(indexes, k);
    if (!PyLong_CheckExact(index)) return false;
    int overflow = 0;
    const int64_t i = PyLong_AsLongLongAndOverflow(index, &overflow);
    if (overflow != 0 || i < 0 || i >= m || std::find(chosen.begin(), chosen.end(), i) != chosen.end()) return false;
    chosen.push_back(i);
  }
  return count != 0;
}

// What fastconfig.momentum.clock.Clock knows; its numbers are those after the step.
class Clock {
 public:
  explicit Clock(PyObject* clock)
      : clock_(clock),
        list_(PyObject_GetAttr(clock, names().counts)),
        now_(PyObject_GetAttr(clock, names().updates)),
        beta_1_(PyObject_GetAttr(clock, names().beta_1)),
        beta_2_(PyObject_GetAttr(clock, names().beta_2)) {}

  // False if not all m gradients have come yet, or with a Python error.
  bool read(const std::vector<int64_t>& chosen, int64_t m) {
    if (!list_ || !now_ || !beta_1_ || !beta_2_ || !PyList_Check(list_.get()) || PyList_GET_SIZE(list_.get()) != m ||
        !PyFloat_CheckExact(beta_1_.get()) || !PyFloat_CheckExact(beta_2_.get()) || !as_int(now_.get(), updates_))
      return false;
    counts_.resize(m);
    for (int64_t i = 0; i < m; ++i)
      if (!as_int(PyList_GET_ITEM(list_.get(), i), counts_[i]) || counts_[i] == 0) return false;
    ++updates_;
    for (const int64_t i : chosen) ++counts_[i];
    return true;
  }

  // What kernels/numba/moments.py reads, as Clock.values() has it.
  std::vector<double> numbers(double rcond) const {
    const double beta_1 = PyFloat_AS_DOUBLE(beta_1_.get()), beta_2 = PyFloat_AS_DOUBLE(beta_2_.get());
    const auto decayed = [](double beta, int64_t t) { return 1 - std::pow(beta, static_cast<double>(t)); };
    std::vector<double> numbers{beta_1, beta_2, decayed(beta_1, updates_), decayed(beta_2, updates_), rcond};
    for (const int64_t t : counts_) numbers.push_back(decayed(beta_1, t));
    return numbers;
  }

  // Counts the step; false with a Python error.
  bool tick(const std::vector<int64_t>& chosen) {
    const Reference updates(PyLong_FromLongLong(updates_));
    if (!updates || PyObject_SetAttr(clock_, names().updates, updates.get()) != 0) return false;
    for (const int64_t i : chosen)
      if (PyList_SetItem(list_.get(), i, PyLong_FromLongLong(counts_[i])) != 0) return false;
    return true;
  }

 private:
  PyObject* clock_;  // borrowed
  Reference list_, now_, beta_1_, beta_2_;
  int64_t updates_ = 0;
  std::vector<int64_t> counts_;
};

// What correct_and_solve of kernels/numba/momentum.py makes of the products of m momenta, once more: the Gram matrix of the
// corrected ones and its coefficients, in a monitor's ring.
void keep(double* room, const double* products, int64_t m, const std::vector<double>& numbers, int64_t rule) {
  const double *decayed = numbers.data() + 5, rcond = numbers[4];
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < m; ++j) room[i * m + j] = products[i * m + j] / (decayed[i] * decayed[j]);
  fastconfig_coefficients(room, room + m * m, 1, m, reinterpret_cast<const Rule*>(rule), rcond);
}

// short_step(vectors, gram, clock, indexes, grads, types, rule, cutoffs, ring) -> the update after a step whose arguments are
// plain, on the CPU and no larger than keep_step_kernels said. Otherwise None, and nothing has changed. vectors: the m
// momenta, then the second moment and the last merged momentum; gram: products of the momenta, written over; clock: a
// fastconfig.momentum.clock.Clock, which counts the step. indexes: one, or a list or tuple; grads: one vector, or a list
// or tuple of as many as there are indexes, as scan accepts them. rule, cutoffs, ring: as in short_update.
PyObject* short_step(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  int64_t words;
  if (count != 9 || !PyTuple_Check(arguments[5]) || !PyTuple_Check(arguments[7]) || PyTuple_GET_SIZE(arguments[7]) != 4) {
    PyErr_SetString(PyExc_TypeError, "short_step takes a state, indexes, gradients, types, a rule, four cut-offs and a ring");
    return nullptr;
  }
  if (!as_int(arguments[8], words)) return nullptr;
  const Ring ring(words);
  PyObject *vectors = arguments[0], *grads = arguments[4], *types = arguments[5], *cutoffs = arguments[7];
  if (exchange == nullptr || !PyList_Check(vectors) || PyList_GET_SIZE(vectors) < 3 || watched()) Py_RETURN_NONE;
  const int64_t m = PyList_GET_SIZE(vectors) - 2;
  if (!ring.takes(m)) Py_RETURN_NONE;
  std::vector<int64_t> chosen;
  if (!read_indexes(arguments[3], m, chosen)) Py_RETURN_NONE;
  const auto k = static_cast<int64_t>(chosen.size());
  // the caller's list may change while a kernel reads
  const Reference rows(is_row(grads) ? PySequence_List(grads) : Py_BuildValue("[O]", grads));
  if (!rows) return nullptr;
  if (PyList_GET_SIZE(rows.get()) != k) Py_RETURN_NONE;

  std::vector<int64_t> coming(2 + 2 * k, 1), held(m + 2);  // kernels/numba/momentum.py
  Common given, state;
  Column gradient, momentum;
  dlpack::Tensor products{};
  bool fits = read_column(rows.get(), 0, true, types, given, gradient, coming.data() + 2) && gradient.tensor.ndim == 1 &&
              read_column(vectors, 0, true, types, state, momentum, held.data()) &&
              same_shape(gradient.tensor, momentum.tensor) && given.device.type == dlpack::kCpu &&
              state.device.type == dlpack::kCpu && state.kind < 2 && view(arguments[1], types, products) &&
              kind_of(products.dtype) == 1 && products.ndim == 2 && products.shape[0] == m && products.shape[1] == m &&
              contiguous(products) && products.device.type == dlpack::kCpu;
  if (PyErr_Occurred()) return nullptr;
  if (!fits) Py_RETURN_NONE;
  const Kernels kernels = kept_kernels[state.kind][given.kind];
  const int64_t n = gradient.tensor.shape[0];
  if (!kernels.take(n)) Py_RETURN_NONE;
  Clock clock(arguments[2]);
  fits = clock.read(chosen, m);
  if (PyErr_Occurred()) return nullptr;
  if (!fits) Py_RETURN_NONE;

  int64_t rule;
  const double rcond = PyFloat_AsDouble(PyTuple_GET_ITEM(cutoffs, state.kind));
  const double coarse = PyFloat_AsDouble(PyTuple_GET_ITEM(cutoffs, given.kind));  // precision.py
  if (PyErr_Occurred() || !as_int(arguments[6], rule)) return nullptr;
  const int64_t threads = kernels.threads(m * n * kernels.size);
  if (threads < 0) return nullptr;
  dlpack::Tensor result{};
  const Reference out(new_like(kernels.empty_like, gradient.first, result));
  if (!out || !clock.tick(chosen)) return nullptr;
  std::vector<int64_t> table(2 + 2 * m, 1);  // kernels/numba/gram.py
  table[0] = n;
  table[1] = integer(data(result));
  std::copy(held.begin(), held.end() - 2, table.begin() + 2);
  coming[0] = held[m + 1];
  coming[1] = held[m];
  const std::vector<double> numbers = clock.numbers(std::max(rcond, coarse));
  const int64_t call[] = {kStep,
                          integer(table.data()),
                          1,
                          m,
                          integer(coming.data()),
                          integer(chosen.data()),
                          k,
                          given.kind,
                          integer(numbers.data()),
                          integer(data(products)),
                          1,
                          integer(reinterpret_cast<const void*>(&fastconfig_coefficients)),
                          rule,
                          kernels.size,
                          threads,
                          kernels.team,
                          kernels.first_body,
                          kernels.second_body};
  double* room = ring.next();
  Py_BEGIN_ALLOW_THREADS
  reinterpret_cast<void (*)(int64_t)>(kernels.run)(integer(call));
  if (room != nullptr) keep(room, reinterpret_cast<const double*>(data(products)), m, numbers, rule);
  Py_END_ALLOW_THREADS
  return Py_NewRef(out.get());
}

PyMethodDef methods[] = {{"keep_step_kernels", fast(&keep_step_kernels), METH_FASTCALL, nullptr},
                         {"short_step", fast(&short_step), METH_FASTCALL, nullptr},
                         {nullptr, nullptr, 0, nullptr}};

}  // namespace

int add_steps(PyObject* module) { return PyModule_AddFunctions(module, methods); }

}  // namespace fastconfig

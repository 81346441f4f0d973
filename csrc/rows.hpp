// Rows that lie side by side in memory, as the compiled calls read them, and the kernels that these hand them to.
#pragma once

#include <Python.h>

#include <cstdint>
#include <vector>

#include "tensors.hpp"

namespace fastconfig {

// What all tensors of one call share; kind is negative as long as none was seen.
struct Common {
  int kind = -1;
  dlpack::Device device{};
};

// Tensors that share a shape: the m of one column. Those that are None are left out.
struct Column {
  PyObject* first = nullptr;  // borrowed
  dlpack::Tensor tensor{};
};

// Looks at column p of the rows, which are tensors themselves where ``vectors``; false if they are not plain, or differ
// in shape, or from what they all share. Tells where each is, if there is room for it.
inline bool read_column(PyObject* rows, Py_ssize_t p, bool vectors, PyObject* types, Common& common, Column& column,
                        int64_t* addresses = nullptr) {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(rows); ++i) {
    PyObject* object = element(rows, i, p, vectors);
    if (object == Py_None && !vectors) continue;
    dlpack::Tensor tensor{};
    if (!view(object, types, tensor) || !contiguous(tensor)) return false;
    if (common.kind < 0) common = {kind_of(tensor.dtype), tensor.device};
    if (kind_of(tensor.dtype) != common.kind || tensor.device.type != common.device.type ||
        tensor.device.id != common.device.id)
      return false;
    if (addresses != nullptr) addresses[i] = integer(data(tensor));
    if (column.first == nullptr) {
      column.first = object;
      column.tensor = tensor;
    } else if (!same_shape(tensor, column.tensor)) {
      return false;
    }
  }
  return true;
}

// What a compiled call needs for one kind of element; run is 0 until the kernels are known.
struct Kernels {
  PyObject* empty_like;   // torch.empty_like
  PyObject* threads_for;  // of fastconfig/backends/team.py
  int64_t run, team, first_body, second_body, size, alone, most;

  // In this order, from 9 arguments; false with a Python error. What was kept before stays alive: another thread may be
  // about to use it.
  bool read(PyObject* const* arguments) {
    int64_t v[7];
    if (!as_ints(arguments + 2, v, 7)) return false;
    *this = {Py_NewRef(arguments[0]), Py_NewRef(arguments[1]), v[0], v[1], v[2], v[3], v[4], v[5], v[6]};
    return true;
  }

  bool take(int64_t n) const { return run != 0 && n != 0 && n <= most / size; }

  // How many for ``bytes`` of input; -1 and a Python error if that fails.
  int64_t threads(int64_t bytes) const {
    if (bytes < alone) return 1;
    const Reference size(PyLong_FromLongLong(bytes));
    const Reference threads(size ? PyObject_CallOneArg(threads_for, size.get()) : nullptr);
    int64_t value = -1;
    return threads && as_int(threads.get(), value) ? value : -1;
  }
};

// The kernels' own signature (run of kernels/numba/update.py).
using Run = void (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, double, int64_t,
                     int64_t, int64_t, int64_t, int64_t);

constexpr int64_t kUpdate = 3;  // GRAM + COMBINE of kernels/numba/update.py

// Append the table entry of a column (kernels/numba/gram.py); a column without tensors, or elements, has none.
inline bool append_entry(std::vector<int64_t>& table, PyObject* rows, Py_ssize_t p, bool vectors, PyObject* out) {
  const Py_ssize_t m = PyList_GET_SIZE(rows);
  const size_t entry = table.size();
  table.resize(entry + 2 + 2 * m, 0);
  dlpack::Tensor tensor{};
  for (Py_ssize_t i = 0; i < m; ++i) {
    PyObject* object = element(rows, i, p, vectors);
    table[entry + 2 + m + i] = 1;
    if (object == Py_None) continue;
    if (exchange->from_object(object, &tensor) != 0) return false;
    table[entry] = numel(tensor);
    table[entry + 2 + i] = integer(data(tensor));
  }
  if (table[entry] == 0) {
    table.resize(entry);
  } else if (out != Py_None) {
    if (exchange->from_object(out, &tensor) != 0) return false;
    table[entry + 1] = integer(data(tensor));
  }
  return true;
}

}  // namespace fastconfig

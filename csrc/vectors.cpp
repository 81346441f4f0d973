// The way in for small calls: m contiguous vectors, or m lists of contiguous tensors, on the CPU, checked and handed to
// the kernels in two calls. Anything else answers None, and fastconfig/gradients.py looks closer (and explains what is
// wrong).
#include "vectors.hpp"

#include <cstdint>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "coefficients.hpp"

namespace fastconfig {
namespace {

struct Names {
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* layout = PyUnicode_InternFromString("layout");
  PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
  PyObject* is_contiguous = PyUnicode_InternFromString("is_contiguous");
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* numel = PyUnicode_InternFromString("numel");
};

const Names& names() {
  static const Names interned;
  return interned;
}

// An owned reference.
class Reference {
 public:
  explicit Reference(PyObject* object) : object_(object) {}
  Reference(const Reference&) = delete;
  Reference& operator=(const Reference&) = delete;
  ~Reference() { Py_XDECREF(object_); }
  PyObject* get() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  PyObject* object_;
};

bool is_true(PyObject* tensor, PyObject* attribute) {
  const Reference value(PyObject_GetAttr(tensor, attribute));
  return value && value.get() == Py_True;
}

bool same(PyObject* tensor, PyObject* attribute, PyObject* wanted) {
  const Reference value(PyObject_GetAttr(tensor, attribute));
  return value && (value.get() == wanted || PyObject_RichCompareBool(value.get(), wanted, Py_EQ) == 1);
}

bool holds(PyObject* tuple, const void* object) {
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(tuple); ++k)
    if (PyTuple_GET_ITEM(tuple, k) == object) return true;
  return false;
}

// What all tensors of a call have in common.
struct Common {
  PyObject* types;     // exact types, tuple
  PyObject* dtypes;    // tuple
  PyObject* strided;   // torch.strided
  PyObject* dtype;     // owned once found
};

// A contiguous CPU tensor of one of the types, of the common dtype (which the first one sets).
bool plain(PyObject* tensor, Common& common) {
  if (!holds(common.types, Py_TYPE(tensor)) || !is_true(tensor, names().is_cpu)) return false;
  if (common.dtype == nullptr) {
    common.dtype = PyObject_GetAttr(tensor, names().dtype);
    if (common.dtype == nullptr || !holds(common.dtypes, common.dtype)) return false;
  } else if (!same(tensor, names().dtype, common.dtype)) {
    return false;
  }
  if (!same(tensor, names().layout, common.strided)) return false;
  const Reference contiguous(PyObject_CallMethodNoArgs(tensor, names().is_contiguous));
  return contiguous && contiguous.get() == Py_True;
}

bool is_row(PyObject* object) { return PyList_Check(object) || PyTuple_Check(object); }

PyObject* item(PyObject* row, Py_ssize_t i) {  // of a list or tuple; borrowed
  return PyList_Check(row) ? PyList_GET_ITEM(row, i) : PyTuple_GET_ITEM(row, i);
}

// The shape that all tensors of a column share (None if all are None), owned; null if one is not plain, or with a
// Python error. Where ``vectors``, the rows are the tensors.
PyObject* column_shape(PyObject* rows, Py_ssize_t p, bool vectors, Common& common) {
  PyObject* shape = nullptr;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(rows); ++i) {
    PyObject* tensor = vectors ? PyList_GET_ITEM(rows, i) : item(PyList_GET_ITEM(rows, i), p);
    if (tensor == Py_None && !vectors) continue;
    if (!plain(tensor, common)) {
      Py_XDECREF(shape);
      return nullptr;
    }
    if (shape == nullptr) {
      shape = PyObject_GetAttr(tensor, names().shape);
      if (shape == nullptr) return nullptr;
    } else if (!same(tensor, names().shape, shape)) {
      Py_DECREF(shape);
      return nullptr;
    }
  }
  if (shape == nullptr) {
    Py_INCREF(Py_None);
    return Py_None;
  }
  return shape;
}

// scan(rows, types, dtypes, strided) -> (dtype, [shape or None, ...]) if rows, a list, holds contiguous CPU tensors of
// exactly one of the types and one of the dtypes: m vectors of one shape, or m lists or tuples of as many tensors,
// whose shapes agree, or None. Otherwise None.
PyObject* scan(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 4 || !PyList_Check(arguments[0]) || !PyTuple_Check(arguments[1]) || !PyTuple_Check(arguments[2])) {
    PyErr_SetString(PyExc_TypeError, "scan takes a list of rows, a tuple of types, a tuple of dtypes, strided");
    return nullptr;
  }
  PyObject* rows = arguments[0];
  const Py_ssize_t m = PyList_GET_SIZE(rows);
  if (m == 0) Py_RETURN_NONE;
  const bool vectors = !is_row(PyList_GET_ITEM(rows, 0));
  const Py_ssize_t columns = vectors ? 1 : Py_SIZE(PyList_GET_ITEM(rows, 0));
  for (Py_ssize_t i = 0; !vectors && i < m; ++i)
    if (!is_row(PyList_GET_ITEM(rows, i)) || Py_SIZE(PyList_GET_ITEM(rows, i)) != columns) Py_RETURN_NONE;

  Common common{arguments[1], arguments[2], arguments[3], nullptr};
  const Reference shapes(PyList_New(0));
  bool fits = bool(shapes);
  for (Py_ssize_t p = 0; fits && p < columns; ++p) {
    const Reference shape(column_shape(rows, p, vectors, common));
    fits = shape && (!vectors || PyTuple_GET_SIZE(shape.get()) == 1) && PyList_Append(shapes.get(), shape.get()) == 0;
  }
  const Reference dtype(common.dtype);
  if (PyErr_Occurred()) return nullptr;
  if (!fits || !dtype) Py_RETURN_NONE;
  return PyTuple_Pack(2, dtype.get(), shapes.get());
}

bool as_int(PyObject* object, int64_t& value) {
  value = PyLong_AsLongLong(object);
  return !(value == -1 && PyErr_Occurred());
}

bool address(PyObject* tensor, int64_t& value) {
  const Reference pointer(PyObject_CallMethodNoArgs(tensor, names().data_ptr));
  return pointer && as_int(pointer.get(), value);
}

using Run = void (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, double, int64_t,
                     int64_t, int64_t, int64_t, int64_t);

constexpr int kIntegers = 13;

// run(run, steps, table, problems, segments, m, gram, c, rule, size, threads, parallel, gram_body, combine_body,
// rcond), all integers but the last: the kernels' own signature (kernels/update_numba.py), without the GIL.
PyObject* run(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  int64_t v[kIntegers + 1];
  if (count != kIntegers + 2) {
    PyErr_SetString(PyExc_TypeError, "run takes 14 integers and rcond");
    return nullptr;
  }
  for (int k = 0; k <= kIntegers; ++k)
    if (!as_int(arguments[k], v[k])) return nullptr;
  const double rcond = PyFloat_AsDouble(arguments[kIntegers + 1]);
  if (rcond == -1 && PyErr_Occurred()) return nullptr;
  const auto function = reinterpret_cast<Run>(v[0]);
  const auto coefficients = static_cast<int64_t>(reinterpret_cast<uintptr_t>(&fastconfig_coefficients));
  Py_BEGIN_ALLOW_THREADS
  function(v[1], v[2], v[3], v[4], v[5], v[6], v[7], coefficients, v[8], rcond, v[9], v[10], v[11], v[12], v[13]);
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

bool elements(PyObject* tensor, int64_t& value) {
  const Reference number(PyObject_CallMethodNoArgs(tensor, names().numel));
  return number && as_int(number.get(), value);
}

// Append the table entry of a column (kernels/gram_numba.py); a column without tensors has none.
bool append_entry(std::vector<int64_t>& table, PyObject* rows, Py_ssize_t p, bool vectors, PyObject* out) {
  const Py_ssize_t m = PyList_GET_SIZE(rows);
  const size_t entry = table.size();
  table.resize(entry + 2 + 2 * m, 0);
  bool any = false;
  for (Py_ssize_t i = 0; i < m; ++i) {
    PyObject* tensor = vectors ? PyList_GET_ITEM(rows, i) : item(PyList_GET_ITEM(rows, i), p);
    table[entry + 2 + m + i] = 1;
    if (tensor == Py_None) continue;
    if (!any && !elements(tensor, table[entry])) return false;
    if (!address(tensor, table[entry + 2 + i])) return false;
    any = true;
  }
  if (any && out != Py_None && !address(out, table[entry + 1])) return false;
  if (!any || table[entry] == 0) table.resize(entry);
  return true;
}

// run_plain(run, steps, rows, out, gram, c, rule, size, threads, parallel, gram_body, combine_body, rcond): steps of the
// kernels for rows that scan has accepted. out: a tensor, a list of them (or None) in the order of the columns, or None;
// gram and c: addresses, or 0 for memory of its own.
PyObject* run_plain(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 13 || !PyList_Check(arguments[2]) || PyList_GET_SIZE(arguments[2]) == 0) {
    PyErr_SetString(PyExc_TypeError, "run_plain takes 13 arguments, the third a list of rows");
    return nullptr;
  }
  PyObject *rows = arguments[2], *out = arguments[3];
  int64_t function, steps, v[8];
  if (!as_int(arguments[0], function) || !as_int(arguments[1], steps)) return nullptr;
  for (int k = 0; k < 8; ++k)
    if (!as_int(arguments[4 + k], v[k])) return nullptr;
  const double rcond = PyFloat_AsDouble(arguments[12]);
  if (rcond == -1 && PyErr_Occurred()) return nullptr;

  const Py_ssize_t m = PyList_GET_SIZE(rows);
  const bool vectors = !is_row(PyList_GET_ITEM(rows, 0));
  const Py_ssize_t columns = vectors ? 1 : Py_SIZE(PyList_GET_ITEM(rows, 0));
  if (PyList_Check(out) && PyList_GET_SIZE(out) != columns) {
    PyErr_SetString(PyExc_ValueError, "run_plain: out has another number of tensors than the rows");
    return nullptr;
  }
  std::vector<int64_t> table;
  table.reserve(columns * (2 + 2 * m));
  for (Py_ssize_t p = 0; p < columns; ++p)
    if (!append_entry(table, rows, p, vectors, PyList_Check(out) ? PyList_GET_ITEM(out, p) : out)) return nullptr;
  std::vector<double> scratch(v[0] == 0 ? m * (m + 1) : 0);
  const auto integer = [](const void* pointer) {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(pointer));
  };
  const int64_t gram = v[0] == 0 ? integer(scratch.data()) : v[0];
  const int64_t c = v[1] == 0 ? integer(scratch.data() + m * m) : v[1];
  const auto segments = static_cast<int64_t>(table.size() / (2 + 2 * m));
  Py_BEGIN_ALLOW_THREADS
  reinterpret_cast<Run>(function)(steps, integer(table.data()), 1, segments, m, gram, c,
                                  integer(reinterpret_cast<const void*>(&fastconfig_coefficients)), v[2], rcond, v[3],
                                  v[4], v[5], v[6], v[7]);
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

// advise_huge(tensor): ask for large pages for its memory, which has not been touched yet; each one spares 511 faults.
PyObject* advise_huge(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  int64_t start, size;
  if (count != 2 || !address(arguments[0], start) || !as_int(arguments[1], size)) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "advise_huge takes a tensor and its bytes");
    return nullptr;
  }
#if defined(__linux__)
  constexpr int64_t kHuge = 1 << 21;
  const int64_t first = (start + kHuge - 1) / kHuge * kHuge, last = (start + size) / kHuge * kHuge;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: may fail
#endif
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"scan", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&scan)), METH_FASTCALL, nullptr},
    {"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&run)), METH_FASTCALL, nullptr},
    {"run_plain", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&run_plain)), METH_FASTCALL, nullptr},
    {"advise_huge", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&advise_huge)), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

int add_vectors(PyObject* module) { return PyModule_AddFunctions(module, methods); }

}  // namespace fastconfig

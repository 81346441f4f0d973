// The way in for small calls: a list of m contiguous vectors on the CPU, checked and handed to the kernels in two
// calls that cost less than one attribute look-up a tensor in Python would. Anything else answers None, and
// fastconfig/gradients.py looks closer (and explains what is wrong).
#include "vectors.hpp"

#include <cstdint>
#include <vector>

#include "coefficients.hpp"

namespace fastconfig {
namespace {

struct Names {
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* device = PyUnicode_InternFromString("device");
  PyObject* layout = PyUnicode_InternFromString("layout");
  PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
  PyObject* is_contiguous = PyUnicode_InternFromString("is_contiguous");
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
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

// scan(rows, types, dtypes, strided) -> (n, dtype, device) if rows, a list, holds equal, contiguous CPU vectors of
// exactly one of the types and one of the dtypes; else None.
PyObject* scan(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 4 || !PyList_Check(arguments[0]) || !PyTuple_Check(arguments[1]) || !PyTuple_Check(arguments[2])) {
    PyErr_SetString(PyExc_TypeError, "scan takes a list of rows, a tuple of types, a tuple of dtypes, strided");
    return nullptr;
  }
  PyObject *rows = arguments[0], *types = arguments[1], *dtypes = arguments[2], *strided = arguments[3];
  const Py_ssize_t m = PyList_GET_SIZE(rows);
  if (m == 0) Py_RETURN_NONE;
  const auto is_tensor = [&](PyObject* row) { return holds(types, Py_TYPE(row)); };
  PyObject* first = PyList_GET_ITEM(rows, 0);
  if (!is_tensor(first)) Py_RETURN_NONE;

  const Reference shape(PyObject_GetAttr(first, names().shape));
  const Reference dtype(PyObject_GetAttr(first, names().dtype));
  if (!shape || !dtype) return nullptr;
  if (!PyTuple_Check(shape.get()) || PyTuple_GET_SIZE(shape.get()) != 1) Py_RETURN_NONE;
  bool fits = holds(dtypes, dtype.get());
  for (Py_ssize_t i = 0; fits && i < m; ++i) {
    PyObject* row = PyList_GET_ITEM(rows, i);
    fits = is_tensor(row) && is_true(row, names().is_cpu) && same(row, names().dtype, dtype.get()) &&
           same(row, names().layout, strided);
    if (fits && i > 0) fits = same(row, names().shape, shape.get());
    if (!fits) break;
    const Reference contiguous(PyObject_CallMethodNoArgs(row, names().is_contiguous));
    fits = contiguous && contiguous.get() == Py_True;
  }
  if (PyErr_Occurred()) return nullptr;
  if (!fits) Py_RETURN_NONE;
  const Reference device(PyObject_GetAttr(first, names().device));
  if (!device) return nullptr;
  return PyTuple_Pack(3, PyTuple_GET_ITEM(shape.get(), 0), dtype.get(), device.get());
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

// run_vectors(run, rows, out, n, rule, size, threads, parallel, gram_body, combine_body, rcond): the whole update of
// rows that scan has accepted.
PyObject* run_vectors(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 11 || !PyList_Check(arguments[1])) {
    PyErr_SetString(PyExc_TypeError, "run_vectors takes 11 arguments, rows as a list");
    return nullptr;
  }
  PyObject* rows = arguments[1];
  const Py_ssize_t m = PyList_GET_SIZE(rows);
  int64_t function, n, v[6];
  if (!as_int(arguments[0], function) || !as_int(arguments[3], n)) return nullptr;
  for (int k = 0; k < 6; ++k)
    if (!as_int(arguments[4 + k], v[k])) return nullptr;
  const double rcond = PyFloat_AsDouble(arguments[10]);
  if (rcond == -1 && PyErr_Occurred()) return nullptr;

  // the table that kernels/gram_numba.py describes, then G and c
  constexpr Py_ssize_t kOnStack = 8;
  constexpr auto words = [](Py_ssize_t m) { return 2 + 2 * m; };
  int64_t stack_table[words(kOnStack)];
  double stack_scratch[kOnStack * (kOnStack + 1)];
  std::vector<int64_t> heap_table(m > kOnStack ? words(m) : 0);
  std::vector<double> heap_scratch(m > kOnStack ? m * (m + 1) : 0);
  int64_t* table = m > kOnStack ? heap_table.data() : stack_table;
  double* gram = m > kOnStack ? heap_scratch.data() : stack_scratch;
  table[0] = n;
  if (!address(arguments[2], table[1])) return nullptr;
  for (Py_ssize_t i = 0; i < m; ++i) {
    if (!address(PyList_GET_ITEM(rows, i), table[2 + i])) return nullptr;
    table[2 + m + i] = 1;
  }
  const auto integer = [](const void* pointer) {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(pointer));
  };
  constexpr int64_t kGramAndCombine = 3;
  Py_BEGIN_ALLOW_THREADS
  reinterpret_cast<Run>(function)(kGramAndCombine, integer(table), 1, 1, m, integer(gram), integer(gram + m * m),
                                  integer(reinterpret_cast<const void*>(&fastconfig_coefficients)), v[0], rcond, v[1],
                                  v[2], v[3], v[4], v[5]);
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"scan", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&scan)), METH_FASTCALL, nullptr},
    {"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&run)), METH_FASTCALL, nullptr},
    {"run_vectors", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&run_vectors)), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

int add_vectors(PyObject* module) { return PyModule_AddFunctions(module, methods); }

}  // namespace fastconfig

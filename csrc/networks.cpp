// Between a network and one vector, for small networks: what torch's own operations cost there is their number.
#include <cstring>
#include <unordered_set>
#include <vector>

#include "tensors.hpp"
#include "vectors.hpp"

namespace fastconfig {
namespace {

struct Attributes {
  PyObject* parameters = PyUnicode_InternFromString("_parameters");
  PyObject* modules = PyUnicode_InternFromString("_modules");
  PyObject* named_modules = PyUnicode_InternFromString("named_modules");
};

// A network's modules and parameters, each once, in the order of torch.nn.Module.named_modules. Objects are borrowed:
// the network holds them.
struct Walk {
  PyObject* walker;  // torch.nn.Module.named_modules
  PyObject* found;   // the list of parameters
  std::unordered_set<PyObject*> seen;
};

// False if a module is none of torch's own kind, or with a Python error.
bool visit(Walk& walk, PyObject* module) {
  static const Attributes attributes;
  if (!walk.seen.insert(module).second) return true;
  const Reference walker(PyObject_GetAttr(reinterpret_cast<PyObject*>(Py_TYPE(module)), attributes.named_modules));
  if (walker.get() != walk.walker) return false;
  const Reference parameters(PyObject_GetAttr(module, attributes.parameters));
  const Reference modules(PyObject_GetAttr(module, attributes.modules));
  if (!parameters || !modules || !PyDict_Check(parameters.get()) || !PyDict_Check(modules.get())) return false;
  PyObject *name = nullptr, *value = nullptr;
  Py_ssize_t at = 0;
  while (PyDict_Next(parameters.get(), &at, &name, &value))
    if (value != Py_None && walk.seen.insert(value).second && PyList_Append(walk.found, value) != 0) return false;
  at = 0;
  while (PyDict_Next(modules.get(), &at, &name, &value))
    if (value != Py_None && !visit(walk, value)) return false;
  return true;
}

// parameters(module, walker) -> list(module.parameters()), or None where a module's class has another named_modules than
// ``walker``, or keeps its parameters in another way.
PyObject* parameters(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "parameters takes a module and a function");
    return nullptr;
  }
  PyObject* found = PyList_New(0);
  if (found == nullptr) return nullptr;
  Walk walk{arguments[1], found, {}};
  if (visit(walk, arguments[0])) return found;
  Py_DECREF(found);
  PyErr_Clear();
  Py_RETURN_NONE;
}

struct Piece {
  char* data;
  size_t bytes;
};

// Whether the tensors are contiguous, on the CPU, of the dtype of a contiguous vector, and together as long as it is.
bool match(PyObject* vector, PyObject* tensors, PyObject* types, char*& whole, std::vector<Piece>& pieces) {
  dlpack::Tensor tensor{};
  if (!view(vector, types, tensor) || tensor.ndim != 1 || !contiguous(tensor)) return false;
  if (tensor.device.type != dlpack::kCpu) return false;
  const int kind = kind_of(tensor.dtype);
  const size_t size = tensor.dtype.bits / 8;
  int64_t rest = numel(tensor);
  whole = data(tensor);
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors); ++i) {
    if (!view(PyList_GET_ITEM(tensors, i), types, tensor) || !contiguous(tensor)) return false;
    if (kind_of(tensor.dtype) != kind || tensor.device.type != dlpack::kCpu) return false;
    pieces.push_back({data(tensor), size * static_cast<size_t>(numel(tensor))});
    rest -= numel(tensor);
  }
  return rest == 0;
}

PyObject* copy(PyObject* const* arguments, Py_ssize_t count, bool to_vector) {
  if (count != 3 || !PyList_Check(arguments[1]) || !PyTuple_Check(arguments[2])) {
    PyErr_SetString(PyExc_TypeError, "flatten and scatter take a vector, a list of tensors and a tuple of types");
    return nullptr;
  }
  char* whole = nullptr;
  std::vector<Piece> pieces;
  const bool fits = exchange != nullptr && match(arguments[0], arguments[1], arguments[2], whole, pieces);
  if (PyErr_Occurred()) return nullptr;
  if (!fits) Py_RETURN_FALSE;
  for (const Piece& piece : pieces) {
    if (piece.bytes != 0) std::memmove(to_vector ? whole : piece.data, to_vector ? piece.data : whole, piece.bytes);
    whole += piece.bytes;
  }
  Py_RETURN_TRUE;
}

// flatten(vector, tensors, types) -> whether the tensors, a list, were copied to the vector one after the other: they
// are contiguous, on the CPU, of exactly one of the types, of the vector's dtype, and together as long as it is.
PyObject* flatten(PyObject*, PyObject* const* arguments, Py_ssize_t count) { return copy(arguments, count, true); }

// scatter(vector, tensors, types) -> whether the vector was copied to the tensors, under the same conditions.
PyObject* scatter(PyObject*, PyObject* const* arguments, Py_ssize_t count) { return copy(arguments, count, false); }

PyMethodDef methods[] = {{"parameters", fast(&parameters), METH_FASTCALL, nullptr},
                         {"flatten", fast(&flatten), METH_FASTCALL, nullptr},
                         {"scatter", fast(&scatter), METH_FASTCALL, nullptr},
                         {nullptr, nullptr, 0, nullptr}};

}  // namespace

int add_networks(PyObject* module) { return PyModule_AddFunctions(module, methods); }

}  // namespace fastconfig

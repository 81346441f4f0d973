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

// Tensors that are contiguous, on the CPU and of one dtype, one after the other.
struct Pieces {
  std::vector<Piece> list;
  PyObject* first = nullptr;  // borrowed
  int kind = -1;
  int64_t count = 0;  // of elements

  bool add(PyObject* object, PyObject* types) {
    dlpack::Tensor tensor{};
    if (!view(object, types, tensor) || !contiguous(tensor) || tensor.device.type != dlpack::kCpu) return false;
    if (kind < 0) {
      kind = kind_of(tensor.dtype);
      first = object;
    }
    const int64_t size = numel(tensor);
    count += size;
    list.push_back({data(tensor), static_cast<size_t>(size) * (tensor.dtype.bits / 8)});
    return kind_of(tensor.dtype) == kind;
  }
};

// A vector of their elements; None for none or more than ``most``. New, or null with a Python error.
PyObject* joined(const Pieces& pieces, int64_t most) {
  if (pieces.count == 0 || pieces.count > most) Py_RETURN_NONE;
  dlpack::Tensor tensor{};
  PyObject* vector = new_vector(pieces.first, pieces.count, tensor);
  if (vector == nullptr) return nullptr;
  char* whole = data(tensor);
  for (const Piece& piece : pieces.list) {
    if (piece.bytes != 0) std::memcpy(whole, piece.data, piece.bytes);
    whole += piece.bytes;
  }
  return vector;
}

// Appends the gradients of parameters, a list, to another; without those that are missing, or false for one where
// ``all``, and where somebody ``waits`` for one. False also with a Python error.
bool append_gradients(PyObject* parameters, bool all, PyObject* found, bool waits = false) {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(parameters); ++i) {
    if (waits && has_hooks(PyList_GET_ITEM(parameters, i))) return false;
    const Reference grad(PyObject_GetAttr(PyList_GET_ITEM(parameters, i), names().grad));
    if (!grad) return false;
    if (grad.get() == Py_None && all) return false;
    if (grad.get() != Py_None && PyList_Append(found, grad.get()) != 0) return false;
  }
  return true;
}

// join(tensors, gradients, all, types, most) -> a vector of the elements of all tensors, a list, or, where ``gradients``,
// of their .grad, of which some may be missing unless ``all``. They are contiguous, on the CPU, of exactly one of the types
// and one dtype, together at most ``most`` elements; otherwise None.
PyObject* join(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  int64_t most;
  if (count != 5 || !PyList_Check(arguments[0]) || !PyTuple_Check(arguments[3]) || !as_int(arguments[4], most)) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "join takes a list of tensors and four more arguments");
    return nullptr;
  }
  if (exchange == nullptr || watched()) Py_RETURN_NONE;
  const Reference tensors(PyList_New(0));  // ours: they must live until they are copied
  if (!tensors) return nullptr;
  bool fits = true;
  if (arguments[1] == Py_True)
    fits = append_gradients(arguments[0], arguments[2] == Py_True, tensors.get());
  else
    fits = PyList_SetSlice(tensors.get(), 0, 0, arguments[0]) == 0;
  Pieces pieces;
  for (Py_ssize_t i = 0; fits && pieces.count <= most && i < PyList_GET_SIZE(tensors.get()); ++i)
    fits = pieces.add(PyList_GET_ITEM(tensors.get(), i), arguments[3]);
  if (PyErr_Occurred()) return nullptr;
  if (!fits) Py_RETURN_NONE;
  return joined(pieces, most);
}

// spread(vector, parameters, all, types, most) -> the parameters' .grad, a list, after the vector was copied to them: as
// join takes them, part of no graph, and together as long as the contiguous vector, of its dtype. Otherwise None.
PyObject* spread(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  int64_t most;
  if (count != 5 || !PyList_Check(arguments[1]) || !PyTuple_Check(arguments[3]) || !as_int(arguments[4], most)) {
    if (!PyErr_Occurred())
      PyErr_SetString(PyExc_TypeError, "spread takes a vector, a list of parameters and three more arguments");
    return nullptr;
  }
  PyObject* types = arguments[3];
  dlpack::Tensor vector{};
  if (exchange == nullptr || watched() || !view(arguments[0], types, vector) || vector.ndim != 1 || !contiguous(vector) ||
      vector.device.type != dlpack::kCpu || vector.shape[0] > most) {
    if (PyErr_Occurred()) return nullptr;
    Py_RETURN_NONE;
  }
  const Reference grads(PyList_New(0));
  bool fits = grads && append_gradients(arguments[1], arguments[2] == Py_True, grads.get(), true);
  Pieces pieces;
  for (Py_ssize_t i = 0; fits && i < PyList_GET_SIZE(grads.get()); ++i) {
    PyObject* grad = PyList_GET_ITEM(grads.get(), i);
    fits = pieces.add(grad, types) && is_free(grad);
  }
  if (PyErr_Occurred()) return nullptr;
  if (!fits || pieces.kind != kind_of(vector.dtype) || pieces.count != vector.shape[0]) Py_RETURN_NONE;
  const char* whole = data(vector);
  const size_t bytes = static_cast<size_t>(pieces.count) * (vector.dtype.bits / 8);
  std::vector<char> copy;  // of a vector that gradients are parts of
  for (const Piece& piece : pieces.list)
    if (copy.empty() && piece.bytes != 0 && piece.data < whole + bytes && whole < piece.data + piece.bytes)
      copy.assign(whole, whole + bytes);
  if (!copy.empty()) whole = copy.data();
  for (const Piece& piece : pieces.list) {
    if (piece.bytes != 0) std::memcpy(piece.data, whole, piece.bytes);
    whole += piece.bytes;
  }
  return Py_NewRef(grads.get());
}

// leaves(tensors, types) -> those that require a gradient, each once, if all are leaves of exactly one of the types;
// otherwise None.
PyObject* leaves(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2 || !PyList_Check(arguments[0]) || !PyTuple_Check(arguments[1])) {
    PyErr_SetString(PyExc_TypeError, "leaves takes a list of tensors and a tuple of types");
    return nullptr;
  }
  const Reference found(PyList_New(0));
  if (!found) return nullptr;
  std::unordered_set<PyObject*> seen;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(arguments[0]); ++i) {
    PyObject* tensor = PyList_GET_ITEM(arguments[0], i);
    if (!holds(arguments[1], Py_TYPE(tensor))) Py_RETURN_NONE;
    const Reference leaf(PyObject_GetAttr(tensor, names().is_leaf));
    const Reference wanted(PyObject_GetAttr(tensor, names().requires_grad));
    if (!leaf || !wanted) return nullptr;
    if (leaf.get() != Py_True) Py_RETURN_NONE;
    if (wanted.get() == Py_True && seen.insert(tensor).second && PyList_Append(found.get(), tensor) != 0) return nullptr;
  }
  return Py_NewRef(found.get());
}

PyMethodDef methods[] = {{"parameters", fast(&parameters), METH_FASTCALL, nullptr},
                         {"leaves", fast(&leaves), METH_FASTCALL, nullptr},
                         {"join", fast(&join), METH_FASTCALL, nullptr},
                         {"spread", fast(&spread), METH_FASTCALL, nullptr},
                         {nullptr, nullptr, 0, nullptr}};

}  // namespace

int add_networks(PyObject* module) { return PyModule_AddFunctions(module, methods); }

}  // namespace fastconfig

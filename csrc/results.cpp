// Results of many parameters in one call.
#include "results.hpp"

#include "vectors.hpp"

namespace fastconfig {
namespace {

// The numbers of a tuple; false for anything else, or with a Python error.
bool read_shape(PyObject* tuple, std::vector<int64_t>& shape) {
  if (!PyTuple_Check(tuple)) return false;
  shape.resize(PyTuple_GET_SIZE(tuple));
  for (size_t d = 0; d < shape.size(); ++d)
    if (!as_int(PyTuple_GET_ITEM(tuple, static_cast<Py_ssize_t>(d)), shape[d])) return false;
  return true;
}

int64_t product(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

// new_results(like, shapes, most) -> uninitialised contiguous tensors of the shapes, a list that has None where one is
// None, in one buffer of at most ``most`` bytes that has the dtype and device of the tensor ``like``; or None, without
// what torch offers for it, or with a larger buffer.
PyObject* new_results(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  int64_t most;
  if (count != 3 || !PyList_Check(arguments[1]) || !as_int(arguments[2], most)) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "new_results takes a tensor, a list of shapes and bytes");
    return nullptr;
  }
  PyObject *like = arguments[0], *shapes = arguments[1];
  dlpack::Tensor memory{};
  if (exchange == nullptr || reinterpret == nullptr || watched()) Py_RETURN_NONE;
  if (exchange->from_object(like, &memory) != 0) return nullptr;
  const int64_t itemsize = memory.dtype.bits / 8;
  Places places(itemsize);
  std::vector<int64_t> starts, shape;
  for (Py_ssize_t p = 0; p < PyList_GET_SIZE(shapes); ++p) {
    PyObject* given = PyList_GET_ITEM(shapes, p);
    if (given != Py_None && !read_shape(given, shape)) return nullptr;
    starts.push_back(given == Py_None ? 0 : places.add(product(shape)));
  }
  if (places.end() > most / itemsize) Py_RETURN_NONE;
  const Reference buffer(new_vector(like, places.end(), memory));
  if (!buffer) return nullptr;
  const Reference results(PyList_New(PyList_GET_SIZE(shapes)));
  Pieces pieces(buffer.get());
  for (Py_ssize_t p = 0; results && p < PyList_GET_SIZE(results.get()); ++p) {
    PyObject* given = PyList_GET_ITEM(shapes, p);
    if (given != Py_None && !read_shape(given, shape)) return nullptr;
    PyObject* piece = given == Py_None ? Py_NewRef(given) : pieces.contiguous(shape.data(), shape.size(), starts[p]);
    if (piece == nullptr) return nullptr;
    PyList_SET_ITEM(results.get(), p, piece);
  }
  return results ? Py_NewRef(results.get()) : nullptr;
}

PyMethodDef methods[] = {{"new_results", fast(&new_results), METH_FASTCALL, nullptr}, {nullptr, nullptr, 0, nullptr}};

}  // namespace

int add_results(PyObject* module) { return PyModule_AddFunctions(module, methods); }

}  // namespace fastconfig

// Tensors as C++ sees them: read from their Python objects through DLPack's exchange table, without a Python call.
#pragma once

#include <Python.h>

#include <cstdint>

#include "dlpack.hpp"

namespace fastconfig {

inline const dlpack::ExchangeApi* exchange = nullptr;  // torch's, once attached; each module has its own
inline PyObject *is_tracing = nullptr, *dispatch_depth = nullptr, *transform = nullptr;  // of torch, likewise
inline PyCFunction negates = nullptr;    // torch.Tensor.is_neg, or null
inline PyObject* reinterpret = nullptr;  // the function of torch that sees memory as another tensor; null without one

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

// The order of fastconfig.numbers.DTYPES, and of the kinds in kernels/numba/ir.py.
inline int kind_of(const dlpack::DataType& dtype) {
  if (dtype.lanes != 1) return -1;
  if (dtype.code == dlpack::kBfloat && dtype.bits == 16) return 2;
  if (dtype.code != dlpack::kFloat) return -1;
  return dtype.bits == 32 ? 0 : dtype.bits == 64 ? 1 : dtype.bits == 16 ? 3 : -1;
}

inline int64_t numel(const dlpack::Tensor& tensor) {
  int64_t count = 1;
  for (int32_t d = 0; d < tensor.ndim; ++d) count *= tensor.shape[d];
  return count;
}

inline bool contiguous(const dlpack::Tensor& tensor) {
  int64_t expected = 1;
  for (int32_t d = tensor.ndim - 1; d >= 0; --d) {
    if (tensor.shape[d] == 0) return true;
    if (tensor.shape[d] != 1 && tensor.strides[d] != expected) return false;
    expected *= tensor.shape[d];
  }
  return true;
}

inline bool same_shape(const dlpack::Tensor& a, const dlpack::Tensor& b) {
  if (a.ndim != b.ndim) return false;
  for (int32_t d = 0; d < a.ndim; ++d)
    if (a.shape[d] != b.shape[d]) return false;
  return true;
}

inline char* data(const dlpack::Tensor& tensor) { return static_cast<char*>(tensor.data) + tensor.byte_offset; }

inline bool is_row(PyObject* object) { return PyList_Check(object) || PyTuple_Check(object); }

inline PyObject* item(PyObject* row, Py_ssize_t i) {  // of a list or tuple; borrowed
  return PyList_Check(row) ? PyList_GET_ITEM(row, i) : PyTuple_GET_ITEM(row, i);
}

// Tensor i of column p: rows are lists or tuples, or, where ``vectors``, the tensors themselves; borrowed.
inline PyObject* element(PyObject* rows, Py_ssize_t i, Py_ssize_t p, bool vectors) {
  PyObject* row = PyList_GET_ITEM(rows, i);
  return vectors ? row : item(row, p);
}

inline bool as_int(PyObject* object, int64_t& value) {
  value = PyLong_AsLongLong(object);
  return !(value == -1 && PyErr_Occurred());
}

inline bool as_ints(PyObject* const* arguments, int64_t* values, int count) {
  for (int k = 0; k < count; ++k)
    if (!as_int(arguments[k], values[k])) return false;
  return true;
}

struct Names {
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* grad = PyUnicode_InternFromString("grad");
  PyObject* requires_grad = PyUnicode_InternFromString("requires_grad");
  PyObject* is_leaf = PyUnicode_InternFromString("is_leaf");
  PyObject* hooks = PyUnicode_InternFromString("_post_accumulate_grad_hooks");
  PyObject* is_neg = PyUnicode_InternFromString("is_neg");
  PyObject* new_empty = PyUnicode_InternFromString("new_empty");
  PyObject* counts = PyUnicode_InternFromString("counts");
  PyObject* updates = PyUnicode_InternFromString("updates");
  PyObject* beta_1 = PyUnicode_InternFromString("beta_1");
  PyObject* beta_2 = PyUnicode_InternFromString("beta_2");
};

inline const Names& names() {
  static const Names interned;
  return interned;
}

inline bool holds(PyObject* tuple, const void* object) {
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(tuple); ++k)
    if (PyTuple_GET_ITEM(tuple, k) == object) return true;
  return false;
}

// Whether a tensor is a view that negates what its memory holds; -1 with a Python error. Asked of every tensor: without
// the look-up of a call, if torch's method is of a kind that is known here.
inline int is_negative(PyObject* tensor) {
  const Reference answer(negates != nullptr ? negates(tensor, nullptr)
                                            : PyObject_CallMethodNoArgs(tensor, names().is_neg));
  return answer ? answer.get() != Py_False : -1;
}

// Whether an object is a tensor of one of the types with memory of its own, on the CPU or a CUDA device, and what it is
// like.
inline bool view(PyObject* object, PyObject* types, dlpack::Tensor& tensor) {
  if (!holds(types, Py_TYPE(object))) return false;
  if (exchange->from_object(object, &tensor) != 0) {
    PyErr_Clear();  // sparse, a transform's wrapper, ...
    return false;
  }
  if (tensor.device.type != dlpack::kCpu && tensor.device.type != dlpack::kCuda) return false;
  if (kind_of(tensor.dtype) < 0 || (tensor.data == nullptr && numel(tensor) != 0)) return false;
  return is_negative(object) == 0;
}

// Whether a tensor is part of no graph: it may be written over. False also with a Python error.
inline bool is_free(PyObject* tensor) {
  const Reference graph(PyObject_GetAttr(tensor, names().requires_grad));
  return graph.get() == Py_False;
}

// Whether hooks wait for a parameter's gradient; true also with a Python error.
inline bool has_hooks(PyObject* parameter) {
  const Reference hooks(PyObject_GetAttr(parameter, names().hooks));
  return !hooks || (hooks.get() != Py_None && (!PyDict_Check(hooks.get()) || PyDict_Size(hooks.get()) != 0));
}

// Whether torch.jit.trace, a transform of torch.func or a TorchDispatchMode looks on: it would miss what is done to memory
// behind torch's back, so that only torch's own operations will do.
inline bool watched() {
  const Reference tracing(PyObject_CallNoArgs(is_tracing));
  const Reference depth(PyObject_CallNoArgs(dispatch_depth));
  const Reference level(PyObject_CallNoArgs(transform));
  const bool alone = tracing.get() == Py_False && depth && PyLong_AsLong(depth.get()) == 0 && level.get() == Py_None;
  PyErr_Clear();  // the long way meets the same error
  return !alone;
}

// tensor.new_empty(size), on its device whatever torch's default is, and what it is like; new, or null with a Python
// error. size: an integer or a tuple of them, owned here; null is an error already.
inline PyObject* new_sized(PyObject* like, PyObject* size, dlpack::Tensor& tensor) {
  const Reference owned(size);
  PyObject* made = owned ? PyObject_CallMethodOneArg(like, names().new_empty, owned.get()) : nullptr;
  if (made != nullptr && exchange->from_object(made, &tensor) == 0) return made;
  Py_XDECREF(made);
  return nullptr;
}

inline PyObject* new_vector(PyObject* like, int64_t size, dlpack::Tensor& tensor) {
  return new_sized(like, PyLong_FromLongLong(size), tensor);
}

// empty_like(row) of torch.empty_like: quicker for a vector of the row's length.
inline PyObject* new_like(PyObject* empty_like, PyObject* row, dlpack::Tensor& tensor) {
  PyObject* vector = PyObject_CallOneArg(empty_like, row);
  if (vector != nullptr && exchange->from_object(vector, &tensor) == 0) return vector;
  Py_XDECREF(vector);
  return nullptr;
}

// A function as a method table of METH_FASTCALL wants it.
inline PyCFunction fast(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

inline int64_t integer(const void* pointer) { return static_cast<int64_t>(reinterpret_cast<uintptr_t>(pointer)); }

// Keeps torch's exchange table, of a version that is known here, and what watched() asks; false and a Python error for
// another object.
inline bool keep_exchange(PyObject* capsule) {
  const void* pointer = PyCapsule_GetPointer(capsule, dlpack::kCapsule);
  if (pointer == nullptr) return false;
  const auto* api = static_cast<const dlpack::ExchangeApi*>(pointer);
  while (api != nullptr && api->version.major != 1) api = api->previous;
  const Reference torch(PyImport_ImportModule("torch._C"));
  const Reference functorch(PyImport_ImportModule("torch._C._functorch"));
  if (!torch || !functorch) return false;
  is_tracing = PyObject_GetAttrString(torch.get(), "_is_tracing");
  dispatch_depth = PyObject_GetAttrString(torch.get(), "_len_torch_dispatch_stack");
  transform = PyObject_GetAttrString(functorch.get(), "peek_interpreter_stack");
  if (is_tracing == nullptr || dispatch_depth == nullptr || transform == nullptr) return false;
  const Reference base(PyObject_GetAttrString(torch.get(), "TensorBase"));
  const Reference method(base ? PyObject_GetAttrString(base.get(), "is_neg") : nullptr);
  if (method && Py_TYPE(method.get()) == &PyMethodDescr_Type) {
    const PyMethodDef* definition = reinterpret_cast<PyMethodDescrObject*>(method.get())->d_method;
    negates = definition->ml_flags == METH_NOARGS ? definition->ml_meth : nullptr;
  }
  PyErr_Clear();
  const Reference guards(PyImport_ImportModule("torch._C._dynamo.guards"));
  reinterpret = guards ? PyObject_GetAttrString(guards.get(), "_reinterpret_tensor") : nullptr;
  PyErr_Clear();  // private to torch: without it results are made one by one
  if (api != nullptr && api->from_object != nullptr) exchange = api;
  return true;
}

}  // namespace fastconfig

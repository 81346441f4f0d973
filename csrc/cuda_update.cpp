// The quick way in for eager updates: gradients are checked, the result is made and the launches are sent in one call.
// Anything that it does not know answers None, and fastconfig/gradients/rows.py looks closer (and explains what is wrong).
#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "calls.hpp"
#include "packing.hpp"
#include "results.hpp"
#include "tensors.hpp"

namespace fastconfig {
namespace {

constexpr int64_t kMostShared = 256 << 20;  // bytes of a buffer that several results share

PyObject* none() { return Py_NewRef(Py_None); }

// Whether each element has a place of its own in one stretch of memory, in whatever order of the dimensions.
bool dense(const dlpack::Tensor& tensor) {
  int64_t expected = 1;
  for (int32_t rest = tensor.ndim; rest > 0; --rest) {
    int32_t next = -1;
    for (int32_t d = 0; d < tensor.ndim && next < 0; ++d)
      if (tensor.shape[d] != 1 && tensor.strides[d] == expected) next = d;
    if (next < 0) break;
    expected *= tensor.shape[next];
  }
  return expected == numel(tensor);
}

// The m tensors of one parameter: of one shape, and in one order of memory. Those that are None are left out.
struct Column {
  PyObject* first = nullptr;  // borrowed
  dlpack::Tensor tensor{};
  bool ordered = false;  // contiguous

  // False for a tensor that does not fit the others.
  bool take(PyObject* object, const dlpack::Tensor& other) {
    if (first == nullptr) {
      first = object;
      tensor = other;
      ordered = contiguous(other);
      return ordered || dense(other);
    }
    if (!same_shape(other, tensor)) return false;
    if (ordered) return contiguous(other);
    return std::equal(tensor.strides, tensor.strides + tensor.ndim, other.strides);
  }
};

// One call: what it is told, and what all of its tensors share.
struct Quick {
  PyObject *types, *cutoffs, *scratch;
  int64_t rule = 0;
  int kind = -1;
  int32_t index = 0;
  Context context{};
  Packing packing;

  // The last arguments of a call: types, address of the rule, eight cut-offs (of each kind on devices that compute
  // float64 at a usable rate, then on others), and the scratch memory, tensors by (device, stream). False with a Python
  // error.
  bool read(PyObject* const* arguments) {
    types = arguments[0];
    cutoffs = arguments[2];
    scratch = arguments[3];
    if (PyTuple_Check(types) && PyTuple_Check(cutoffs) && PyTuple_GET_SIZE(cutoffs) == 8 && PyDict_Check(scratch))
      return as_int(arguments[1], rule);
    PyErr_SetString(PyExc_TypeError, "update: want a tuple of types, a rule, eight cut-offs and a dict");
    return false;
  }

  // Whether an object is a tensor of one of the types, on the device and of the kind of those before.
  bool take(PyObject* object, dlpack::Tensor& tensor) {
    if (!view(object, types, tensor) || tensor.device.type != kDeviceType) return false;
    if (kind < 0) {
      kind = kind_of(tensor.dtype);
      index = tensor.device.id;
    }
    return kind_of(tensor.dtype) == kind && tensor.device.id == index;
  }

  int64_t itemsize() const { return kItemsize[kind]; }

  // Whether the kernels take m gradients on the device, which is known and the current one, and no graph records what
  // its stream is told: that needs memory of its own. Finds the stream.
  bool serves(int64_t m) {
    const auto found = known_devices.find(index);
    if (found == known_devices.end() || m < 1 || m > most_rows(found->second)) return false;
    if (current_device != nullptr) {
      const Reference current(PyObject_CallNoArgs(current_device));
      if (!current || PyLong_AsLong(current.get()) != index) return false;
    }
    void* stream = nullptr;
    if (kDeviceType == dlpack::kCuda && exchange->current_stream(kDeviceType, index, &stream) != 0) return false;
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status) != cudaSuccess) {
      (void)cudaGetLastError();  // the other way meets it again
      return false;
    }
    if (status != cudaStreamCaptureStatusNone) return false;
    context = context_of(index, integer(stream), kind);
    return true;
  }

  // Whether both passes were launched: false without enough scratch memory, or with a Python error.
  bool launch() {
    const Py_ssize_t place = kind + (context.device.float64 ? 0 : 4);
    const double rcond = PyFloat_AsDouble(PyTuple_GET_ITEM(cutoffs, place));
    const Reference key(Py_BuildValue("iL", index, static_cast<long long>(integer(context.stream))));
    if (!key || (rcond == -1 && PyErr_Occurred())) return false;
    PyObject* kept = PyDict_GetItemWithError(scratch, key.get());  // borrowed: nothing below lets go of the GIL
    dlpack::Tensor memory{};
    if (kept != nullptr && exchange->from_object(kept, &memory) != 0) return false;
    const bool some = kept != nullptr;
    const Call call{kGram + kCombine, 0, 0, stage_of(rule, rcond)};
    return run_rows(packing, call, context, some ? integer(data(memory)) : 0, some ? numel(memory) : 0) == 0;
  }

  // The result, once it is being computed; None if it is not; null with a Python error.
  PyObject* merged(const Reference& result) {
    if (launch()) return Py_NewRef(result.get());
    return PyErr_Occurred() ? nullptr : none();
  }
};

PyObject* merge_tensor(Quick& quick, PyObject* rows) {
  dlpack::Tensor tensor{}, result{};
  if (!quick.take(rows, tensor)) return none();
  const int32_t d = tensor.ndim - 2;
  if (d < 0 || d > 1 || numel(tensor) == 0 || !quick.serves(tensor.shape[d])) return none();
  const int64_t sizes[] = {tensor.shape[0], tensor.shape[d + 1]};
  const Reference out(d == 0 ? new_vector(rows, sizes[1], result) : new_sized(rows, tuple_of(sizes, 2), result));
  if (!out) return nullptr;
  add_tensor(quick.packing, tensor, quick.itemsize(), integer(data(result)));
  return quick.merged(out);
}

PyObject* merge_vectors(Quick& quick, PyObject* rows) {
  const Py_ssize_t m = PyList_GET_SIZE(rows);
  std::vector<int64_t> addresses(m), steps(m);
  int64_t length = 0;
  for (Py_ssize_t i = 0; i < m; ++i) {
    dlpack::Tensor tensor{};
    if (!quick.take(PyList_GET_ITEM(rows, i), tensor) || tensor.ndim != 1 || tensor.shape[0] == 0) return none();
    if (i == 0) length = tensor.shape[0];
    if (tensor.shape[0] != length) return none();
    addresses[i] = integer(data(tensor));
    steps[i] = tensor.strides[0];
  }
  if (!quick.serves(m)) return none();
  dlpack::Tensor result{};
  const Reference out(new_vector(PyList_GET_ITEM(rows, 0), length, result));
  if (!out) return nullptr;
  quick.packing.m = m;
  quick.packing.add(length, quick.itemsize(), integer(data(result)), addresses, steps);
  return quick.merged(out);
}

// The columns of m rows of as many tensors, and their addresses, row by row of a column; false if they do not fit.
struct Columns {
  std::vector<Column> list;
  std::vector<int64_t> addresses;
  int64_t m = 0;

  bool read(Quick& quick, PyObject* rows) {
    m = PyList_GET_SIZE(rows);
    const Py_ssize_t count = m == 0 ? 0 : Py_SIZE(PyList_GET_ITEM(rows, 0));
    for (int64_t i = 0; i < m; ++i)
      if (!is_row(PyList_GET_ITEM(rows, i)) || Py_SIZE(PyList_GET_ITEM(rows, i)) != count) return false;
    list.resize(count);
    addresses.assign(count * m, 0);
    for (Py_ssize_t p = 0; p < count; ++p) {
      for (int64_t i = 0; i < m; ++i) {
        PyObject* object = element(rows, i, p, false);
        if (object == Py_None) continue;
        dlpack::Tensor tensor{};
        if (!quick.take(object, tensor) || !list[p].take(object, tensor)) return false;
        addresses[p * m + i] = integer(data(tensor));
      }
    }
    return quick.kind >= 0;
  }

  // Tells where each column's result goes, 0 for a column that has none; false if there is no element at all.
  bool pack(Packing& packing, int64_t itemsize, const std::vector<int64_t>& targets) const {
    const std::vector<int64_t> steps(m, 1);
    packing.m = m;
    for (size_t p = 0; p < list.size(); ++p) {
      if (list[p].first == nullptr) continue;
      const auto row = addresses.begin() + p * m;
      packing.add(numel(list[p].tensor), itemsize, targets[p], {row, row + m}, steps);
    }
    return packing.chunks() > 0;
  }

  // A list of results, None where no row has a tensor, in one buffer; null with a Python error, or if they are too large
  // to share one.
  PyObject* new_results(int64_t itemsize, std::vector<int64_t>& targets) const {
    Places places(itemsize);
    std::vector<int64_t> starts(list.size());
    PyObject* like = nullptr;
    for (size_t p = 0; p < list.size(); ++p) {
      if (list[p].first == nullptr) continue;
      like = list[p].first;
      starts[p] = places.add(numel(list[p].tensor));
    }
    if (places.end() > kMostShared / itemsize) return nullptr;
    dlpack::Tensor memory{};
    const Reference buffer(new_vector(like, places.end(), memory));
    const Reference results(buffer ? PyList_New(static_cast<Py_ssize_t>(list.size())) : nullptr);
    if (!results) return nullptr;
    targets.assign(list.size(), 0);
    Pieces pieces(buffer.get());
    for (size_t p = 0; p < list.size(); ++p) {
      const dlpack::Tensor& t = list[p].tensor;
      PyObject* piece = list[p].first == nullptr ? none()
                        : list[p].ordered        ? pieces.contiguous(t.shape, t.ndim, starts[p])
                                                 : pieces.strided(t.shape, t.strides, t.ndim, starts[p]);
      if (piece == nullptr) return nullptr;
      PyList_SET_ITEM(results.get(), static_cast<Py_ssize_t>(p), piece);
      targets[p] = integer(data(memory)) + starts[p] * itemsize;
    }
    return Py_NewRef(results.get());
  }
};

PyObject* merge_parameters(Quick& quick, PyObject* rows) {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(rows); ++i) {  // a caller's list may change meanwhile
    PyObject* row = PyList_GET_ITEM(rows, i);
    if (!PyList_Check(row)) continue;
    PyObject* ours = PyList_AsTuple(row);
    if (ours == nullptr) return nullptr;
    PyList_SetItem(rows, i, ours);
  }
  Columns columns;
  if (reinterpret == nullptr || !columns.read(quick, rows) || !quick.serves(columns.m)) return none();
  std::vector<int64_t> targets;
  const Reference results(columns.new_results(quick.itemsize(), targets));
  if (!results) return PyErr_Occurred() ? nullptr : none();
  return columns.pack(quick.packing, quick.itemsize(), targets) ? quick.merged(results) : none();
}

// Looks at .grad of a parameter: free, and like the gradients of its column, so that it can take the update; no hook
// waits for it.
bool read_target(Quick& quick, PyObject* parameter, PyObject* grad, Column& column, int64_t& address) {
  dlpack::Tensor tensor{};
  if (has_hooks(parameter) || !quick.take(grad, tensor) || !column.take(grad, tensor) || !is_free(grad)) return false;
  address = integer(data(tensor));
  return true;
}

}  // namespace

// update(grads, types, rule, cutoffs, scratch) -> the update of gradients in any of the three forms, launched on the
// current stream of their device, which is the current one; or None. Tensors are of exactly one of the types and one
// dtype, the rows of a parameter in one dense order. types...: see Quick::read.
PyObject* update(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Quick quick;
  if (count != 5) {
    PyErr_SetString(PyExc_TypeError, "update takes 5 arguments");
    return nullptr;
  }
  if (!quick.read(arguments + 1)) return nullptr;
  if (exchange == nullptr || watched()) return none();
  PyObject* grads = arguments[0];
  PyObject* found = guarded([&]() -> PyObject* {
    if (holds(quick.types, Py_TYPE(grads))) return merge_tensor(quick, grads);
    if (!is_row(grads) || Py_SIZE(grads) == 0) return none();
    const Reference rows(PySequence_List(grads));  // the caller's may change, and its tensors die
    if (!rows) return nullptr;
    const bool parameters = is_row(PyList_GET_ITEM(rows.get(), 0));
    return parameters ? merge_parameters(quick, rows.get()) : merge_vectors(quick, rows.get());
  });
  if (found != nullptr && PyErr_Occurred()) Py_CLEAR(found);
  return found;
}

// merge_into(rows, parameters, types, rule, cutoffs, scratch) -> the parameters' .grad, a list without those that no row
// has, which the update is being written to; or None. rows: a list of m lists or tuples of gradients, None is zeros.
PyObject* merge_into(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Quick quick;
  if (count != 6 || !PyList_Check(arguments[0]) || !PyList_Check(arguments[1])) {
    PyErr_SetString(PyExc_TypeError, "merge_into takes lists of rows and of parameters, and four more arguments");
    return nullptr;
  }
  if (!quick.read(arguments + 2)) return nullptr;
  if (exchange == nullptr || watched()) return none();
  PyObject* found = guarded([&]() -> PyObject* {
    Columns columns;
    const Py_ssize_t count = PyList_GET_SIZE(arguments[1]);
    if (!columns.read(quick, arguments[0]) || static_cast<Py_ssize_t>(columns.list.size()) != count) return none();
    const Reference grads(PyList_New(0));
    if (!grads) return nullptr;
    std::vector<int64_t> targets(count, 0);
    for (Py_ssize_t p = 0; p < count; ++p) {
      if (columns.list[p].first == nullptr) continue;
      PyObject* parameter = PyList_GET_ITEM(arguments[1], p);
      const Reference grad(PyObject_GetAttr(parameter, names().grad));
      if (!grad || !read_target(quick, parameter, grad.get(), columns.list[p], targets[p])) return none();
      if (PyList_Append(grads.get(), grad.get()) != 0) return nullptr;
    }
    if (!quick.serves(columns.m) || !columns.pack(quick.packing, quick.itemsize(), targets)) return none();
    return quick.merged(grads);
  });
  if (found != nullptr && PyErr_Occurred()) Py_CLEAR(found);
  return found;
}

}  // namespace fastconfig

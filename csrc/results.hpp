// New tensors for the results of many parameters: pieces of one buffer, which costs one allocation. They are no views
// to autograd: each counts its own versions.
#pragma once

#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tensors.hpp"

namespace fastconfig {

constexpr int64_t kPieceBytes = 128;  // pieces begin on whole cache lines

// Where pieces begin in their buffer, in elements.
class Places {
 public:
  explicit Places(int64_t itemsize) : step_(kPieceBytes / itemsize) {}
  int64_t add(int64_t count) {
    const int64_t place = end_;
    end_ += (count + step_ - 1) / step_ * step_;
    return place;
  }
  int64_t end() const { return end_; }

 private:
  int64_t step_, end_ = 0;
};

// A tuple of integers; new, or null with a Python error.
inline PyObject* tuple_of(const int64_t* values, Py_ssize_t count) {
  PyObject* tuple = PyTuple_New(count);
  for (Py_ssize_t k = 0; tuple != nullptr && k < count; ++k) {
    PyObject* value = PyLong_FromLongLong(values[k]);
    if (value == nullptr) Py_CLEAR(tuple);
    else PyTuple_SET_ITEM(tuple, k, value);
  }
  return tuple;
}

// Tensors of the elements of a buffer. Neighbours are often alike, and then share what describes them.
class Pieces {
 public:
  explicit Pieces(PyObject* buffer) : buffer_(buffer) {}
  Pieces(const Pieces&) = delete;
  Pieces& operator=(const Pieces&) = delete;
  ~Pieces() {
    Py_XDECREF(sizes_);
    Py_XDECREF(steps_);
  }

  // One from a place on, of the shape and strides; new, or null with a Python error.
  PyObject* strided(const int64_t* shape, const int64_t* strides, size_t ndim, int64_t place) {
    if (steps_ == nullptr || !is(shape_, shape, ndim) || !is(strides_, strides, ndim)) {
      shape_.assign(shape, shape + ndim);
      strides_.assign(strides, strides + ndim);
      Py_XSETREF(sizes_, tuple_of(shape, static_cast<Py_ssize_t>(ndim)));
      Py_XSETREF(steps_, tuple_of(strides, static_cast<Py_ssize_t>(ndim)));
    }
    const Reference first(PyLong_FromLongLong(place));
    if (sizes_ == nullptr || steps_ == nullptr || !first) return nullptr;
    PyObject* arguments[] = {buffer_, sizes_, steps_, first.get()};
    return PyObject_Vectorcall(reinterpret, arguments, 4, nullptr);
  }

  // The same for a contiguous one.
  PyObject* contiguous(const int64_t* shape, size_t ndim, int64_t place) {
    ordered_.assign(ndim, 1);
    for (size_t d = ndim; d-- > 1;) ordered_[d - 1] = ordered_[d] * (shape[d] > 1 ? shape[d] : 1);
    return strided(shape, ordered_.data(), ndim, place);
  }

 private:
  static bool is(const std::vector<int64_t>& kept, const int64_t* values, size_t count) {
    return kept.size() == count && std::equal(kept.begin(), kept.end(), values);
  }

  PyObject* buffer_;  // borrowed
  PyObject *sizes_ = nullptr, *steps_ = nullptr;  // of the last one
  std::vector<int64_t> shape_, strides_, ordered_;
};

}  // namespace fastconfig

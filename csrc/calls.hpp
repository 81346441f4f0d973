// What every call from Python into the CUDA kernels begins with: device, stream, scratch memory, and exceptions.
#pragma once

#include <Python.h>

#include <cstdint>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>

#include "launch.hpp"

namespace fastconfig {

constexpr int kItemsize[] = {4, 8, 2, 2};  // of the kinds

inline bool one_launch = true, overlapped = true;

inline const Device& device_of(int index) {
  static std::map<int, Device> known;
  const auto found = known.find(index);
  if (found != known.end()) return found->second;
  check(cudaSetDevice(index), "cudaSetDevice");
  Device device;
  int cooperative = 0;
  check(cudaDeviceGetAttribute(&device.processors, cudaDevAttrMultiProcessorCount, index), "multiprocessors");
  check(cudaDeviceGetAttribute(&device.major, cudaDevAttrComputeCapabilityMajor, index), "compute capability");
  check(cudaDeviceGetAttribute(&device.minor, cudaDevAttrComputeCapabilityMinor, index), "compute capability");
  check(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, index), "cooperative launches");
  const int compiled = compiled_capability();
  device.cooperative = cooperative != 0;
  device.float64 = computes_float64(compiled);
  return known.emplace(index, device).first->second;
}

inline Context context_of(int64_t index, int64_t stream, int kind) {
  check(cudaSetDevice(static_cast<int>(index)), "cudaSetDevice");
  const Device& device = device_of(static_cast<int>(index));
  return {reinterpret_cast<cudaStream_t>(stream), device, kind, overlapped && device.major >= 9};
}

// Throws for a number of gradients that the kernels do not take.
inline void check_rows(const char* function, int64_t m, int64_t most) {
  if (m >= 1 && m <= most) return;
  throw std::invalid_argument(std::string(function) + ": got " + std::to_string(m) + " gradients, want 1.." +
                              std::to_string(most));
}

inline Stage stage_of(int64_t rule, double rcond) {
  return {rule == 0 ? Rule{} : *reinterpret_cast<const Rule*>(rule), rcond};
}

// Scratch memory of one call, in pieces.
class Scratch {
 public:
  explicit Scratch(int64_t address) : memory_(reinterpret_cast<double*>(address)) {}
  double* take(int64_t count) {
    double* piece = memory_ + used_;
    used_ += count;
    return piece;
  }

 private:
  double* memory_;
  int64_t used_ = 0;
};

// f(), with a C++ exception as a Python one.
template <class F>
PyObject* guarded(F f) {
  try {
    return f();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// The momentum functions of the module, csrc/cuda_momentum.cpp.
PyObject* momentum(PyObject*, PyObject* const* arguments, Py_ssize_t count);

}  // namespace fastconfig

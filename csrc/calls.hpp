// What every call from Python into the CUDA kernels begins with: device, stream, scratch memory, and exceptions.
#pragma once

#include <Python.h>

#include <cstdint>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "dlpack.hpp"
#include "launch.hpp"
#include "packing.hpp"

namespace fastconfig {

#if defined(FASTCONFIG_EMULATED)
constexpr int32_t kDeviceType = dlpack::kCpu;
#else
constexpr int32_t kDeviceType = dlpack::kCuda;
#endif

constexpr int64_t kGram = 1, kCombine = 2;  // steps of a run; both together are an update

constexpr int kItemsize[] = {4, 8, 2, 2};  // of the kinds

inline bool one_launch = true, overlapped = true;
inline PyObject* current_device = nullptr;  // torch's function, or null where there is one device only

inline std::map<int, Device> known_devices;

inline const Device& device_of(int index) {
  const auto found = known_devices.find(index);
  if (found != known_devices.end()) return found->second;
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
  return known_devices.emplace(index, device).first->second;
}

// The current one, of which a context was made.
inline Device& current_known_device() {
  int index = 0;
  check(cudaGetDevice(&index), "cudaGetDevice");
  return known_devices.at(index);
}

inline Context context_of(int64_t index, int64_t stream, int kind) {
  check(cudaSetDevice(static_cast<int>(index)), "cudaSetDevice");
  const Device& device = device_of(static_cast<int>(index));
  return {reinterpret_cast<cudaStream_t>(stream), device, kind, overlapped && device.major >= 9};
}

// Gradients that the kernels take on a device.
inline int64_t most_rows(const Device& device) { return device.float64 ? kMostRows : kSmallRows; }

// Throws for a number of gradients that the kernels do not take.
inline void check_rows(const char* function, int64_t m, int64_t most) {
  if (m >= 1 && m <= most) return;
  throw std::invalid_argument(std::string(function) + ": got " + std::to_string(m) + " gradients, want 1.." +
                              std::to_string(most));
}

// Of the rule that lies at an address, or of none.
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

// What launch_coefficients takes of it.
inline int64_t coefficients_doubles(int64_t m, int64_t problems, const Stage& stage) {
  const int64_t at_once = problems < kProblems ? problems : kProblems;
  return is_light(stage) ? at_once * m * m : heavy_doubles(stage.rule.method, static_cast<int>(m), at_once);
}

// What an update whose m x m stage runs alone takes beside the partial Gram matrices.
inline int64_t lone_stage_doubles(int64_t m, int64_t problems, const Stage& stage) {
  const int64_t at_once = problems < kProblems ? problems : kProblems;
  return at_once * m * (m + 1) + coefficients_doubles(m, problems, stage);
}

// Coefficients (problems, m) from Gram matrices, by a launch of their own.
inline void launch_coefficients(const Context& context, int64_t m, int64_t first, int64_t problems, const double* gram,
                                double* c, Scratch& scratch, const Stage& stage) {
  double* const memory = scratch.take(coefficients_doubles(m, problems, stage));
  (is_light(stage) ? launch_solve : launch_heavy)(context, static_cast<int>(m), first, problems, gram, c, memory, stage);
}

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

// A run over the rows of one call: steps, and addresses in device memory that they need.
struct Call {
  int64_t steps, gram, c;
  Stage stage;
};

// Launches a call, and answers 0; or answers how many bytes of scratch memory it needs, if they are more than given.
int64_t run_rows(const Packing& rows, const Call& call, const Context& context, int64_t memory, int64_t bytes);

// Adds the rows of a tensor (m, N) or (B, m, N), whose result begins at an address.
inline void add_tensor(Packing& packing, const dlpack::Tensor& tensor, int64_t size, int64_t target) {
  const int32_t d = tensor.ndim - 2;
  const int64_t m = packing.m = tensor.shape[d], length = tensor.shape[d + 1];
  if (d == 1) {
    packing.problems = tensor.shape[0];
    packing.batch_step = tensor.strides[0] * size;
    packing.out_step = length * size;
  }
  std::vector<int64_t> addresses(m);
  const auto first = static_cast<int64_t>(reinterpret_cast<uintptr_t>(tensor.data)) + static_cast<int64_t>(tensor.byte_offset);
  for (int64_t i = 0; i < m; ++i) addresses[i] = first + i * tensor.strides[d] * size;
  packing.add(length, size, target, addresses, std::vector<int64_t>(m, tensor.strides[d + 1]));
}

// The functions of the module in csrc/cuda_update.cpp.
PyObject* update(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* merge_into(PyObject*, PyObject* const* arguments, Py_ssize_t count);

// That of csrc/cuda_groups.cpp.
PyObject* run_groups(PyObject*, PyObject* const* arguments, Py_ssize_t count);

// The momentum functions of the module, csrc/cuda_momentum.cpp.
PyObject* momentum(PyObject*, PyObject* const* arguments, Py_ssize_t count);

}  // namespace fastconfig

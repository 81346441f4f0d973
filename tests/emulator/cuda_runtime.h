// CUDA on the CPU, for tests: with -I of this folder, g++ compiles kernels and their launches, which then run before
// cudaLaunchKernelEx returns. Shared memory is static thread_local, for a block runs on one OS thread.
#pragma once

#define FASTCONFIG_EMULATED 1

#include <cstddef>
#include <cstdlib>
#include <map>
#include <mutex>
#include <tuple>
#include <type_traits>
#include <utility>

#include "blocks.hpp"
#include "errors.hpp"
#include "intrinsics.hpp"
#include "vector_types.hpp"
#include "warps.hpp"

#define __host__
#define __device__
#define __global__
#define __shared__ static thread_local
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__  // nothing, for the standard library writes __attribute__((__noinline__))
#define __align__(n) __attribute__((aligned(n)))

namespace emulator {

// What the runtime says about the device. A test may change it.
struct Device {
  int processors = 4;
  int major = FASTCONFIG_EMULATED_FLOAT64 ? 9 : 8;  // 9.0 computes float64 at a usable rate, 8.9 does not
  int minor = FASTCONFIG_EMULATED_FLOAT64 ? 0 : 9;
  int cooperative = 1;
  int l2_bytes = 50 << 20;
  int shared_bytes = 227 << 10;  // of a block that asks for them
};

inline Device device;

}  // namespace emulator

using cudaStream_t = struct CUstream_st*;

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrCooperativeLaunch = 95,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
};

enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone = 0,
  cudaStreamCaptureStatusActive = 1,
  cudaStreamCaptureStatusInvalidated = 2,
};

enum cudaLaunchAttributeID {
  cudaLaunchAttributeCooperative = 2,
  cudaLaunchAttributeProgrammaticStreamSerialization = 6,
};

union cudaLaunchAttributeValue {
  char pad[64];
  int cooperative;
  int programmaticStreamSerializationAllowed;
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

struct cudaFuncAttributes {
  int ptxVersion;
  int binaryVersion;
};

inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

inline cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* index) {
  *index = 0;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int index) {
  return emulator::answer(index == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  if (index != 0) return emulator::answer(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = emulator::device.processors; return cudaSuccess;
    case cudaDevAttrL2CacheSize: *value = emulator::device.l2_bytes; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = emulator::device.major; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = emulator::device.minor; return cudaSuccess;
    case cudaDevAttrCooperativeLaunch: *value = emulator::device.cooperative; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = emulator::device.shared_bytes; return cudaSuccess;
  }
  return emulator::answer(cudaErrorInvalidValue);
}

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  const int version = 10 * emulator::device.major + emulator::device.minor;
  *attributes = {version, version};
  return cudaSuccess;
}

namespace emulator {

inline std::mutex allowing;
inline std::map<const void*, size_t> allowed;  // bytes of dynamic shared memory by kernel

inline size_t allowed_bytes(const void* kernel) {
  const std::lock_guard<std::mutex> lock(allowing);
  const auto found = allowed.find(kernel);
  return found == allowed.end() ? 48 << 10 : found->second;
}

}  // namespace emulator

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || value > emulator::device.shared_bytes) return emulator::answer(cudaErrorInvalidValue);
  const std::lock_guard<std::mutex> lock(emulator::allowing);
  emulator::allowed[reinterpret_cast<const void*>(kernel)] = static_cast<size_t>(value);
  return cudaSuccess;
}

inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

inline void cudaGridDependencySynchronize() {}
inline void cudaTriggerProgrammaticLaunchCompletion() {}

namespace emulator {

// Whether the device would take a launch.
inline cudaError_t check(const cudaLaunchConfig_t& config, const void* kernel, bool* cooperative) {
  *cooperative = false;
  for (unsigned k = 0; k < config.numAttrs; ++k) {
    if (config.attrs[k].id == cudaLaunchAttributeCooperative)
      *cooperative = config.attrs[k].val.cooperative != 0;
    else if (config.attrs[k].id != cudaLaunchAttributeProgrammaticStreamSerialization)
      return cudaErrorInvalidValue;
  }
  const auto volume = [](dim3 d) { return uint64_t{d.x} * d.y * d.z; };
  const dim3 grid = config.gridDim;
  const dim3 block = config.blockDim;
  if (config.dynamicSmemBytes > allowed_bytes(kernel)) return cudaErrorInvalidValue;
  if (volume(grid) == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  if (volume(block) == 0 || block.x > 1024 || block.y > 1024 || block.z > 64 || volume(block) > 1024)
    return cudaErrorInvalidConfiguration;
  if (!*cooperative) return cudaSuccess;
  // as where a device is shared, which says that it could
  if (std::getenv("FASTCONFIG_EMULATED_REFUSES") != nullptr) return cudaErrorCooperativeLaunchTooLarge;
  if (device.cooperative == 0) return cudaErrorNotSupported;
  const uint64_t resident = 2048 / ((volume(block) + 31) / 32 * 32) * device.processors;  // 2048 threads a processor
  return volume(grid) > resident ? cudaErrorCooperativeLaunchTooLarge : cudaSuccess;
}

}  // namespace emulator

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "one argument for each parameter of the kernel");
  bool cooperative;
  const cudaError_t error = emulator::check(*config, reinterpret_cast<const void*>(kernel), &cooperative);
  if (error != cudaSuccess) return emulator::answer(error);
  const std::tuple<std::decay_t<Params>...> parameters(std::forward<Args>(args)...);
  emulator::Grid grid(config->gridDim, config->blockDim, config->dynamicSmemBytes, cooperative,
                      reinterpret_cast<const void*>(kernel),
                      [kernel, &parameters] { std::apply(kernel, parameters); });
  emulator::run(grid);
  return cudaSuccess;
}

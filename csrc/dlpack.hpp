// The part of DLPack's binary interface (version 1, stable) that reads a tensor from its Python object without a
// single Python call: torch 2.10 and newer offer it as torch.Tensor.__dlpack_c_exchange_api__.
#pragma once

#include <cstdint>

namespace fastconfig::dlpack {

constexpr int32_t kCpu = 1, kCuda = 2;
constexpr uint8_t kFloat = 2, kBfloat = 4;

struct Device {
  int32_t type;
  int32_t id;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {  // shape and strides (in elements) belong to the Python object
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct Version {
  uint32_t major;
  uint32_t minor;
};

struct ExchangeApi {
  Version version;
  const ExchangeApi* previous;  // of an older version, or null
  void* allocate;
  void* owning_from_object;
  void* to_object;
  int (*from_object)(void* object, Tensor* tensor);  // -1 and a Python error if it fails
  int (*current_stream)(int32_t device_type, int32_t device_id, void** stream);
};

constexpr const char* kCapsule = "dlpack_exchange_api";

}  // namespace fastconfig::dlpack

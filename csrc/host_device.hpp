// Functions that run on the host and, compiled by nvcc, on the device.
#pragma once

#if defined(__CUDACC__)
#define FASTCONFIG_HD __host__ __device__ __forceinline__
// Once an m x m stage, and in every kernel that has one: small code compiles fast and leaves registers to the others.
#define FASTCONFIG_CALLED __host__ __device__ __noinline__
#define FASTCONFIG_ROLLED _Pragma("unroll 1")
#else
#define FASTCONFIG_HD inline
#define FASTCONFIG_CALLED inline
#define FASTCONFIG_ROLLED
#endif

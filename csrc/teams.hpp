// Who works on one m x m problem: a single thread, or on the device a warp or a block.
//
// A team has lanes that go side by side, and consists of parts, teams of neighbouring lanes, which need no barrier of the
// whole as long as each works on rows of its own.
#pragma once

#include <cmath>

#include "host_device.hpp"

namespace fastconfig {

// One thread that does everything.
struct ThreadTeam {
  static constexpr int width = 1, parts = 1;
  FASTCONFIG_HD int lane() const { return 0; }
  FASTCONFIG_HD int apart() const { return 0; }  // the lane's number, of neighbouring numbers in different warps
  FASTCONFIG_HD void sync() const {}
  FASTCONFIG_HD double sum(double v) const { return v; }
  FASTCONFIG_HD void argmax(double&, int&) const {}
  FASTCONFIG_HD int number() const { return 0; }  // of the part that the thread belongs to
  FASTCONFIG_HD ThreadTeam part() const { return {}; }
  FASTCONFIG_HD bool leads() const { return true; }  // whether it belongs to those that go alone where few can go on
  FASTCONFIG_HD ThreadTeam leader() const { return {}; }
};

#if defined(__CUDACC__) || defined(FASTCONFIG_EMULATED)
// Neighbouring lanes of a warp. ORDERED: sums order memory, too, which shuffles alone do not.
template <int LANES, bool ORDERED = true>
struct Lanes {
  static constexpr int width = LANES, parts = 1;
  __device__ __forceinline__ static unsigned mask() {
    if constexpr (LANES == 32)
      return 0xffffffffu;
    else
      return ((1u << LANES) - 1) << (threadIdx.x & 31 & ~(LANES - 1));
  }
  __device__ __forceinline__ int lane() const { return threadIdx.x & (LANES - 1); }
  __device__ __forceinline__ int apart() const { return lane(); }
  __device__ __forceinline__ void sync() const { __syncwarp(mask()); }
  __device__ __forceinline__ double sum(double v) const {
    if constexpr (ORDERED) sync();
#pragma unroll
    for (int hop = LANES / 2; hop; hop >>= 1) v += __shfl_xor_sync(mask(), v, hop);
    return v;
  }
  __device__ __forceinline__ void argmax(double& v, int& i) const {
    if constexpr (ORDERED) sync();
#pragma unroll
    for (int hop = LANES / 2; hop; hop >>= 1) {
      const double other = __shfl_xor_sync(mask(), v, hop);
      const int j = __shfl_xor_sync(mask(), i, hop);
      if (other > v || (other == v && j < i)) {
        v = other;
        i = j;
      }
    }
  }
  __device__ __forceinline__ int number() const { return 0; }
  __device__ __forceinline__ Lanes part() const { return {}; }
  __device__ __forceinline__ bool leads() const { return true; }
  __device__ __forceinline__ Lanes leader() const { return {}; }
};

using WarpTeam = Lanes<32, false>;

// A warp, in parts of 8 lanes.
struct PartedWarp : Lanes<32> {
  static constexpr int parts = 4;
  __device__ __forceinline__ int number() const { return lane() / 8; }
  __device__ __forceinline__ Lanes<8> part() const { return {}; }
};

// A block, in parts of half a warp.
struct BlockTeam {
  static constexpr int width = 512, parts = width / 16;
  __device__ __forceinline__ int lane() const { return threadIdx.x; }
  __device__ __forceinline__ int apart() const { return threadIdx.x % 32 * (width / 32) + threadIdx.x / 32; }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ double sum(double v) const {
    __shared__ double sums[width / 32];
    v = Lanes<32>{}.sum(v);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
    sync();
    v = Lanes<16>{}.sum(sums[threadIdx.x % 16]);
    sync();
    return v;
  }
  __device__ __forceinline__ int number() const { return threadIdx.x / 16; }
  __device__ __forceinline__ Lanes<16> part() const { return {}; }
  __device__ __forceinline__ bool leads() const { return threadIdx.x < 32; }
  __device__ __forceinline__ Lanes<32> leader() const { return {}; }
};
#endif

// f(leader) by those that lead; ends with a barrier of the whole.
template <class Team, class F>
FASTCONFIG_HD void team_leads(const Team& team, F f) {
  if (team.leads()) f(team.leader());
  team.sync();
}

// f(part, i) for i < n, parts side by side; ends with a barrier of the whole.
template <class Team, class F>
FASTCONFIG_HD void team_parts(const Team& team, int n, F f) {
  const auto part = team.part();
  FASTCONFIG_ROLLED for (int i = team.number(); i < n; i += Team::parts) f(part, i);
  team.sync();
}

FASTCONFIG_HD double reciprocal_root(double x) {
#if defined(__CUDA_ARCH__)
  return rsqrt(x);
#else
  return 1 / sqrt(x);
#endif
}

}  // namespace fastconfig

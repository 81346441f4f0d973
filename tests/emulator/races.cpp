// Kernels with and without what orders them, each under several drawn orders: prints the number of different results.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "cuda_runtime.h"

namespace {

constexpr int kThreads = 256, kBlocks = 6, kOrders = 40;
using Results = std::vector<int>;

// Every warp writes, and every thread reads what all have written.
template <bool BARRIER>
void warps(int* out) {
  __shared__ int x[kThreads / 32];
  if (threadIdx.x < kThreads / 32) x[threadIdx.x] = 0;
  __syncthreads();
  if (threadIdx.x % 32 == 0) x[threadIdx.x / 32] = 1;
  if (BARRIER) __syncthreads();
  int sum = 0;
  for (int k = 0; k < kThreads / 32; ++k) sum += x[k];
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// The first warp reuses what the others may not have read yet.
template <bool BARRIER>
void reuse(int* out) {
  __shared__ int x;
  if (threadIdx.x == 0) x = 1;
  __syncthreads();
  const int read = x;
  if (BARRIER) __syncthreads();
  if (threadIdx.x == 0) x = 2;
  out[blockIdx.x * kThreads + threadIdx.x] = read;
}

// The same within a warp.
template <bool BARRIER>
void lanes(int* out) {
  __shared__ int x[kThreads];
  x[threadIdx.x] = 0;
  __syncwarp();
  x[threadIdx.x] = 1;
  if (BARRIER) __syncwarp();
  out[blockIdx.x * kThreads + threadIdx.x] = x[threadIdx.x ^ 31];
}

// Every block counts; one reads the count, or what no other block has a part in.
template <bool BARRIER>
void blocks(int* out) {
  static std::atomic<int> count;
  if (threadIdx.x == 0) out[blockIdx.x] = BARRIER ? 1 : count++ % kBlocks;
}

void count_results(const char* name, void (*kernel)(int*)) {
  std::set<Results> found;
  for (int seed = 0; seed < kOrders; ++seed) {
    setenv("FASTCONFIG_EMULATOR_SEED", std::to_string(seed).c_str(), 1);
    Results out(kBlocks * kThreads);
    cudaLaunchConfig_t config{};
    config.gridDim = kBlocks;
    config.blockDim = kThreads;
    if (cudaLaunchKernelEx(&config, kernel, out.data()) != cudaSuccess) std::exit(1);
    found.insert(out);
  }
  std::printf("%s %zu\n", name, found.size());
}

}  // namespace

int main() {
  count_results("warps-ordered", warps<true>);
  count_results("warps", warps<false>);
  count_results("reuse-ordered", reuse<true>);
  count_results("reuse", reuse<false>);
  count_results("lanes-ordered", lanes<true>);
  count_results("lanes", lanes<false>);
  count_results("blocks-ordered", blocks<true>);
  count_results("blocks", blocks<false>);
  return 0;
}

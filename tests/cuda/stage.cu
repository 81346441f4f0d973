// The m x m stage alone, of ConFIG with the projection length and of UPGrad, for tests/test_cuda_sass.py to count.
#include "stage.cuh"

namespace fastconfig {

template <int M>
__global__ void stage(const double* gram, double* c, int m) {
  __shared__ StageMemory<M> memory;
  if (threadIdx.x < M * M) memory.gram[threadIdx.x] = gram[threadIdx.x];
  __syncthreads();
  const Stage stage{Rule{}, 1e-6};
  if (threadIdx.x < 32 && !solve_full_rank<M>(memory.gram, memory.work, memory.c, m, stage, 0)) memory.c[0] = 0;
  __syncthreads();
  if (threadIdx.x < M) c[threadIdx.x] = memory.c[threadIdx.x];
}

template <int M>
__global__ void projections(const double* gram, double* c, int m) {
  __shared__ StageMemory<M> memory;
  if (threadIdx.x < M * M) memory.gram[threadIdx.x] = gram[threadIdx.x];
  __syncthreads();
  Stage stage{Rule{}, 1e-6};
  stage.rule.method = Method::upgrad;
  if (threadIdx.x < 32 && !solve_projections<M>(memory.gram, memory.work, memory.c, m, stage, 0)) memory.c[0] = 0;
  __syncthreads();
  if (threadIdx.x < M) c[threadIdx.x] = memory.c[threadIdx.x];
}

template __global__ void stage<2>(const double*, double*, int);
template __global__ void stage<3>(const double*, double*, int);
template __global__ void stage<4>(const double*, double*, int);
template __global__ void projections<2>(const double*, double*, int);
template __global__ void projections<3>(const double*, double*, int);
template __global__ void projections<4>(const double*, double*, int);

}  // namespace fastconfig

// The m x m stage of methods that are not light (csrc/rules.def) in a launch of its own: within others, their code would take
// registers from the passes over the gradients. A warp a problem; of many gradients a block, where a method has use for it.
#include <algorithm>

#include "launch.hpp"
#include "vectors.cuh"

namespace fastconfig {
namespace {

constexpr int kUnasked = 48 << 10;  // bytes of shared memory that a block has without asking for them
constexpr int kOwn = 1 << 10;       // of them that kernels declare themselves, or less
constexpr int64_t kScratchDoubles = (64 << 20) / sizeof(double);  // of a launch whose problems need more than that
#if defined(FASTCONFIG_EMULATED)
constexpr int kTeams = 2;  // so that tests see a team with several problems
#else
constexpr int kTeams = 2048;
#endif

// How the problems of a launch are solved.
struct Allotment {
  bool block;    // by a block each, or a warp
  int64_t each;  // doubles of a team: a workspace and its pivots
  bool shared;   // they lie in shared memory
  int64_t teams;
};

Allotment allotted(Method method, int m, int64_t problems) {
  Allotment given{};
  given.block = m > kSmallRows && has_use_for_a_block(method);
  given.each = scratch_doubles(method, m, given.block ? BlockTeam::width : PartedWarp::width) + (m + 1) / 2;
  int device = 0, most = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory");
  given.shared = given.each * static_cast<int64_t>(sizeof(double)) <= most - kOwn;
  const int64_t room = given.shared ? kTeams : std::clamp<int64_t>(kScratchDoubles / given.each, 1, kTeams);
  given.teams = std::min(problems, room);
  return given;
}

// scratch: null, or of every team its memory, `each` doubles; else that is shared memory.
template <class Team>
__global__ void __launch_bounds__(Team::width)
    solve_heavy(const double* gram, double* c, double* scratch, int64_t each, int m, int64_t first, int64_t problems,
                const __grid_constant__ Stage stage) {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  double* const memory = scratch == nullptr ? static_cast<double*>(dynamic_shared()) : scratch + blockIdx.x * each;
  const Workspace workspace(memory, reinterpret_cast<int*>(memory + each - (m + 1) / 2), m);
  for (int64_t number = blockIdx.x; number < problems; number += gridDim.x)
    coefficients<Weight::heavy, Weight::medium>(
        Team{}, workspace, {gram + number * m * m, m, stage.rule, first + number, stage.rcond}, c + number * m);
}

}  // namespace

int64_t heavy_doubles(Method method, int m, int64_t problems) {
  const Allotment given = allotted(method, m, problems);
  return given.shared ? 0 : given.teams * given.each;
}

void launch_heavy(const Context& context, int m, int64_t first, int64_t problems, const double* gram, double* c,
                  double* scratch, const Stage& stage) {
  const Allotment given = allotted(stage.rule.method, m, problems);
  const auto kernel = given.block ? solve_heavy<BlockTeam> : solve_heavy<PartedWarp>;
  const int bytes = given.shared ? static_cast<int>(given.each * sizeof(double)) : 0;
  if (bytes > kUnasked)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "shared memory of a block");
  launch_shared(context, kernel, given.teams, 1, given.block ? BlockTeam::width : PartedWarp::width, bytes,
                Mode::following, gram, c, given.shared ? nullptr : scratch, given.each, m, first, problems, stage);
}

}  // namespace fastconfig

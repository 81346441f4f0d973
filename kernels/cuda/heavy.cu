// The m x m stage of methods that are not light (csrc/rules.def) in a launch of its own: within others, their code would take
// registers from the passes over the gradients. One warp a problem, whatever m is.
#include <algorithm>

#include "launch.hpp"
#include "vectors.cuh"

namespace fastconfig {
namespace {

constexpr int kLanes = WarpTeam::width;
constexpr int64_t kSharedDoubles = (48 << 10) / sizeof(double);  // of a block, without being asked for
constexpr int64_t kScratchDoubles = (64 << 20) / sizeof(double);  // of a launch whose problems need more than that
#if defined(FASTCONFIG_EMULATED)
constexpr int kWarps = 2;  // so that tests see a warp with several problems
#else
constexpr int kWarps = 2048;
#endif

// Sums also order memory, which shuffles alone do not.
struct OrderedWarp : WarpTeam {
  __device__ __forceinline__ double sum(double v) const {
    sync();
    return WarpTeam::sum(v);
  }
  __device__ __forceinline__ void argmax(double& v, int& i) const {
    sync();
    WarpTeam::argmax(v, i);
  }
};

// Of a warp: a workspace and its pivots.
int64_t doubles_of(Method method, int m) { return scratch_doubles(method, m, kLanes) + (m + 1) / 2; }

bool fits(Method method, int m) { return doubles_of(method, m) <= kSharedDoubles; }

int64_t warps_of(Method method, int m, int64_t problems) {
  if (fits(method, m)) return std::min<int64_t>(problems, kWarps);
  return std::min(problems, std::clamp<int64_t>(kScratchDoubles / doubles_of(method, m), 1, kWarps));
}

// scratch: null, or of every warp its memory, `each` doubles; else that is shared memory.
__global__ void __launch_bounds__(kLanes)
    solve_heavy(const double* gram, double* c, double* scratch, int64_t each, int m, int64_t first, int64_t problems,
                const __grid_constant__ Stage stage) {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  double* const memory = scratch == nullptr ? static_cast<double*>(dynamic_shared()) : scratch + blockIdx.x * each;
  const Workspace workspace(memory, reinterpret_cast<int*>(memory + each - (m + 1) / 2), m);
  for (int64_t number = blockIdx.x; number < problems; number += gridDim.x)
    coefficients<Weight::heavy, Weight::medium>(
        OrderedWarp{}, workspace, {gram + number * m * m, m, stage.rule, first + number, stage.rcond}, c + number * m);
}

}  // namespace

int64_t heavy_doubles(Method method, int m, int64_t problems) {
  return fits(method, m) ? 0 : warps_of(method, m, problems) * doubles_of(method, m);
}

void launch_heavy(const Context& context, int m, int64_t first, int64_t problems, const double* gram, double* c,
                  double* scratch, const Stage& stage) {
  const Method method = stage.rule.method;
  const int64_t each = doubles_of(method, m);
  const bool shared = fits(method, m);
  launch_shared(context, solve_heavy, warps_of(method, m, problems), 1, kLanes, shared ? static_cast<int>(each * 8) : 0,
                Mode::following, gram, c, shared ? nullptr : scratch, each, m, first, problems, stage);
}

}  // namespace fastconfig

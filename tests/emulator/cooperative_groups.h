// The barrier across the blocks of a cooperative launch.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct grid_group {
  void sync() const { emulator::Block::current()->sync_grid(); }
};

inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups

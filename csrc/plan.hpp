// The launches of one call on a CUDA device: a pure function of the shape and of the device, on the host.
#pragma once

#include <cstdint>

#include "table.hpp"

namespace fastconfig {

constexpr int kSmallRows = 8;     // up to here every block of the last launch adds up all partial Gram matrices
constexpr int kFewRows = 4;       // up to here by a method of medium weight, too
constexpr int kSolvedRows = 16;   // up to here it solves the m x m problem, too
#if defined(FASTCONFIG_EMULATED)
constexpr int64_t kProblems = 3;  // so that tests see several launches
#else
constexpr int64_t kProblems = 65535;  // of a launch: what a grid's second dimension holds
#endif

struct Device {
  int processors = 1;
  int major = 0, minor = 0;
  bool cooperative = false;  // launches whose blocks all run at once
  bool float64 = false;      // float64 at a usable rate: products and, from 7 gradients on, tensor cores
};

// Whether kernels that were compiled for a capability (10 * major + minor) take products in float64: kernels/cuda/vectors.cuh.
FASTCONFIG_HD constexpr bool computes_float64(int compiled) { return compiled == 80 || compiled == 90 || compiled == 100; }

// Shapes of all launches of one call, and what scratch memory they need.
struct Plan {
  bool one_launch;    // the rows stay in registers between both passes
  int kept;           // vectors of a row that a thread keeps
  int rows;           // m, rounded up to what kernels are compiled for
  bool tiles;         // Gram matrix by the float64 tensor cores
  int blocks;         // of a problem, in both passes
  int64_t partials;   // float64 numbers: partial Gram matrices of all problems
  int64_t doubles;    // those and, where launches of their own compute them, Gram matrices, coefficients and scratch
};

// A packed upper triangle of an m x m matrix: its size, the place of (i, j), i <= j, and what stands in a place.
FASTCONFIG_HD constexpr int triangle(int m) { return m * (m + 1) / 2; }
FASTCONFIG_HD constexpr int packed(int i, int j, int m) { return i * m - i * (i - 1) / 2 + j - i; }

struct Unpacked {
  int i = 0, j;
  FASTCONFIG_HD Unpacked(int place, int m) : j(place) {
    for (; j >= m - i; ++i) j -= m - i;
    j += i;
  }
};

// Gradients that a kernel is compiled for.
FASTCONFIG_HD constexpr int small_rows(int m) { return m <= 2 ? 2 : m <= 4 ? m : m <= 6 ? 6 : 8; }
FASTCONFIG_HD constexpr int tile_rows(int m) { return m <= 32 ? (m + 7) / 8 * 8 : m <= 48 ? 48 : 64; }

// Threads of a block; as many as its registers allow, since a multiprocessor runs one block of the gram pass.
FASTCONFIG_HD constexpr int gram_threads(int rows, int size) {  // size: bytes of an element
  return rows <= 2 || (rows == 3 && size > 2) ? 1024 : rows == 3 ? 768 : rows <= 6 ? 512 : 256;
}
// The same where a thread also holds gradients that it adds to the rows.
FASTCONFIG_HD constexpr int moved_threads(int rows) { return rows <= 6 ? 512 : 256; }
FASTCONFIG_HD constexpr int tile_threads(int rows) { return rows == 8 ? 1024 : rows <= 32 ? 512 : 256; }
FASTCONFIG_HD constexpr int moved_tile_threads(int rows) { return rows == 32 ? 384 : tile_threads(rows); }
constexpr int kMovedRows = 32;  // momenta that are moved as they are multiplied; beyond, a lane has no registers for it
constexpr int combine_threads = 512;
constexpr int kept_threads = 256;
constexpr int kSlotChunks = kept_threads / kChunkVectors;  // chunks of a vector of all these threads
// More take longer than two launches: 500,000 float32 elements at m = 3 took 16.1 us on an H200, and 12.6 in two launches.
FASTCONFIG_HD constexpr int most_kept(int rows, int size) {
  return size < 4 || rows > 4 ? 1 : 2;
}

// Whether this device's kernels take the float64 tensor cores for m gradients.
FASTCONFIG_HD constexpr bool uses_tiles(int m, const Device& device) { return device.float64 && m > 6; }

// size: bytes of an element.
inline Plan plan(int m, int64_t chunks, int64_t problems, int size, const Device& device, bool one_launch = true) {
  Plan p{};
  const int64_t batch = problems < 1 ? 1 : problems;
  const int64_t each = device.processors / batch > 1 ? device.processors / batch : 1;
  p.tiles = uses_tiles(m, device);
  p.rows = p.tiles ? tile_rows(m) : small_rows(m);
  const int64_t held = device.processors * kSlotChunks;  // chunks, a vector a thread
  if (one_launch && device.cooperative && m <= kSmallRows && problems == 1 && chunks > 0 &&
      chunks <= held * most_kept(small_rows(m), size)) {
    p.one_launch = true;
    p.tiles = false;
    p.rows = small_rows(m);
    p.kept = chunks <= held ? 1 : most_kept(p.rows, size);
  }
  // of few rows a chunk is too little for a block: every block of the second pass adds up the partials of all
  const int64_t shares = p.tiles ? chunks : (chunks + kSlotChunks - 1) / kSlotChunks;
  p.blocks = static_cast<int>(shares < 1 ? 1 : shares < each ? shares : each);
  p.partials = batch * p.blocks * triangle(m);
  p.doubles = p.partials + (m > kSmallRows ? batch * m * (2 * m + 1) : 0);
  return p;
}

}  // namespace fastconfig

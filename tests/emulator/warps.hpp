// What the threads of a warp do together.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "blocks.hpp"

namespace emulator {

inline constexpr unsigned kFullMask = 0xffffffffu;

template <class T>
struct Shuffle {
  T value;
  unsigned source;
  T result;
};

template <class T>
void resolve_shuffle(void* const* slots, unsigned lanes) {
  for (unsigned left = lanes; left != 0; left &= left - 1) {
    auto& own = *static_cast<Shuffle<T>*>(slots[__builtin_ctz(left)]);
    if (lanes >> own.source & 1)
      own.result = static_cast<const Shuffle<T>*>(slots[own.source])->value;
    else
      std::memset(&own.result, 0xff, sizeof own.result);  // undefined on the device: a NaN shows
  }
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source, const char* operation) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "a type that CUDA can shuffle");
  Shuffle<T> slot{value, source, value};
  Block::current()->sync_warp(mask, operation, &resolve_shuffle<T>, &slot);
  return slot.result;
}

struct Vote {
  bool predicate;
  unsigned ballot, lanes;
};

inline void resolve_vote(void* const* slots, unsigned lanes) {
  unsigned ballot = 0;
  for (unsigned left = lanes; left != 0; left &= left - 1)
    if (static_cast<const Vote*>(slots[__builtin_ctz(left)])->predicate) ballot |= left & -left;
  for (unsigned left = lanes; left != 0; left &= left - 1) {
    auto& own = *static_cast<Vote*>(slots[__builtin_ctz(left)]);
    own.ballot = ballot;
    own.lanes = lanes;
  }
}

inline Vote vote(unsigned mask, bool predicate, const char* operation) {
  Vote slot{predicate, 0, 0};
  Block::current()->sync_warp(mask, operation, &resolve_vote, &slot);
  return slot;
}

// TILES: 8 rows of A each.
template <int TILES>
struct Fragments {
  double a[TILES], b;
  double (*c)[2];
};

template <class T>
void resolve_maximum(void* const* slots, unsigned lanes) {
  T most = *static_cast<const T*>(slots[__builtin_ctz(lanes)]);
  for (unsigned left = lanes; left != 0; left &= left - 1) {
    const T value = *static_cast<const T*>(slots[__builtin_ctz(left)]);
    if (value > most) most = value;
  }
  for (unsigned left = lanes; left != 0; left &= left - 1) *static_cast<T*>(slots[__builtin_ctz(left)]) = most;
}

template <int TILES>
void resolve_dmma(void* const* slots, unsigned lanes) {
  if (lanes != kFullMask) Block::current()->fail("dmma in a warp that lacks lanes");
  const auto at = [slots](int lane) { return static_cast<const Fragments<TILES>*>(slots[lane]); };
  for (int row = 0; row < 8 * TILES; ++row)
    for (int column = 0; column < 8; ++column) {
      double& c = at(row % 8 * 4 + column / 2)->c[row / 8][column % 2];
      for (int k = 0; k < 4; ++k) c = std::fma(at(row % 8 * 4 + k)->a[row / 8], at(column * 4 + k)->b, c);
    }
}

// mma.sync.aligned.m8n8k4.row.col.f64: a = A[lane / 4][lane % 4], b = B[lane % 4][lane / 4], and c[j] =
// C[lane / 4][2 * (lane % 4) + j], to which A B is added.
inline void dmma(double (&c)[2], double a, double b) {
  Fragments<1> slot{{a}, b, &c};
  Block::current()->sync_warp(kFullMask, "dmma", &resolve_dmma<1>, &slot);
}

// mma.sync.aligned.m16n8k4.row.col.f64: the same, and below and c[1] are of the rows 8 + lane / 4.
inline void dmma(double (&c)[2][2], double a, double below, double b) {
  Fragments<2> slot{{a, below}, b, c};
  Block::current()->sync_warp(kFullMask, "dmma", &resolve_dmma<2>, &slot);
}

// The dynamic shared memory of the block, instead of an extern __shared__ array.
inline void* dynamic_shared() { return Block::current()->shared(); }

}  // namespace emulator

inline void __syncthreads() { emulator::Block::current()->sync_block(); }
inline void __syncwarp(unsigned mask = emulator::kFullMask) {
  emulator::Block::current()->sync_warp(mask, "__syncwarp()", nullptr, nullptr);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return emulator::shuffle(mask, value, static_cast<unsigned>(source) % 32, "__shfl_sync()");
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return emulator::shuffle(mask, value, (emulator::Block::current()->lane() ^ bits) % 32, "__shfl_xor_sync()");
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned hop) {
  const unsigned lane = emulator::Block::current()->lane();
  return emulator::shuffle(mask, value, hop < 32 - lane ? lane + hop : lane, "__shfl_down_sync()");
}

inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  emulator::Block::current()->sync_warp(mask, "__reduce_max_sync()", &emulator::resolve_maximum<unsigned>, &value);
  return value;
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return emulator::vote(mask, predicate != 0, "__ballot_sync()").ballot;
}
inline int __any_sync(unsigned mask, int predicate) {
  return emulator::vote(mask, predicate != 0, "__any_sync()").ballot != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  const emulator::Vote result = emulator::vote(mask, predicate != 0, "__all_sync()");
  return result.ballot == result.lanes;
}

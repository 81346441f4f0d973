// The blocks of a launch: each has its threads as fibers on one OS thread, and lets them go on warp by warp. Nothing but
// barriers and the operations of warps says who goes first: the rest is drawn, see order.hpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fibers.hpp"
#include "grid.hpp"
#include "order.hpp"
#include "vector_types.hpp"

namespace emulator {

inline std::atomic<int64_t> launches{0};

// Carries out an operation of a warp once all of its lanes have come: slots[lane] is what each has brought.
using Resolve = void (*)(void* const* slots, unsigned lanes);

class Block {
 public:
  explicit Block(Grid& grid)
      : grid_(grid),
        threads_(grid.threads()),
        fibers_(pool().take(threads_)),
        lanes_(threads_),
        warps_((threads_ + 31) / 32),
        shared_(std::make_unique<Line[]>(grid.shared_bytes / sizeof(Line) + 1)) {
    for (unsigned rank = 0; rank < threads_; ++rank) fibers_[rank]->assign(&thread, this);
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { pool().give(fibers_); }

  // The block that runs on this OS thread.
  static Block*& current() {
    static thread_local Block* block = nullptr;
    return block;
  }

  void run(uint64_t index) {
    const dim3 size = grid_.size;
    blockIdx = {static_cast<unsigned>(index % size.x), static_cast<unsigned>(index / size.x % size.y),
                static_cast<unsigned>(index / size.x / size.y)};
    blockDim = grid_.block;
    gridDim = size;
    current() = this;
    order_ = Order(grid_.seed + index);
    patient_ = order_.below(2) == 0;
    std::memset(shared_.get(), 0xff, grid_.shared_bytes);  // NaN, until the kernel writes it
    live_ = threads_;
    for (unsigned rank = 0; rank < threads_; ++rank) warps_[rank / 32].live |= 1u << rank % 32;
    for (Warp& warp : warps_) warp.runnable = warp.live;
    while (live_ > 0) {
      bool any = false;
      for (unsigned w : order_.shuffled(static_cast<unsigned>(warps_.size()))) any |= run_warp(w);
      if (!any) deadlock();
    }
    grid_.leave();
  }

  unsigned lane() const { return rank_ % 32; }
  void* shared() const { return shared_.get(); }
  [[noreturn]] void fail(const std::string& what) const { grid_.fail(where(rank_) + ": " + what); }

  void sync_block() { wait(at_block_barrier_, "__syncthreads()"); }
  void sync_grid() {
    if (!grid_.cooperative) fail("grid.sync() in a launch that is not cooperative");
    wait(at_grid_barrier_, "grid.sync()");
  }

  // Waits for the lanes of mask, of which the last to come carries out the operation for all.
  void sync_warp(unsigned mask, const char* operation, Resolve resolve, void* slot) {
    if (!(mask >> lane() & 1)) fail(std::string(operation) + " with a mask that leaves it out");
    lanes_[rank_] = {operation, mask, resolve, slot};
    Warp& warp = warps_[rank_ / 32];
    warp.waiting |= 1u << lane();
    warp.runnable &= ~(1u << lane());
    if (!meet(rank_)) fibers_[rank_]->suspend();
  }

 private:
  struct alignas(128) Line {
    char bytes[128];
  };
  struct Lane {
    const char* operation;  // that it waits at
    unsigned mask;          // that it waits for; 0 at a barrier of the block
    Resolve resolve;
    void* slot;
  };
  struct Warp {
    unsigned live = 0;      // lanes that have not returned
    unsigned runnable = 0;  // lanes that wait for nothing
    unsigned waiting = 0;   // lanes at an operation of the warp
  };

  static void thread(void* self) {
    auto* const block = static_cast<Block*>(self);
    block->grid_.body();
    block->leave();
  }

  // Whether a lane could go on. A patient block has a warp run up to the next barrier of the block, another one for a
  // part of the way.
  bool run_warp(unsigned w) {
    Warp& warp = warps_[w];
    const bool any = warp.runnable != 0;
    for (uint64_t rounds = patient_ ? UINT64_MAX : order_.below(4) + 1; warp.runnable != 0 && rounds > 0; --rounds) {
      const uint64_t drawn = order_.draw();
      const unsigned ready = warp.runnable, first = drawn % 32, step = drawn / 32 % 32 | 1;  // odd: meets every lane
      for (unsigned k = 0; k < 32; ++k) {
        const unsigned lane = (first + k * step) % 32;
        if ((ready >> lane & 1) == 0) continue;
        rank_ = w * 32 + lane;
        threadIdx = index(rank_);
        fibers_[rank_]->resume();
      }
    }
    return any;
  }

  void wait(unsigned& arrived, const char* operation) {
    lanes_[rank_] = {operation, 0, nullptr, nullptr};
    warps_[rank_ / 32].runnable &= ~(1u << lane());
    ++arrived;
    if (!release(arrived)) fibers_[rank_]->suspend();
  }

  bool release(unsigned& arrived) {
    if (arrived < live_) return false;
    arrived = 0;
    if (&arrived == &at_grid_barrier_) grid_.wait();
    for (Warp& warp : warps_) warp.runnable = warp.live;
    return true;
  }

  // The operation of the warp that a thread waits at, if all lanes have come.
  bool meet(unsigned rank) {
    Warp& warp = warps_[rank / 32];
    const unsigned first = rank / 32 * 32;
    const Lane& own = lanes_[rank];
    const unsigned members = own.mask & warp.live;
    if ((warp.waiting & members) != members) return false;
    void* slots[32] = {};
    for (unsigned left = members; left != 0; left &= left - 1) {
      const unsigned lane = __builtin_ctz(left);
      const Lane& other = lanes_[first + lane];
      if (other.mask != own.mask) return false;
      if (other.resolve != own.resolve)
        grid_.fail(where(rank) + " is at " + own.operation + ", but " + where(first + lane) + " of its mask at " +
                   other.operation);
      slots[lane] = other.slot;
    }
    if (own.resolve != nullptr) own.resolve(slots, members);
    warp.waiting &= ~members;
    warp.runnable |= members;
    return true;
  }

  // A thread has returned. It counts as arrived wherever others wait for it.
  void leave() {
    Warp& warp = warps_[rank_ / 32];
    warp.live &= ~(1u << lane());
    warp.runnable &= warp.live;
    if (--live_ == 0) return;
    if (!release(at_block_barrier_)) release(at_grid_barrier_);
    for (unsigned left = warp.waiting; left != 0; left &= left - 1) {
      const unsigned lane = __builtin_ctz(left);
      if (warp.waiting >> lane & 1) meet(rank_ / 32 * 32 + lane);
    }
  }

  uint3 index(unsigned rank) const {
    const dim3 size = grid_.block;
    return {rank % size.x, rank / size.x % size.y, rank / size.x / size.y};
  }
  std::string where(unsigned rank) const {
    const uint3 i = index(rank);
    return "thread (" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
  }

  [[noreturn]] void deadlock() const {
    std::map<std::pair<std::string, unsigned>, std::vector<unsigned>> waiting;
    for (unsigned rank = 0; rank < threads_; ++rank)
      if (warps_[rank / 32].live >> rank % 32 & 1)
        waiting[{lanes_[rank].operation, lanes_[rank].mask}].push_back(rank);
    std::string text = "deadlock: " + std::to_string(threads_ - live_) + " of its " + std::to_string(threads_) +
                       " threads have returned";
    for (const auto& [at, ranks] : waiting) {
      char mask[24] = "";
      if (at.second != 0) std::snprintf(mask, sizeof mask, " of mask 0x%08x", at.second);
      text += "; " + std::to_string(ranks.size()) + " wait at " + at.first + mask + ", the first is " +
              where(ranks.front());
    }
    grid_.fail(text);
  }

  Grid& grid_;
  const unsigned threads_;
  const std::vector<Fiber*> fibers_;
  std::vector<Lane> lanes_;  // by rank in the block
  std::vector<Warp> warps_;
  const std::unique_ptr<Line[]> shared_;
  unsigned at_block_barrier_ = 0, at_grid_barrier_ = 0;  // threads that have arrived
  unsigned live_ = 0;
  unsigned rank_ = 0;  // of the thread that runs
  Order order_{0};
  bool patient_ = true;
};

// All blocks of a cooperative launch at once, those of another in a drawn order and as many at a time as is drawn.
inline void run(Grid& grid) {
  const uint64_t blocks = grid.blocks();
  Order order(grid.seed);
  const std::vector<unsigned> drawn = order.shuffled(static_cast<unsigned>(blocks));
  std::atomic<uint64_t> next{0};
  const auto work = [&] {
    std::fesetenv(FE_DFL_ENV);  // as on the device, whatever the process does with denormals
    Block block(grid);
    for (uint64_t k; (k = next++) < blocks;) block.run(drawn[k]);
  };
  const uint64_t most = std::max(2u, std::thread::hardware_concurrency());
  const uint64_t workers = grid.cooperative ? blocks : std::min(blocks, order.below(most) + 1);
  std::vector<std::thread> threads;
  for (uint64_t k = 0; k < workers; ++k) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  ++launches;
}

}  // namespace emulator

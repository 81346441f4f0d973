// A launch: the grid and the barrier across its blocks.
#pragma once

#include <cxxabi.h>
#include <dlfcn.h>

#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <string>
#include <utility>

#include "order.hpp"
#include "vector_types.hpp"

namespace emulator {

class Grid {
 public:
  Grid(dim3 size, dim3 block, size_t shared_bytes, bool cooperative, const void* kernel, std::function<void()> body)
      : size(size),
        block(block),
        shared_bytes(shared_bytes),
        cooperative(cooperative),
        body(std::move(body)),
        seed(launch_seed()),
        kernel_(kernel) {}

  const dim3 size, block;
  const size_t shared_bytes;
  const bool cooperative;
  const std::function<void()> body;  // the kernel with its parameters
  const uint64_t seed;               // of the order in which its blocks and their warps run

  uint64_t blocks() const { return uint64_t{size.x} * size.y * size.z; }
  unsigned threads() const { return block.x * block.y * block.z; }

  // Called once by each block that is at the barrier across the grid.
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    if (left_ > 0) fail("deadlock: waits at grid.sync(), but another block has returned");
    if (++waiting_ == blocks()) {
      waiting_ = 0;
      ++generation_;
      released_.notify_all();
    } else {
      released_.wait(lock, [this, before = generation_] { return generation_ != before; });
    }
  }
  // Called once by each block that has returned.
  void leave() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++left_;
    if (waiting_ > 0) fail("deadlock: has returned, but another block waits at grid.sync()");
  }

  // Ends the process, with the kernel and the block that runs here. One message is enough: the lock is kept.
  [[noreturn]] void fail(const std::string& what) const {
    static std::mutex* const once = new std::mutex;
    once->lock();
    std::fprintf(stderr, "emulator: kernel %s, block (%u, %u, %u): %s\n", name().c_str(), blockIdx.x, blockIdx.y,
                 blockIdx.z, what.c_str());
    std::abort();
  }

 private:
  // The kernel's name if it is an exported symbol, else the address that addr2line takes.
  std::string name() const {
    Dl_info info{};
    if (dladdr(kernel_, &info) == 0) return "of unknown name";
    if (info.dli_sname == nullptr || info.dli_saddr != kernel_) {
      char text[40];
      std::snprintf(text, sizeof text, " +0x%zx",
                    static_cast<size_t>(static_cast<const char*>(kernel_) - static_cast<const char*>(info.dli_fbase)));
      return info.dli_fname + std::string(text);
    }
    char* readable = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr);
    const std::string name = readable != nullptr ? readable : info.dli_sname;
    std::free(readable);
    return name;
  }

  const void* const kernel_;
  std::mutex mutex_;
  std::condition_variable released_;
  uint64_t waiting_ = 0, left_ = 0, generation_ = 0;
};

}  // namespace emulator

// Fibers: functions with a stack of their own that run on an OS thread until they suspend themselves.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <vector>

namespace emulator {

// longjmp by the name that _FORTIFY_SOURCE leaves alone: its check takes a jump to another stack for an error. Not
// declared noreturn, so that nothing concludes that a jump leaves memory as it is.
extern "C" void fastconfig_longjmp(__jmp_buf_tag* context, int value) __asm__("_longjmp");

// Opaque to the optimizer: whatever runs until control comes back may write any memory, static variables too.
__attribute__((noipa)) inline void swap(jmp_buf& from, jmp_buf& to) {
  if (_setjmp(from) == 0) fastconfig_longjmp(to, 1);
}

class Fiber {
 public:
  Fiber() : stack_(map()) {
    *reinterpret_cast<uint64_t*>(stack_) = kCanary;
    ucontext_t start;
    getcontext(&start);
    start.uc_stack.ss_sp = stack_;
    start.uc_stack.ss_size = kStack;
    start.uc_link = nullptr;
    const auto address = reinterpret_cast<uint64_t>(this);
    makecontext(&start, reinterpret_cast<void (*)()>(&entry), 2, static_cast<unsigned>(address >> 32),
                static_cast<unsigned>(address));
    if (_setjmp(caller_) == 0) setcontext(&start);
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void assign(void (*work)(void*), void* argument) {
    work_ = work;
    argument_ = argument;
  }
  // Runs the work until it returns or suspends.
  void resume() {
    swap(caller_, own_);
    if (*reinterpret_cast<uint64_t*>(stack_) == kCanary) return;
    std::fprintf(stderr, "emulator: a thread needs more than %zu bytes of stack\n", kStack);
    std::abort();
  }
  // Back to the caller of resume.
  void suspend() { swap(own_, caller_); }

 private:
  static constexpr size_t kStack = size_t{64} << 10;
  static constexpr uint64_t kCanary = 0x5ca1ab1edeadbea7;

  static char* map() {
    void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack != MAP_FAILED) return static_cast<char*>(stack);
    std::perror("emulator: mmap of a stack");
    std::abort();
  }
  static void entry(unsigned high, unsigned low) noexcept {
    auto* self = reinterpret_cast<Fiber*>(uint64_t{high} << 32 | low);
    for (;;) {
      self->suspend();
      self->work_(self->argument_);
    }
  }

  char* stack_;
  jmp_buf own_, caller_;
  void (*work_)(void*) = nullptr;
  void* argument_ = nullptr;
};

// Fibers between two blocks. They live as long as the process.
class Pool {
 public:
  std::vector<Fiber*> take(size_t count) {
    std::vector<Fiber*> taken;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      while (taken.size() < count && !idle_.empty()) {
        taken.push_back(idle_.back());
        idle_.pop_back();
      }
    }
    while (taken.size() < count) taken.push_back(new Fiber);
    return taken;
  }
  void give(const std::vector<Fiber*>& fibers) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.insert(idle_.end(), fibers.rbegin(), fibers.rend());
  }

 private:
  std::mutex mutex_;
  std::vector<Fiber*> idle_;
};

inline Pool& pool() {
  static Pool* const fibers = new Pool;
  return *fibers;
}

}  // namespace emulator

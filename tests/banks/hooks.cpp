// What -fsanitize=thread has code call at every access to memory, in place of the library that looks for races: those
// to variables that an OS thread has for itself are written down while `recording`.
#include "accesses.hpp"

#include <link.h>

#include <cstddef>
#include <cstdint>

bool recording = false;
Access accesses[kMostAccesses];
size_t accesses_count = 0;

namespace {

unsigned epochs[1024];

struct Range {
  uintptr_t begin = 0, end = 0;
};

// Where this program keeps them for the OS thread that asks.
Range own_variables() {
  Range found;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* range) {  // the program comes first
        for (int k = 0; k < info->dlpi_phnum; ++k) {
          const auto begin = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
          if (info->dlpi_phdr[k].p_type == PT_TLS)
            *static_cast<Range*>(range) = {begin, begin + info->dlpi_phdr[k].p_memsz};
        }
        return 1;
      },
      &found);
  return found;
}

void accessed(void* p, unsigned bytes, const void* instruction) {
  if (!recording || accesses_count == kMostAccesses) return;
  static thread_local const Range range = own_variables();
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (address < range.begin || address >= range.end) return;
  accesses[accesses_count++] = {address, instruction, current_thread(), bytes, epochs[current_thread()]};
}

}  // namespace

void next_epoch() { ++epochs[current_thread()]; }

#define FASTCONFIG_HOOKS(bytes)                                                                         \
  void __tsan_read##bytes(void* p) { accessed(p, bytes, __builtin_return_address(0)); }                 \
  void __tsan_write##bytes(void* p) { accessed(p, bytes, __builtin_return_address(0)); }                \
  void __tsan_unaligned_read##bytes(void* p) { accessed(p, bytes, __builtin_return_address(0)); }       \
  void __tsan_unaligned_write##bytes(void* p) { accessed(p, bytes, __builtin_return_address(0)); }

// std::atomic, of the emulator.
#define FASTCONFIG_ATOMICS(bits, type)                                                                            \
  type __tsan_atomic##bits##_load(const volatile type* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }   \
  void __tsan_atomic##bits##_store(volatile type* p, type v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }   \
  type __tsan_atomic##bits##_fetch_add(volatile type* p, type v, int) {                                           \
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                                            \
  }                                                                                                               \
  type __tsan_atomic##bits##_fetch_sub(volatile type* p, type v, int) {                                           \
    return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST);                                                            \
  }

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_read_range(void*, size_t) {}
void __tsan_write_range(void*, size_t) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
FASTCONFIG_HOOKS(1)
FASTCONFIG_HOOKS(2)
FASTCONFIG_HOOKS(4)
FASTCONFIG_HOOKS(8)
FASTCONFIG_HOOKS(16)
FASTCONFIG_ATOMICS(8, uint8_t)
FASTCONFIG_ATOMICS(32, uint32_t)
FASTCONFIG_ATOMICS(64, uint64_t)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) { __atomic_signal_fence(__ATOMIC_SEQ_CST); }

}  // extern "C"

// Accesses to shared memory, which tests/emulator keeps in static variables of an OS thread.
#pragma once

#include <cstddef>
#include <cstdint>

struct Access {
  uintptr_t address;
  const void* instruction;
  unsigned thread, bytes, epoch;
};

constexpr size_t kMostAccesses = size_t{1} << 21;

extern bool recording;
extern Access accesses[kMostAccesses];
extern size_t accesses_count;

// Number in its block of the thread that runs.
unsigned current_thread();

// That thread has come to a barrier or an operation of its warp.
void next_epoch();

// Which of what may run goes first: drawn anew for every launch, the same whenever a seed is set again.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <utility>
#include <vector>

namespace emulator {

// Numbers from a seed, by splitmix64.
class Order {
 public:
  explicit Order(uint64_t seed) : state_(seed) {}

  uint64_t draw() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  uint64_t below(uint64_t count) { return draw() % count; }

  // 0..count - 1 in a drawn order.
  std::vector<unsigned> shuffled(unsigned count) {
    std::vector<unsigned> all(count);
    std::iota(all.begin(), all.end(), 0u);
    for (unsigned k = count; k > 1; --k) std::swap(all[k - 1], all[below(k)]);
    return all;
  }

 private:
  uint64_t state_;
};

// The seed of the next launch: that of FASTCONFIG_EMULATOR_SEED, 0 where there is none, and the number of launches since
// it was set.
inline uint64_t launch_seed() {
  static std::mutex mutex;
  static uint64_t before = 0, count = 0;
  const char* const given = std::getenv("FASTCONFIG_EMULATOR_SEED");
  const uint64_t seed = given == nullptr ? 0 : std::strtoull(given, nullptr, 10);
  const std::lock_guard<std::mutex> lock(mutex);
  if (seed != before) count = 0;
  before = seed;
  return Order(seed + (++count << 32)).draw();
}

}  // namespace emulator

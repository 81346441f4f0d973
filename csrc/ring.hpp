// A monitor's ring in the host's memory, which a compiled call that merges fills itself: fastconfig/monitor/ring.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace fastconfig {

class Ring {
 public:
  // By the address of its words; 0 for none.
  explicit Ring(int64_t address) : words_(reinterpret_cast<int64_t*>(address)) {}

  // Whether m gradients may be merged; true without a ring.
  bool takes(int64_t m) const { return words_ == nullptr || words_[kGradients] == m; }

  // Room for G and then c of the next step, which counts from now on; null if it is not to be kept. Needs the GIL.
  double* next() const {
    if (words_ == nullptr) return nullptr;
    const int64_t step = words_[kStep]++, m = words_[kGradients], width = 1 + m * m + 2 * m;
    if (step % words_[kEvery] != 0) return nullptr;
    double* slot = reinterpret_cast<double*>(words_[kValues]) + words_[kStored]++ % words_[kSlots] * width;
    *slot = static_cast<double>(step);
    std::fill(slot + 1 + m * m + m, slot + width, std::numeric_limits<double>::quiet_NaN());  // no losses
    return slot + 1;
  }

 private:
  enum { kGradients, kEvery, kSlots, kValues, kStep, kStored };
  int64_t* words_;
};

}  // namespace fastconfig

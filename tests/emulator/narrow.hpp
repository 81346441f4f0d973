// Conversions of the 16-bit formats. A float goes through double, which holds it exactly.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace emulator {

// The nearest number, ties to even, with a sign, the exponents from kSmallest on (of a normal number) and kBits bits.
template <int kBits, int kSmallest>
uint16_t narrow(double x) {
  if (std::isnan(x)) return 0x7fff;  // the only NaN that the device gives
  constexpr int kInfinity = (1 << 15) - (1 << kBits);
  const int sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isinf(x)) return static_cast<uint16_t>(sign | kInfinity);
  const double magnitude = std::fabs(x);
  const int exponent = std::max(std::ilogb(magnitude), kSmallest);
  if (exponent > 1 - kSmallest) return static_cast<uint16_t>(sign | kInfinity);
  // With its leading one, which adds 1 to the exponent field; so does a carry.
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(magnitude, kBits - exponent)));
  return static_cast<uint16_t>(sign | (((exponent - kSmallest) << kBits) + mantissa));
}

}  // namespace emulator

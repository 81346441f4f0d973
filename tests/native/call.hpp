// The rows of a call to the CUDA kernels, drawn, and what table.hpp says of them; for launches.cpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "packing.hpp"
#include "table.hpp"

namespace {

using namespace fastconfig;
using Words = std::vector<int64_t>;
using std::to_string;

unsigned long seed = 0;
std::mt19937_64 generator;
std::string situation;

int64_t between(int64_t from, int64_t to) { return std::uniform_int_distribution<int64_t>(from, to)(generator); }
bool chance(double p) { return std::bernoulli_distribution(p)(generator); }
int any(const std::vector<int>& values) { return values[between(0, int64_t(values.size()) - 1)]; }

// 1..to, small numbers as often as large ones.
int scaled(int to) { return std::exp2(std::uniform_real_distribution<>(0, std::log2(to + 0.9))(generator)); }

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s, seed %lu: wrong: %s\n", situation.c_str(), seed, what);
  std::exit(1);
}

// The rows of a call, packed, and what table.hpp says that their words are.
struct Call {
  int m, addresses, size, vector = 16 / size, width = 64 * vector;
  Packing packing;
  Words words, lengths, ends, steps;  // lengths and cumulative chunks: of the segments that are not empty
  Words memory;                       // exactly the words, like a copy on the device
  std::vector<bool> aligned;
  Table table;

  Call(int rows, int bytes, int others = 0) : m(rows), addresses(rows + others), size(bytes), steps(addresses, 1) {
    packing.m = rows;
    packing.others = others;
  }

  // Nine of ten of those that need not lie on multiples of 16 do so, too.
  int64_t address(bool on_16) const {
    return 16 * between(1, int64_t{1} << 42) + (on_16 || chance(0.9) ? 0 : size * between(1, 15));
  }

  void add(int64_t length, bool on_16, const Words& given) {
    Words rows;  // some missing, but not in a batch
    for (int i = 0; i < addresses; ++i) rows.push_back(packing.problems == 1 && chance(0.1) ? 0 : address(on_16));
    const int64_t target = chance(0.1) ? 0 : address(on_16);
    packing.add(length, size, target, rows, given);
    if (length == 0) return;
    if (length > 1) steps = given;
    const bool unit = steps == Words(addresses, 1);
    bool whole = unit && target % 16 == 0 && packing.batch_step % 16 == 0 && packing.out_step % 16 == 0;
    for (int64_t row : rows) whole &= row % 16 == 0;
    lengths.push_back(length);
    aligned.push_back(whole);
    ends.push_back(chunks() + length / width + (length % width != 0));
    words.insert(words.end(), {chunks(), 2 * length + whole, target});
    words.insert(words.end(), rows.begin(), rows.end());
    if (!unit) words.insert(words.end(), steps.begin(), steps.end());
  }

  void add(int64_t length, bool on_16) { add(length, on_16, Words(addresses, 1)); }

  // In memory if it must be, or if wanted; words that are not written hold garbage.
  void fill(bool in_memory, int64_t first = 0) {
    std::memset(static_cast<void*>(&table), 0x5a, sizeof table);
    memory = Words(words.begin(), words.end());
    packing.fill(first, memory.data(), table);
    if (in_memory && !table.stepped) table.more = memory.data();
    situation = to_string(segments()) + " segments, " + to_string(m) + " rows of " + to_string(size) + " bytes, " +
                to_string(chunks()) + " chunks";
  }

  int64_t chunks() const { return ends.empty() ? 0 : ends.back(); }
  int segments() const { return static_cast<int>(lengths.size()); }
  int segment_of(const Entry& entry) const { return static_cast<int>(entry.place / (3 + addresses)); }

  void check_search(int64_t chunk) const {
    int found = 0;
    while (chunk >= ends[found]) ++found;
    check(find_segment(table, chunk) == found, "find_segment()");
  }
};

}  // namespace

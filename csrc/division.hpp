// How the columns of groups are divided among blocks: plain host code.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "table.hpp"

namespace fastconfig {

// What a block costs beside its columns, as chunks of one row that a multiprocessor reads meanwhile: about 2.5 us.
constexpr int64_t kBlockCost = 64;

// Chunks of a block, so that all blocks together take the shortest time: an estimate. sizes: chunks of each group.
inline int64_t chunks_a_block(const std::vector<int64_t>& sizes, int64_t m, int64_t processors) {
  int64_t total = 0, largest = 1, best = 0;
  for (int64_t size : sizes) {
    total += size;
    largest = std::max(largest, size);
  }
  const auto groups = static_cast<int64_t>(sizes.size());
  double least = 0;
  const auto consider = [&](int64_t each) {
    // every block of a group adds up the partial Gram matrices of all of them
    each = std::max({each, (largest + processors - 1) / processors, int64_t{1}});
    int64_t blocks = 0;
    for (int64_t size : sizes) blocks += (size + each - 1) / each;
    const double cost = static_cast<double>(kBlockCost) / static_cast<double>(m), one = std::min(each, largest) + cost;
    const double all = (static_cast<double>(total) + cost * static_cast<double>(blocks)) / static_cast<double>(processors);
    const double time = blocks <= processors ? one : all + one;  // the last one may begin when all others end
    if (best == 0 || time < least) {
      best = each;
      least = time;
    }
  };
  if (groups < processors) consider(total / (processors - groups) + 1);  // no more blocks than processors
  for (int64_t rounds : {1, 2, 4, 8}) consider(total / (processors * rounds) + 1);
  return best;
}

// Appends to the words of a table what csrc/table.hpp says of blocks with shares of their own; the number of blocks.
// sizes: chunks of each group, of which none is empty, in the order in which they lie; ends: chunks up to the end of each
// segment.
inline int64_t divide(const std::vector<int64_t>& sizes, int64_t each, const std::vector<int64_t>& ends,
                      std::vector<int64_t>& words) {
  std::vector<int64_t> starts{0};
  int64_t before = 0, segment = 0;
  const auto segment_of = [&](int64_t chunk) {  // not before the last one that was asked for
    while (ends[segment] <= chunk) ++segment;
    return segment;
  };
  for (size_t g = 0; g < sizes.size(); ++g) {
    const int64_t blocks = (sizes[g] + each - 1) / each;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = before + sizes[g] * b / blocks, last = before + sizes[g] * (b + 1) / blocks;
      words.push_back(first);
      words.push_back(static_cast<int64_t>(g));
      words.push_back(segment_of(first));
      words.push_back(segment_of(last - 1));
    }
    before += sizes[g];
    starts.push_back(starts.back() + blocks);
  }
  words.push_back(before);
  words.insert(words.end(), starts.begin(), starts.end());
  return starts.back();
}

}  // namespace fastconfig

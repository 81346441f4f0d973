// From addresses to the table of a launch: plain host code.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "division.hpp"
#include "table.hpp"

namespace fastconfig {

// The rows of one call, and its result, segment by segment.
class Packing {
 public:
  int64_t m = 0, problems = 1;
  int64_t others = 0;  // addresses of an entry beside the m rows
  int64_t batch_step = 0, out_step = 0;  // bytes from one problem to the next

  // A segment of `length` elements of `size` bytes: address of its result (0 without one), m addresses of rows (0 is a
  // missing gradient) and the others, as many steps in elements. Throws std::invalid_argument for steps in one of
  // several segments.
  void add(int64_t length, int64_t size, int64_t target, const std::vector<int64_t>& addresses,
           const std::vector<int64_t>& steps) {
    if (length == 0 || problems == 0) return;
    int64_t bits = target | batch_step | out_step;
    bool unit = true;
    for (int64_t i = 0; i < m + others; ++i) {
      bits |= addresses[i];
      unit = unit && (steps[i] == 1 || length == 1);
    }
    if (stepped_ || (!unit && segments_ > 0))
      throw std::invalid_argument("rows: got a step that is not 1 in one of several segments");
    chunks_ += chunks_of(length, kChunkVectors * kVectorBytes / size);
    words_.push_back(chunks_);
    words_.push_back(2 * length + (unit && bits % kVectorBytes == 0 ? 1 : 0));
    words_.push_back(target);
    words_.insert(words_.end(), addresses.begin(), addresses.end());
    if (!unit) words_.insert(words_.end(), steps.begin(), steps.end());
    stepped_ = !unit;
    ++segments_;
  }

  // Divides the segments, all of which are there, among blocks, group by group; the number of blocks. sizes: as divide()
  // has it. more: other words that kernels want.
  int64_t divide_groups(const std::vector<int64_t>& sizes, int64_t each, const std::vector<int64_t>& more) {
    std::vector<int64_t> ends;
    for (int64_t s = 0; s < segments_; ++s) ends.push_back(words_[s * (3 + m + others)]);
    shares_ = static_cast<int64_t>(words_.size());
    const int64_t blocks = divide(sizes, each, ends, words_);
    words_.insert(words_.end(), more.begin(), more.end());
    return blocks;
  }

  int64_t chunks() const { return chunks_; }
  const std::vector<int64_t>& words() const { return words_; }
  // Whether the entries are more than a launch's parameters hold. Blocks' own shares are read without a table, too.
  bool needs_memory() const { return shares_ != 0 || words_.size() > static_cast<size_t>(kTableWords); }

  // The table for problems first.. of a batch; `memory` holds the words already where they need it.
  void fill(int64_t first, const int64_t* memory, Table& table) const {
    table.chunks = chunks_;
    table.batch_step = batch_step;
    table.out_step = out_step;
    table.m = static_cast<int32_t>(m);
    table.addresses = static_cast<int32_t>(m + others);
    table.segments = segments_;
    table.stepped = stepped_;
    table.shares = shares_;
    table.more = needs_memory() ? memory : nullptr;
    if (needs_memory() || segments_ == 0) return;
    std::copy(words_.begin(), words_.end(), table.words);
    table.words[2] += first * out_step;
    for (int64_t i = 0; i < m && first != 0; ++i) table.words[3 + i] += first * batch_step;
  }

 private:
  std::vector<int64_t> words_;
  int64_t chunks_ = 0;
  int64_t shares_ = 0;  // where they begin, or 0
  int32_t segments_ = 0;
  bool stepped_ = false;
};

}  // namespace fastconfig

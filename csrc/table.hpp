// What a CUDA launch is told of its rows, and which columns each block and thread takes: index arithmetic alone, one
// source for the device and for the tests on the host.
//
// Columns are cut into chunks of 256 vectors of 16 bytes, segment by segment. A block takes a stretch of chunks; in a
// segment that lies on multiples of 16 bytes, its threads take whole vectors, and single columns behind the last one;
// elsewhere single columns.
#pragma once

#include <cstdint>

#include "host_device.hpp"

namespace fastconfig {

constexpr int kVectorBytes = 16;
constexpr int kChunkVectors = 256;
constexpr int kMostRows = 64;
constexpr int kTableWords = 480;  // so that the parameters of a kernel stay below 4 KiB

// An entry of a table: the number of chunks up to the end of the segment; twice its length, plus 1 if its addresses are
// multiples of 16 with unit steps; the address of the result; m row addresses (0 is a missing gradient), and those that
// a kernel wants beside them.
struct Table {
  int64_t chunks;        // of all segments
  int64_t batch_step;    // bytes from one problem's rows to the next problem's
  int64_t out_step;      // the same of the result
  const int64_t* more;   // the entries in device memory, or null: they are in words
  int32_t m;
  int32_t addresses;     // of an entry, the result's aside: m or more
  int32_t segments;
  int32_t stepped;       // whether as many steps in elements follow the only entry; otherwise steps are 1
  int64_t words[kTableWords];

  FASTCONFIG_HD const int64_t* entries() const { return more != nullptr ? more : words; }
  FASTCONFIG_HD int64_t step(int address) const { return stepped ? words[3 + addresses + address] : 1; }
};

FASTCONFIG_HD int entry_words(int addresses) { return 3 + addresses; }

FASTCONFIG_HD const int64_t* entry_of(const int64_t* entries, int addresses, int segment) {
  return entries + static_cast<int64_t>(segment) * entry_words(addresses);
}

// Chunks of all segments before one.
FASTCONFIG_HD int64_t chunks_before(const int64_t* entries, int addresses, int segment) {
  return segment > 0 ? entry_of(entries, addresses, segment - 1)[0] : 0;
}

FASTCONFIG_HD int64_t chunks_of(int64_t length, int width) { return (length + width - 1) / width; }

// First chunk of a block's share; the next block's first is its end.
FASTCONFIG_HD int64_t share(int64_t chunks, int blocks, int block) { return chunks * block / blocks; }

// The segment that a chunk lies in, by bisection.
FASTCONFIG_HD int find_segment(const int64_t* entries, int addresses, int segments, int64_t chunk) {
  int low = 0, high = segments - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (chunk < entry_of(entries, addresses, middle)[0])
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

// Columns first..last - 1 of a segment.
struct Piece {
  const int64_t* entry;
  int64_t first, last;
  bool whole;  // on multiples of 16 bytes

  // The part of a segment that chunks first_chunk..last_chunk - 1 cover; width is columns of a chunk.
  FASTCONFIG_HD Piece(const int64_t* entries, int addresses, int segment, int64_t first_chunk, int64_t last_chunk,
                      int width)
      : entry(entry_of(entries, addresses, segment)) {
    const int64_t before = chunks_before(entries, addresses, segment);
    const int64_t length = entry[1] >> 1;
    first = (first_chunk - before) * width;
    last = (last_chunk - before) * width;
    if (last > length) last = length;
    whole = (entry[1] & 1) != 0;
  }

  // Where whole vectors end, in vectors, and where single columns begin.
  FASTCONFIG_HD int64_t vectors_end(int vector) const { return whole ? last / vector : first / vector; }
  FASTCONFIG_HD int64_t columns_begin(int vector) const { return whole ? last / vector * vector : first; }
};

// visit(piece) for every segment's part of the chunks first..last - 1, in order.
template <class Visit>
FASTCONFIG_HD void for_pieces(const Table& table, int64_t first, int64_t last, int width, Visit visit) {
  if (first >= last) return;
  const int64_t* entries = table.entries();
  int segment = table.segments == 1 ? 0 : find_segment(entries, table.addresses, table.segments, first);
  for (; first < last; ++segment) {
    const int64_t end = entry_of(entries, table.addresses, segment)[0];
    const int64_t stop = end < last ? end : last;
    visit(Piece(entries, table.addresses, segment, first, stop, width));
    first = stop;
  }
}

// The same from the last to the first.
template <class Visit>
FASTCONFIG_HD void for_pieces_reversed(const Table& table, int64_t first, int64_t last, int width, Visit visit) {
  if (first >= last) return;
  const int64_t* entries = table.entries();
  int segment = table.segments == 1 ? 0 : find_segment(entries, table.addresses, table.segments, last - 1);
  for (; first < last; --segment) {
    const int64_t before = chunks_before(entries, table.addresses, segment);
    const int64_t start = before > first ? before : first;
    visit(Piece(entries, table.addresses, segment, start, last, width));
    last = start;
  }
}

// What a thread that keeps its vectors holds in a slot: vector `index` of chunk `chunk`, in a segment.
struct Slot {
  const int64_t* entry;
  int64_t column;  // first column of the vector
  int64_t length;  // of the segment; nothing is left of the vector where column >= length
  bool whole;

  // Slot number `slot` of a thread, in a block whose share of the chunks is first..last - 1.
  FASTCONFIG_HD Slot(const Table& table, int64_t first, int64_t last, int slot, int thread, int threads, int vector) {
    const int place = slot * threads + thread;
    const int64_t chunk = first + place / kChunkVectors;
    const int64_t* entries = table.entries();
    const bool exists = chunk < last;
    const int segment = table.segments == 1 || !exists ? 0 : find_segment(entries, table.addresses, table.segments, chunk);
    entry = entry_of(entries, table.addresses, segment);
    const int64_t before = chunks_before(entries, table.addresses, segment);
    length = exists ? entry[1] >> 1 : 0;
    column = exists ? ((chunk - before) * kChunkVectors + place % kChunkVectors) * vector : 0;
    whole = (entry[1] & 1) != 0;
  }

  // Columns of the vector that lie in the segment: 0..vector.
  FASTCONFIG_HD int count(int vector) const {
    const int64_t left = length - column;
    return left >= vector ? vector : left > 0 ? static_cast<int>(left) : 0;
  }
};

}  // namespace fastconfig

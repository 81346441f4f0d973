// What a CUDA launch is told of its rows, and which columns each block and thread takes: index arithmetic alone, one
// source for the device and for the tests on the host.
//
// Columns are cut into chunks of 64 vectors of 16 bytes, segment by segment. A block takes a stretch of chunks; in a
// segment that lies on multiples of 16 bytes, its threads take whole vectors, and single columns behind the last one.
// Elsewhere they take single columns: as many at a time as a vector has, each beside those of the threads beside them,
// if the steps are 1; otherwise one at a time.
#pragma once

#include <cstdint>

#include "host_device.hpp"

namespace fastconfig {

constexpr int kVectorBytes = 16;
constexpr int kChunkVectors = 64;
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
  int64_t shares;        // the word where the blocks' own shares begin; 0: they have equal ones
  int64_t words[kTableWords];

  // By a branch instead of a pointer to either: parameters are read through a cache of their own.
  FASTCONFIG_HD int64_t word(int64_t place) const { return more != nullptr ? more[place] : words[place]; }
  FASTCONFIG_HD int64_t step(int address) const { return stepped ? words[3 + addresses + address] : 1; }
};

// An entry of a table, or the part of one that begins at a word.
struct Entry {
  const Table& table;
  int64_t place;

  FASTCONFIG_HD Entry(const Table& all, int64_t first) : table(all), place(first) {}
  FASTCONFIG_HD int64_t operator[](int64_t word) const { return table.word(place + word); }
  FASTCONFIG_HD Entry operator+(int64_t words) const { return Entry(table, place + words); }
};

FASTCONFIG_HD Entry entry_of(const Table& table, int segment) {
  return Entry(table, static_cast<int64_t>(segment) * (3 + table.addresses));
}

// Chunks of all segments before one.
FASTCONFIG_HD int64_t chunks_before(const Table& table, int segment) {
  return segment > 0 ? entry_of(table, segment - 1)[0] : 0;
}

FASTCONFIG_HD int64_t chunks_of(int64_t length, int width) { return (length + width - 1) / width; }

// How much is left of a stretch, as an int: negative where nothing is, and enough for a thread where it is more.
FASTCONFIG_HD int clipped(int64_t left) { return static_cast<int>(left < INT32_MAX ? left : INT32_MAX); }

// First chunk of a block's share; the next block's first is its end.
FASTCONFIG_HD int64_t share(int64_t chunks, int blocks, int block) { return chunks * block / blocks; }

constexpr int kShareWords = 4;

// What a block takes: chunks first..last - 1. Where blocks have shares of their own, each is of a group of segments that is
// merged by itself; of a block there are its first chunk, its group, and the segments of its first and its last chunk, and
// behind the last block the end of all. Then come the numbers of blocks before each group, and of all.
struct Share {
  int64_t first, last;
  int32_t begins, ends;  // the segments, or -1: they are to be searched, load by load

  FASTCONFIG_HD Share(const Table& table, int blocks, int block) : begins(-1), ends(-1) {
    if (table.shares == 0) {
      first = share(table.chunks, blocks, block);
      last = share(table.chunks, blocks, block + 1);
    } else {
      const int64_t place = table.shares + kShareWords * block;
      first = table.word(place);
      last = table.word(place + kShareWords);
      begins = static_cast<int32_t>(table.word(place + 2));
      ends = static_cast<int32_t>(table.word(place + 3));
    }
  }
};

FASTCONFIG_HD int64_t group_of(const Table& table, int block) {
  return table.shares == 0 ? 0 : table.word(table.shares + kShareWords * block + 1);
}

// Where the numbers of blocks before each group begin.
FASTCONFIG_HD int64_t starts_of(const Table& table, int blocks) { return table.shares + kShareWords * blocks + 1; }

// The segment that a chunk lies in, by bisection.
FASTCONFIG_HD int find_segment(const Table& table, int64_t chunk) {
  int low = 0, high = table.segments - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (chunk < entry_of(table, middle)[0])
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

// Columns first..last - 1 of a segment.
struct Piece {
  Entry entry;
  int64_t first, last;
  bool whole;  // on multiples of 16 bytes
  bool apart;  // not, but with steps of 1: a thread takes as many columns as a vector has, apart from each other

  // The part of a segment that chunks first_chunk..last_chunk - 1 cover; width is columns of a chunk.
  FASTCONFIG_HD Piece(const Table& table, int segment, int64_t first_chunk, int64_t last_chunk, int width)
      : entry(entry_of(table, segment)) {
    const int64_t before = chunks_before(table, segment), word = entry[1];
    const int64_t length = word >> 1;
    first = (first_chunk - before) * width;
    last = (last_chunk - before) * width;
    if (last > length) last = length;
    whole = (word & 1) != 0;
    apart = !whole && !table.stepped;
  }

  // Where whole vectors end, in vectors, and where single columns begin.
  FASTCONFIG_HD int64_t vectors_end(int vector) const { return whole ? last / vector : first / vector; }
  FASTCONFIG_HD int64_t columns_begin(int vector) const { return whole ? last / vector * vector : first; }

  // The same for a loop that takes vectors and columns apart: places are vectors, or columns where `apart`, of which a
  // thread takes each() at a time.
  FASTCONFIG_HD int64_t places_begin(int vector) const { return apart ? first : first / vector; }
  FASTCONFIG_HD int64_t places_end(int vector) const { return apart ? last : vectors_end(vector); }
  FASTCONFIG_HD int64_t singles_begin(int vector) const { return apart ? last : columns_begin(vector); }
  FASTCONFIG_HD int each(int vector) const { return apart ? vector : 1; }
};

// visit(piece) for every segment's part of the chunks first..last - 1, in order. segment: that of the first one, if it is
// known.
template <class Visit>
FASTCONFIG_HD void for_pieces(const Table& table, int64_t first, int64_t last, int width, Visit visit, int segment = -1) {
  if (first >= last) return;
  if (segment < 0) segment = table.segments == 1 ? 0 : find_segment(table, first);
  for (; first < last; ++segment) {
    const int64_t end = entry_of(table, segment)[0];
    const int64_t stop = end < last ? end : last;
    visit(Piece(table, segment, first, stop, width));
    first = stop;
  }
}

// The same from the last to the first, whose segment it is.
template <class Visit>
FASTCONFIG_HD void for_pieces_reversed(const Table& table, int64_t first, int64_t last, int width, Visit visit,
                                       int segment = -1) {
  if (first >= last) return;
  if (segment < 0) segment = table.segments == 1 ? 0 : find_segment(table, last - 1);
  for (; first < last; --segment) {
    const int64_t before = chunks_before(table, segment);
    const int64_t start = before > first ? before : first;
    visit(Piece(table, segment, start, last, width));
    last = start;
  }
}

// What a thread that keeps its vectors holds in a slot: a vector, or as many columns of a chunk, in a segment.
struct Slot {
  Entry entry;
  bool whole;
  int spread;      // columns from one element to the next
  int64_t column;  // of the first element
  int64_t length;  // of the segment; nothing is left of the vector where column >= length

  // Slot number `slot` of a thread, in a block whose share of the chunks is first..last - 1.
  FASTCONFIG_HD Slot(const Table& table, int64_t first, int64_t last, int slot, int thread, int threads, int vector)
      : Slot(table, first + (slot * threads + thread) / kChunkVectors, last, (slot * threads + thread) % kChunkVectors,
             vector) {}

  // Elements that lie in the segment: 0..vector.
  FASTCONFIG_HD int count(int vector) const {
    const int64_t left = (length - column + spread - 1) / spread;
    return left >= vector ? vector : left > 0 ? static_cast<int>(left) : 0;
  }

 private:
  // Vector number `place` of a chunk before `last`.
  FASTCONFIG_HD Slot(const Table& table, int64_t chunk, int64_t last, int place, int vector)
      : Slot(table, chunk, place, vector, chunk < last,
             table.segments == 1 || chunk >= last ? 0 : find_segment(table, chunk)) {}

  FASTCONFIG_HD Slot(const Table& table, int64_t chunk, int place, int vector, bool exists, int segment)
      : entry(entry_of(table, segment)),
        whole((entry[1] & 1) != 0),
        spread(whole || table.stepped ? 1 : kChunkVectors),
        column(!exists ? 0
                       : (chunk - chunks_before(table, segment)) * kChunkVectors * vector +
                             place * (spread > 1 ? 1 : vector)),
        length(exists ? entry[1] >> 1 : 0) {}
};

}  // namespace fastconfig

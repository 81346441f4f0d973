// The index arithmetic of CUDA launches, csrc/table.hpp, division.hpp, packing.hpp and plan.hpp, under sanitizers; takes a seed.
//
// The loops of the kernels are repeated here around the same functions: every element of every segment must be visited
// exactly once in each form of each pass. No element exists; addresses are made up.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "call.hpp"
#include "plan.hpp"

namespace {

constexpr int kLanes = 4;  // of a warp that take different vectors on the tensor cores
const std::vector<int> kSmall = {2, 3, 4, 6, 8}, kTiled = {8, 16, 24, 32, 48, 64};  // rows of kernels
const std::vector<int> kProcessors = {1, 4, 40, 80, 132, 148};

void check_words(Call& call) {
  const Packing& packing = call.packing;
  for (int64_t first = 0; first < packing.problems; first += kProblems) {
    call.fill(false, first);
    const Table& table = call.table;
    const bool many = call.words.size() > 480;
    check(packing.words() == call.words && packing.chunks() == call.chunks(), "words of the entries");
    check(packing.needs_memory() == many && table.more == (many ? call.memory.data() : nullptr), "words in memory");
    check(table.chunks == call.chunks() && table.m == call.m && table.segments == call.segments(), "sizes");
    check(table.addresses == call.addresses, "addresses of an entry");
    check(table.batch_step == packing.batch_step && table.out_step == packing.out_step, "steps from problem to problem");
    Words shifted(call.words);
    for (int i = 0; i <= call.m && first > 0; ++i)
      shifted[2 + i] += first * (i == 0 ? packing.out_step : packing.batch_step);
    for (size_t k = 0; k < shifted.size(); ++k)
      check(table.word(k) == shifted[k], "words of the table");
    for (int i = 0; i < call.addresses; ++i) check(table.step(i) == call.steps[i], "step()");
  }
}

void check_packing() {
  for (int k = 0; k < 500; ++k) {
    Call call(chance(0.5) ? scaled(64) : int(between(1, 64)), any({2, 4, 8}), chance(0.5) ? 0 : scaled(66));
    if (chance(0.4)) {  // what only one segment may be: a batch, or with steps
      if (call.addresses == call.m && chance(0.5)) {
        call.packing.problems = between(2, 4 * kProblems);
        for (int64_t* step : {&call.packing.batch_step, &call.packing.out_step})
          *step = call.size * between(1, 1 << 20) * any({1, 16});
      }
      Words steps(call.addresses, any({1, 1, 5}));
      if (chance(0.5)) steps[between(0, call.addresses - 1)] = between(-3, 3);
      call.add(chance(0.2) ? 1 : scaled(5000), chance(0.7), steps);
    } else {
      for (int left = scaled(200); left > 0; --left) call.add(chance(0.1) ? 0 : scaled(5000), chance(0.7));
    }
    check_words(call);
  }
  for (int m : {1, 2, 3, 5, 13, 64}) {  // up to one entry more than the words hold
    Call call(m, 4);
    do {
      call.add(3, true);
      check_words(call);
    } while (call.table.more == nullptr);
  }
  for (int64_t second : {1, 2}) {
    Packing packing;
    packing.m = 2;
    packing.add(10, 4, 16, {16, 32}, {1, 3 - second});
    packing.add(0, 4, 16, {16, 32}, {7, 7});  // is left out
    bool thrown = false;
    try {
      packing.add(10, 4, 16, {16, 32}, {1, second});
    } catch (const std::invalid_argument&) {
      thrown = true;
    }
    check(thrown, "a step in one of two segments is accepted");
  }
}

// What a thread of kernels/cuda/gram.cu, gram_tiles.cu and combine.cu does with a piece: visit(column, count), with a count
// of 1 or of a whole vector. A warp of gram_tiles is kLanes threads here.
const auto kGram = [](const Piece& piece, int V, int U, int64_t threads, int thread, auto visit) {
  int64_t column = piece.columns_begin(V) + thread;
  for (; piece.apart && column < piece.last; column += V * threads)
    for (int e = 0; e < V; ++e)
      if (e * threads < clipped(piece.last - column)) visit(column + e * threads, 1);
  for (; column < piece.last; column += threads) visit(column, 1);
  const int64_t end = piece.vectors_end(V);
  for (int64_t index = piece.first / V + thread; index < end; index += U * threads)
    for (int u = 0; u < U; ++u)
      if (u * threads < clipped(end - index)) visit((index + u * threads) * V, V);
};

const auto kTiles = [](const Piece& piece, int V, int U, int64_t threads, int thread, auto visit) {
  constexpr int kSteps = 3;
  const int lane = thread % kLanes, warp = thread / kLanes;
  int64_t singles = piece.columns_begin(V);
  for (int64_t base = singles + warp * kLanes * kSteps; piece.apart && base < piece.last; base += kSteps * threads)
    for (int s = 0; s < kSteps; ++s)
      if (kLanes * s < clipped(piece.last - base - lane)) visit(base + lane + kLanes * s, 1);
  if (piece.apart) singles = piece.last;
  for (int64_t base = singles + warp * kLanes; base < piece.last; base += threads)
    if (base + lane < piece.last) visit(base + lane, 1);
  const int64_t end = piece.vectors_end(V);
  for (int64_t base = piece.first / V + warp * kLanes * U; base < end; base += U * threads)
    for (int u = 0; u < U; ++u)
      if (kLanes * u < clipped(end - base - lane)) visit((base + lane + kLanes * u) * V, V);
};

const auto kCombine = [](const Piece& piece, int V, int U, int64_t threads, int thread, auto visit) {
  for (int64_t column = piece.singles_begin(V) + thread; column < piece.last; column += threads) visit(column, 1);
  const int64_t begin = piece.places_begin(V);
  const int each = piece.each(V);
  for (int64_t place = piece.places_end(V) - 1 - thread; place >= begin; place -= U * threads * each)
    for (int k = 0; k < U * each; ++k)
      if (k * threads < clipped(place - begin + 1))
        piece.apart ? visit(place - k * threads, 1) : visit((place - k * threads) * V, V);
};

const auto kForward = [](auto&&... a) { for_pieces(a...); };
const auto kBackward = [](auto&&... a) { for_pieces_reversed(a...); };

// Which block took an element, and in which pass it was visited last.
struct Coverage {
  const Call& call;
  Words starts;  // of the segments
  int64_t elements = 0, visits = 0, pass = 1;
  std::vector<int> owner, last;

  explicit Coverage(const Call& rows) : call(rows) {
    for (int64_t length : call.lengths) starts.push_back(elements), elements += length;
    owner.resize(elements, -1);
    last.resize(elements, 0);
  }

  void visit(const Entry& entry, int block, int64_t column, int count, bool at_once) {
    const int segment = call.segment_of(entry);
    const int64_t length = call.lengths[segment];
    check(column >= 0 && column + count <= length, "an element outside of its segment");
    // elsewhere a load of 16 bytes fails; and single columns are slow
    check(at_once ? call.aligned[segment] && column % call.vector == 0
                  : !call.aligned[segment] || column >= length / call.vector * call.vector,
          "whole vectors exactly where a segment is aligned");
    for (int64_t k = starts[segment] + column, end = k + count; k < end; ++k) {
      check(last[k] != pass, "an element twice");
      check(owner[k] < 0 || owner[k] == block, "another block than in the pass before");
      last[k] = pass;
      owner[k] = block;
    }
    visits += count;
  }

  void end_pass() { check(visits == elements * pass++, "an element left out"); }
};

void check_kept(const Call& call, const Plan& p) {
  Coverage coverage(call);
  for (int block = 0; block < p.blocks; ++block) {
    const int64_t first = share(call.chunks(), p.blocks, block), last = share(call.chunks(), p.blocks, block + 1);
    for (int k = 0; k < p.kept * kept_threads; ++k) {
      const Slot slot(call.table, first, last, k / kept_threads, k % kept_threads, kept_threads, call.vector);
      const int count = slot.count(call.vector);
      if (slot.spread == 1 && count > 0)
        coverage.visit(slot.entry, block, slot.column, count, slot.whole && count == call.vector);
      for (int e = 0; slot.spread > 1 && e < count; ++e)
        coverage.visit(slot.entry, block, slot.column + e * slot.spread, 1, false);
    }
  }
  coverage.end_pass();
}

void check_coverage() {
  for (int k = 0; k < 80; ++k) {
    Call call(chance(0.7) ? between(1, 8) : between(1, 64), any({2, 4, 8}), chance(0.5) ? 0 : scaled(10));
    const int segments = k == 0 ? 0 : chance(0.3) ? 1 : scaled(400), longest = scaled(segments > 100 ? 500 : 4000);
    for (int s = 0; s < segments; ++s) {
      int64_t length = chance(0.5 / segments) ? 100000 + between(-9, 9) : between(1, longest);
      if (chance(0.2)) length = call.width * between(1, 3) + between(-1, 1);  // around the end of a chunk
      call.add(length, chance(0.7), Words(call.addresses, segments == 1 && chance(0.2) ? 3 : 1));
    }
    call.fill(chance(0.5));
    const std::string shape = situation;
    const int chunks = static_cast<int>(call.chunks()), V = call.vector;
    for (int chunk = 0; chunk < chunks; ++chunk) call.check_search(chunk);
    const Plan p = plan(call.m, chunks, 1, call.size, Device{any(kProcessors), 8, 0, false, chance(0.5)});
    for (int blocks : {p.blocks, 1, std::max(chunks, 1), int(between(1, std::max(chunks, 1)))}) {
      const bool real = blocks == p.blocks;  // the kernels' many threads take long
      const int few = static_cast<int>(between(1, 40));
      situation = shape + ", " + to_string(blocks) + " blocks, " + (real ? "all" : to_string(few)) + " threads";
      Coverage coverage(call);
      const auto pass = [&](int threads, int U, auto pieces, auto loop) {
        for (int k = 0; k < blocks * threads; ++k) {
          const int block = k / threads;
          const int64_t first = share(chunks, blocks, block), last = share(chunks, blocks, block + 1);
          pieces(call.table, first, last, call.width, [&](const Piece& piece) {
            check(piece.first < piece.last, "an empty piece");
            loop(piece, V, U, threads, k % threads, [&](int64_t column, int count) {
              coverage.visit(piece.entry, block, column, count, count == V);
            });
          });
        }
        coverage.end_pass();
      };
      pass(real ? gram_threads(any(kSmall), call.size) : few, any({1, 2, 4}), kForward, kGram);
      pass(real ? tile_threads(any(kTiled)) / 32 * kLanes : few * kLanes, any({1, 2, 4}), kForward, kTiles);
      pass(real ? combine_threads : few, any({1, 2}), kBackward, kCombine);
    }
    situation = shape + ", kept";
    const int m = std::min(call.m, kSmallRows), most = most_kept(small_rows(m), call.size);
    const int enough = (chunks + most - 1) / most;
    const Plan kept = plan(m, chunks, 1, call.size, Device{int(between(enough, chunks)), 8, 0, true, chance(0.5)});
    check(kept.one_launch || chunks == 0, "not kept, though it can be");
    check_kept(call, kept);
  }
}

void check_large(Call& call) {
  check_words(call);
  call.fill(chance(0.5));
  const std::string shape = situation;
  const int64_t chunks = call.chunks(), V = call.vector;
  for (int64_t end : call.ends)  // the last chunk of a segment, the first of the next one, and any
    for (int64_t chunk : {end - 1, end % chunks, between(0, chunks - 1)}) call.check_search(chunk);
  for (int blocks : {1, 2, 7, 132, 148, 1000}) {
    situation = shape + ", " + to_string(blocks) + " blocks";
    int64_t segment = 0, column = 0;
    for (int block = 0; block < blocks; ++block) {
      const int64_t first = share(chunks, blocks, block), last = share(chunks, blocks, block + 1);
      check(last - first >= chunks / blocks && last - first <= chunks / blocks + 1, "share()");
      Words forward, backward;
      for_pieces(call.table, first, last, call.width, [&](const Piece& piece) {
        const int64_t length = call.lengths[segment], vectors = piece.vectors_end(V), columns = piece.columns_begin(V);
        check(call.segment_of(piece.entry) == segment && piece.first == column, "where a piece begins");
        check(piece.last > column && piece.last <= length, "where a piece ends");
        check(piece.first % V == 0 && piece.whole == call.aligned[segment], "whether a piece has whole vectors");
        check(piece.whole ? vectors * V == columns && columns <= piece.last && piece.last - columns < V
                          : vectors == piece.first / V && columns == piece.first,
              "where the whole vectors of a piece end");
        check(piece.apart == (!piece.whole && !call.table.stepped), "whether a piece has columns apart");
        check(piece.apart ? piece.places_begin(V) == piece.first && piece.places_end(V) == piece.last &&
                                piece.singles_begin(V) == piece.last && piece.each(V) == V
                          : piece.places_begin(V) == piece.first / V && piece.places_end(V) == vectors &&
                                piece.singles_begin(V) == columns && piece.each(V) == 1,
              "the places of a piece");
        forward.insert(forward.end(), {segment, piece.first, piece.last});
        column = piece.last == length ? 0 : piece.last;
        segment += piece.last == length;
      });
      for_pieces_reversed(call.table, first, last, call.width, [&](const Piece& piece) {
        backward.insert(backward.begin(), {call.segment_of(piece.entry), piece.first, piece.last});
      });
      check(forward == backward, "pieces from the last to the first");
      check((last - (segment > 0 ? call.ends[segment - 1] : 0)) * call.width == column, "the columns of a share");
    }
    check(segment == call.segments(), "the end of all shares");
  }
}

void check_sizes() {
  const int64_t lengths[] = {(int64_t{1} << 31) + 5, (int64_t{1} << 33) + 1, int64_t{1} << 40};
  for (int size : {2, 4, 8})
    for (bool on_16 : {false, true})
      for (int k = 0; k < 4; ++k) {
        Call call(scaled(64), size);
        call.add(lengths[k % 3], on_16);
        for (int more = k < 3 ? 0 : scaled(150); more > 0; --more)
          call.add(chance(0.5) ? scaled(3000) : lengths[between(0, 2)], on_16 || chance(0.5));
        check_large(call);
      }
}

void check_plan(int m, int64_t chunks, int64_t problems, int size, const Device& device, bool allowed) {
  const auto planned = [&] { return plan(m, chunks, problems, size, device, allowed); };
  const Plan p = planned(), q = planned();
  check(p.blocks >= 1 && p.blocks <= std::max<int64_t>(1, chunks), "blocks");
  check(!p.tiles || (device.float64 && m > 6 && !p.one_launch), "tensor cores");
  const std::vector<int>& compiled = p.tiles ? kTiled : kSmall;
  check(std::count(compiled.begin(), compiled.end(), p.rows) == 1, "rows that no kernel is compiled for");
  // fastconfig/backends/cuda.py refuses more gradients where float64 is slow
  check(p.rows >= m || (!device.float64 && m > kSmallRows), "fewer rows than gradients");
  const int64_t packed = m * (m + 1) / 2, here = std::min(problems, kProblems), matrices = here * m * m;
  check(p.partials == problems * p.blocks * packed && p.doubles >= p.partials, "partials");
  // what launch_problems (csrc/cuda.cpp) takes: partials, Gram matrices, coefficients and scratch
  check(p.doubles >= here * p.blocks * packed + (m > 8 ? matrices : 0) + (m > 16 ? here * m + matrices : 0),
        "scratch memory");
  check(p.one_launch == q.one_launch && p.kept == q.kept && p.rows == q.rows && p.tiles == q.tiles &&
            p.blocks == q.blocks && p.partials == q.partials && p.doubles == q.doubles,
        "another plan for the same call");
  if (!p.one_launch) return;
  check(allowed && device.cooperative && problems == 1 && m <= kSmallRows, "one launch where there may not be one");
  check(p.blocks <= device.processors, "blocks that cannot run at once");
  check(p.kept == 1 || p.kept == most_kept(p.rows, size), "vectors that no kernel is compiled for");
  for (int block = 0; block < p.blocks; ++block)
    check(share(chunks, p.blocks, block + 1) - share(chunks, p.blocks, block) <= p.kept * kSlotChunks,
          "more chunks than are kept");
}

void check_plans() {
  for (int m = 1; m <= kMostRows; ++m)
    for (int64_t chunks : {0ll, 1ll, 2ll, 3ll, 131ll, 132ll, 133ll, 1000ll, 1000000ll, 1ll << 40})
      for (int64_t problems : {1, 2, 7, 1000, 65535, 1000000})
        for (int processors : kProcessors) {
          situation = "m = " + to_string(m) + ", " + to_string(chunks) + " chunks, " + to_string(problems) +
                      " problems, " + to_string(processors) + " processors";
          for (int k = 0; k < 8; ++k)
            check_plan(m, chunks, problems, any({2, 4, 8}), Device{processors, 8, 0, (k & 1) != 0, (k & 2) != 0},
                       (k & 4) != 0);
        }
}

// Every chunk is of one block, and every block of one group, of which there are not more than run at once.
void check_division() {
  for (int k = 0; k < 400; ++k) {
    Call call(chance(0.5) ? scaled(64) : int(between(1, 64)), any({2, 4, 8}));
    const int groups = scaled(300), processors = any(kProcessors);
    const bool huge = chance(0.1);
    Words sizes;
    for (int g = 0; g < groups; ++g) {
      const int64_t before = call.chunks();
      for (int s = scaled(4); s > 0; --s)
        call.add(call.width * (chance(0.05) ? between(1, huge ? int64_t{1} << 30 : 5000) : between(1, scaled(60))), chance(0.7));
      sizes.push_back(call.chunks() - before);
    }
    const int64_t each = chunks_a_block(sizes, call.m, processors);
    const int blocks = static_cast<int>(call.packing.divide_groups(sizes, each, {7, 8}));
    call.words = call.packing.words();
    call.fill(true);
    const Table& table = call.table;
    situation += ", " + to_string(groups) + " groups, " + to_string(blocks) + " blocks of " + to_string(processors) +
                 " processors";
    check(blocks >= groups && blocks <= groups + 9 * processors, "blocks of all groups");
    int64_t chunk = 0;
    int block = 0;
    for (int g = 0; g < groups; ++g) {
      const int64_t starts = starts_of(table, blocks) + g, count = table.word(starts + 1) - table.word(starts);
      check(table.word(starts) == block && count >= 1 && count <= processors, "blocks of a group");
      for (int64_t end = chunk + sizes[g]; chunk < end; ++block) {
        const Share own(table, blocks, block);
        check(own.first == chunk && own.last > chunk && own.last <= end && own.last - own.first <= each, "a share");
        check(group_of(table, block) == g, "the group of a block");
        check(own.begins == find_segment(table, own.first) && own.ends == find_segment(table, own.last - 1),
              "the segments of a share");
        chunk = own.last;
      }
      check(block == table.word(starts + 1), "where the blocks of a group end");
    }
    check(chunk == call.chunks() && block == blocks, "the end of all groups");
    check(call.words[call.words.size() - 2] == 7 && call.words.back() == 8, "words behind those of the groups");
  }
}

// A block has 65536 registers, a thread up to 255; a number in float64 takes two. least: threads with a task each.
void check_threads(int threads, int numbers, int least) {
  check(threads >= least && threads % 32 == 0 && threads <= 1024, "threads of a block");
  check(threads * 2 * numbers <= 65536 && 2 * numbers < 255, "registers of what a thread holds");
}

void check_blocks() {
  situation = "threads";
  check_threads(combine_threads, 0, kSolvedRows * kSolvedRows);
  for (int rows : kTiled)
    for (int threads : {tile_threads(rows), moved_tile_threads(rows)})
      check_threads(threads, 2 * triangle(rows / 8), rows == 8 ? 8 * 8 : 16 * 8);
  for (int rows : kSmall) {
    for (int size : {2, 4, 8}) check_threads(gram_threads(rows, size), triangle(rows), triangle(rows));
    check_threads(moved_threads(rows), triangle(rows), triangle(rows));
    check_threads(kept_threads, std::max(triangle(rows), 2 * rows * most_kept(rows, 8)), triangle(rows));
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "usage: %s SEED\n", arguments[0]);
    return 2;
  }
  seed = std::strtoul(arguments[1], nullptr, 10);
  generator.seed(seed);
  check_packing();
  check_coverage();
  check_sizes();
  check_plans();
  check_division();
  check_blocks();
  return 0;
}

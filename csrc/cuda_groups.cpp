// Updates of several groups of parameters, each with a Gram matrix and coefficients of its own: one call, and as many
// launches as for one group.
#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "calls.hpp"
#include "packing.hpp"
#include "rows.hpp"

namespace fastconfig {
namespace {

// Device memory that keeps the tables of the last calls, because gradients come to lie at the same few places again; and
// what it holds, in a buffer of the host of the same size: the slot to write next, then of each slot how many words it has,
// and those.
class Kept {
 public:
  static int64_t bytes(int64_t words) { return 8 * (1 + kSlots * (1 + words)); }

  Kept(void* known, int64_t bytes, int64_t memory)
      : known_(static_cast<int64_t*>(known)), memory_(memory), width_((bytes / 8 - 1) / kSlots) {}

  // Where the words lie on the device; writes them if they are in no slot.
  int64_t* place(const Context& context, const std::vector<int64_t>& words) const {
    const auto count = static_cast<int64_t>(words.size());
    for (int64_t slot = 0; slot < kSlots; ++slot) {
      const int64_t* there = known_ + first(slot);
      if (there[-1] == count && std::equal(words.begin(), words.end(), there)) return address(slot);
    }
    const int64_t slot = known_[0];
    known_[0] = (slot + 1) % kSlots;
    known_[first(slot) - 1] = 0;  // nothing is known where the launch fails
    launch_write(context, words.data(), count, address(slot));
    known_[first(slot) - 1] = count;
    std::copy(words.begin(), words.end(), known_ + first(slot));
    return address(slot);
  }

 private:
  static constexpr int64_t kSlots = 4;

  int64_t first(int64_t slot) const { return 1 + slot * width_ + 1; }
  int64_t* address(int64_t slot) const { return reinterpret_cast<int64_t*>(memory_) + first(slot); }

  int64_t* known_;
  int64_t memory_, width_;
};

// A Python buffer, which is let go of at the end.
class Buffer {
 public:
  Buffer(PyObject* object, int flags) : there_(PyObject_GetBuffer(object, &buffer_, flags) == 0) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (there_) PyBuffer_Release(&buffer_);
  }
  explicit operator bool() const { return there_; }
  void* data() const { return buffer_.buf; }
  int64_t bytes() const { return buffer_.len; }

 private:
  Py_buffer buffer_;
  bool there_;
};

struct Group {
  const Rule* rule;
  std::vector<int64_t> entries;  // where each begins in the words
  int64_t chunks;
};

// The groups of one call. Words are those of fastconfig/backends/table.py: of each segment its length, the address of its
// result, m addresses and m steps.
struct Groups {
  int64_t m = 0, size = 0;
  std::vector<int64_t> words;
  std::vector<Group> list;  // the largest first

  int64_t entry() const { return 2 + 2 * m; }

  // The words of plain tensors, or the words themselves; where each parameter's entry begins, or -1 where it has none.
  // False with a Python error.
  bool read(PyObject* rows, PyObject* out, std::vector<int64_t>& begins) {
    if (!PyList_Check(rows)) {
      const Buffer buffer(rows, PyBUF_SIMPLE);
      if (!buffer) return false;
      const auto* given = static_cast<const int64_t*>(buffer.data());
      words.assign(given, given + buffer.bytes() / 8);
      for (int64_t at = 0; at < static_cast<int64_t>(words.size()); at += entry())
        begins.push_back(words[at] == 0 ? -1 : at);
      return true;
    }
    if (exchange == nullptr || !PyList_Check(out) || PyList_GET_SIZE(rows) != m) {
      PyErr_SetString(PyExc_TypeError, "run_groups: want m rows and a list of results, and torch's exchange table");
      return false;
    }
    for (Py_ssize_t p = 0; p < PyList_GET_SIZE(out); ++p) {
      const auto before = static_cast<int64_t>(words.size());
      if (!append_entry(words, rows, p, false, PyList_GET_ITEM(out, p))) return false;
      begins.push_back(static_cast<int64_t>(words.size()) == before ? -1 : before);
    }
    return true;
  }

  // A group that has no elements is left out. False with a Python error.
  bool add(PyObject* places, PyObject* rule, const std::vector<int64_t>& begins) {
    int64_t address = 0;
    Group group{nullptr, {}, 0};
    if (!PyList_Check(places) || !as_int(rule, address)) {
      if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "run_groups: places: want a list of lists");
      return false;
    }
    group.rule = reinterpret_cast<const Rule*>(address);
    for (Py_ssize_t k = 0; k < PyList_GET_SIZE(places); ++k) {
      int64_t p = 0;
      if (!as_int(PyList_GET_ITEM(places, k), p)) return false;
      if (p < 0 || p >= static_cast<int64_t>(begins.size())) {
        PyErr_SetString(PyExc_IndexError, "run_groups: places: got one beyond the parameters");
        return false;
      }
      if (begins[p] < 0) continue;
      group.entries.push_back(begins[p]);
      group.chunks += chunks_of(words[begins[p]], static_cast<int>(kChunkVectors * kVectorBytes / size));
    }
    if (group.chunks > 0) list.push_back(std::move(group));
    return true;
  }

  void sort() {
    std::stable_sort(list.begin(), list.end(), [](const Group& a, const Group& b) { return a.chunks > b.chunks; });
  }

  // Whether all rules are one but for the addresses of their tensors. Tells these, unless they are the same, too.
  bool have_one_rule(std::vector<int64_t>& places) const {
    const Rule& one = *list[0].rule;
    bool alike = true;
    for (const Group& group : list) {
      const Rule& rule = *group.rule;
      if (rule.method != one.method || rule.length != one.length || rule.track_id != one.track_id ||
          rule.mean != one.mean || std::memcmp(rule.parameters, one.parameters, sizeof one.parameters) != 0)
        return false;
      alike = alike && rule.weights == one.weights && rule.order == one.order && rule.state == one.state;
      for (const int64_t address : {integer(rule.weights), integer(rule.order), integer(rule.state)})
        places.push_back(address);
    }
    if (alike) places.clear();
    return true;
  }

  // The segments of all groups, one group behind the other.
  void pack(Packing& packing, std::vector<int64_t>& sizes) const {
    packing.m = m;
    for (const Group& group : list) {
      for (const int64_t at : group.entries) {
        const auto row = words.begin() + at + 2;
        packing.add(words[at], size, words[at + 1], {row, row + m}, {row + m, row + 2 * m});
      }
      sizes.push_back(group.chunks);
    }
  }
};

// All launches: one for all partial Gram matrices, and one for all results; between them those that these leave over.
void launch_groups(const Context& context, const Plan& plan, const Table& table, int64_t groups, const Stage& stage,
                   Scratch scratch) {
  const int m = table.m;
  double* partials = scratch.take(plan.partials);
  launch_gram(context, plan, table, 1, partials);
  const bool fused = is_fused(stage, m);
  if (m <= kSmallRows && fused) return launch_finish(context, plan, table, 0, 1, 0, partials, stage);
  double* gram = scratch.take(groups * m * m);
  const int64_t* starts = table.more + starts_of(table, plan.blocks);
  for (int64_t first = 0; first < groups; first += kProblems)
    launch_sum_groups(context, starts + first, m, std::min(groups - first, kProblems), partials, gram + first * m * m);
  if (m <= kSolvedRows && fused) return launch_finish(context, plan, table, 0, 1, 0, gram, stage);
  double* c = scratch.take(groups * m);
  for (int64_t first = 0; first < groups; first += kProblems) {
    Scratch again = scratch;
    launch_coefficients(context, m, first, std::min(groups - first, kProblems), gram + first * m * m, c + first * m, again,
                        stage);
  }
  launch_combine(context, plan, table, 1, c);
}

// Launches the update of all groups; None. Or tells what is missing, and launches nothing: (bytes of the kept tables, bytes
// of them and of scratch memory).
PyObject* update_groups(const Groups& groups, std::vector<int64_t> places, const Context& context, double rcond,
                        const Buffer& known, int64_t memory, int64_t bytes) {
  Packing packing;
  std::vector<int64_t> sizes;
  groups.pack(packing, sizes);
  const int m = static_cast<int>(groups.m);
  const auto count = static_cast<int64_t>(sizes.size());
  Stage stage{*groups.list[0].rule, rcond};
  Plan p = plan(m, packing.chunks(), 1, static_cast<int>(groups.size), context.device, false);
  p.blocks = static_cast<int>(
      packing.divide_groups(sizes, chunks_a_block(sizes, m, context.device.processors), places));
  p.partials = static_cast<int64_t>(p.blocks) * triangle(m);
  const int64_t tables = std::max(known.bytes(), Kept::bytes(static_cast<int64_t>(packing.words().size())));
  const int64_t needed = tables + 8 * (p.partials + count * m * (m + 1) + coefficients_doubles(m, count, stage));
  if (tables > known.bytes() || needed > bytes)
    return Py_BuildValue("LL", static_cast<long long>(tables), static_cast<long long>(needed));
  const int64_t* words = Kept(known.data(), known.bytes(), memory).place(context, packing.words());
  if (!places.empty()) stage.rule.places = words + packing.words().size() - places.size();
  Table table;
  packing.fill(0, words, table);
  launch_groups(context, p, table, count, stage, Scratch(memory + tables));
  Py_RETURN_NONE;
}

}  // namespace

// run_groups(rows, out, places, rules, m, kind, device, known, rcond, stream, memory, bytes) -> None, once the update of
// all groups is being computed; False if their rules differ in more than tensors; or (bytes of `known`, bytes of memory)
// where either is too small. rows: a list of m rows of plain tensors, and out a list of results; or a buffer of words as in
// fastconfig/backends/table.py. places: a list of lists, of each group the numbers of its parameters, or segments. rules: a
// list of addresses, one a group. known: a writable buffer, zeros at first, that goes with the memory.
PyObject* run_groups(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  int64_t v[3], w[3];
  if (count != 12 || !PyList_Check(arguments[2]) || !PyList_Check(arguments[3]) ||
      PyList_GET_SIZE(arguments[2]) != PyList_GET_SIZE(arguments[3])) {
    PyErr_SetString(PyExc_TypeError, "run_groups takes 12 arguments: rows, results, lists of places and rules, ...");
    return nullptr;
  }
  if (!as_ints(arguments + 4, v, 3) || !as_ints(arguments + 9, w, 3)) return nullptr;
  const double rcond = PyFloat_AsDouble(arguments[8]);
  if (rcond == -1 && PyErr_Occurred()) return nullptr;
  const Buffer known(arguments[7], PyBUF_WRITABLE);
  if (!known) return nullptr;
  return guarded([&]() -> PyObject* {
    const Context context = context_of(v[2], w[0], static_cast<int>(v[1]));
    check_rows("run_groups", v[0], most_rows(context.device));
    Groups groups;
    groups.m = v[0];
    groups.size = kItemsize[context.kind];
    std::vector<int64_t> begins, places;
    if (!groups.read(arguments[0], arguments[1], begins)) return nullptr;
    for (Py_ssize_t g = 0; g < PyList_GET_SIZE(arguments[2]); ++g)
      if (!groups.add(PyList_GET_ITEM(arguments[2], g), PyList_GET_ITEM(arguments[3], g), begins)) return nullptr;
    if (groups.list.empty()) Py_RETURN_NONE;
    groups.sort();
    if (!groups.have_one_rule(places)) Py_RETURN_FALSE;
    return update_groups(groups, std::move(places), context, rcond, known, w[1], w[2]);
  });
}

}  // namespace fastconfig

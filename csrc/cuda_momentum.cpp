// fastconfig._cuda.momentum: one call a momentum step, or a part of one; launches, and waits for nothing.
#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "calls.hpp"
#include "momentum.hpp"
#include "packing.hpp"
#include "tensors.hpp"

namespace fastconfig {
namespace {

constexpr int64_t kAccumulate = 1, kRescale = 2;  // parts of a step; both together also merge

// The words of an array of int64.
bool read_words(PyObject* object, std::vector<int64_t>& words) {
  Py_buffer buffer;
  if (PyObject_GetBuffer(object, &buffer, PyBUF_SIMPLE) != 0) return false;
  const auto* first = static_cast<const int64_t*>(buffer.buf);
  words.assign(first, first + buffer.len / static_cast<Py_ssize_t>(sizeof(int64_t)));
  PyBuffer_Release(&buffer);
  return true;
}

// state: of every segment its length, m addresses of momenta, that of the second moment and that of the last merged
// momentum; given: k numbers of momenta, then of every segment the address of its result, k addresses of gradients and
// k steps in elements.
Packing pack(const std::vector<int64_t>& state, const std::vector<int64_t>& given, int64_t m, int64_t k, int kind) {
  const int64_t held = m + kBeside, size = held + 1, more = 2 * k + 1;
  const auto segments = static_cast<int64_t>(state.size()) / size;
  const auto words = static_cast<int64_t>(given.size());
  if (k < 0 || k > m || state.size() % size != 0 || words != k + segments * more)
    throw std::invalid_argument("momentum: got another number of words than the segments need");
  Packing packing;
  packing.m = m;
  packing.others = kBeside + k;
  std::vector<int64_t> addresses(held + k), steps(held + k, 1);
  for (int64_t s = 0; s < segments; ++s) {
    const auto row = state.begin() + s * size, gradient = given.begin() + k + s * more;
    std::copy_n(row + 1, held, addresses.begin());
    std::copy_n(gradient + 1, k, addresses.begin() + held);
    std::copy_n(gradient + 1 + k, k, steps.begin() + held);
    packing.add(row[0], kItemsize[kind], gradient[0], addresses, steps);
  }
  return packing;
}

struct Step {
  int64_t parts;
  Incoming incoming;
  Outgoing outgoing;
  Stage stage;
};

void launch_step(const Context& context, const Plan& plan, const Table& table, const Step& step, Scratch scratch) {
  const int m = table.m;
  const bool nothing = table.chunks == 0;  // but the gradients count
  if (step.parts == kRescale && !nothing) launch_rescale(context, plan, table, nullptr, step.outgoing);
  if (step.parts == kAccumulate || (nothing && step.parts != kRescale))
    launch_accumulate(context, plan, table, step.incoming);
  if (step.parts != kAccumulate + kRescale || nothing) return;
  double* partials = scratch.take(plan.partials);
  launch_accumulate_gram(context, plan, table, partials, step.incoming);
  const bool fused = is_fused(step.stage, m);
  if (m <= kSmallRows && fused) {
    launch_finish_momentum(context, plan, table, plan.blocks, partials, step.stage, step.outgoing);
    return;
  }
  double* gram = scratch.take(m * m);
  launch_sum(context, plan.blocks, m, 1, partials, gram, step.outgoing.decayed);
  if (m <= kSolvedRows && fused) {
    launch_finish_momentum(context, plan, table, 0, gram, step.stage, step.outgoing);
    return;
  }
  double* c = scratch.take(m);
  launch_coefficients(context, m, 0, 1, gram, c, scratch, step.stage);
  launch_rescale(context, plan, table, c, step.outgoing);
}

// Launches a step, and answers 0; or answers how many bytes of scratch memory it needs, if they are more than given.
int64_t run_step(const Packing& rows, Step& step, const Context& context, int64_t memory, int64_t bytes) {
  const int m = static_cast<int>(rows.m);
  const Plan p = plan(m, rows.chunks(), 1, static_cast<int>(kItemsize[context.kind]), context.device, false);
  const auto words = rows.needs_memory() ? static_cast<int64_t>(rows.words().size()) : 0;
  const int64_t stage = is_fused(step.stage, m) ? 0 : lone_stage_doubles(m, 1, step.stage);
  const int64_t needed = 8 * (p.doubles + m + kBeside + words + stage);
  if (needed > bytes) return needed;
  Scratch scratch(memory);
  auto* table_memory = reinterpret_cast<int64_t*>(scratch.take(words));
  if (step.incoming.steps != nullptr) step.outgoing.decayed = step.incoming.decayed = scratch.take(m + kBeside);
  if (words > 0) launch_write(context, rows.words().data(), words, table_memory);
  Table table;
  rows.fill(0, table_memory, table);
  launch_step(context, p, table, step, scratch);
  return 0;
}

}  // namespace

// momentum(state, given, k, m, kind, given_kind, parts, update, device, stream, memory, bytes, rule, steps, decayed,
// rcond, beta_1, beta_2) -> bytes of scratch memory that are missing (nothing is launched then), or 0. state and given:
// see pack. parts: 1 takes the gradients in, 2 rescales the only row, 3 is a whole step. update: whether the step counts
// as one. steps: address of the device's counters, which count the step; or 0, and decayed is that of what they give.
PyObject* momentum(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  int64_t v[13];
  double number[3];
  if (count != 18) {
    PyErr_SetString(PyExc_TypeError, "momentum takes 18 arguments");
    return nullptr;
  }
  std::vector<int64_t> state, given;
  if (!read_words(arguments[0], state) || !read_words(arguments[1], given) || !as_ints(arguments + 2, v, 13))
    return nullptr;
  for (int n = 0; n < 3; ++n) {
    number[n] = PyFloat_AsDouble(arguments[15 + n]);
    if (number[n] == -1 && PyErr_Occurred()) return nullptr;
  }
  const auto [k, m, kind, given_kind, parts, update, device, stream, memory, bytes, rule, steps, decayed] = v;
  return guarded([&, k = k, m = m, kind = kind] {
    const Context context = context_of(device, stream, static_cast<int>(kind));
    const bool any = context.device.float64 || parts != kAccumulate + kRescale;
    check_rows("momentum", m, any ? kMostRows : kSmallRows);
    const Packing packing = pack(state, given, m, k, static_cast<int>(kind));
    const Betas beta{number[1], number[2]};
    Step step{parts, {}, {}, stage_of(rule, number[0])};
    step.incoming = {beta, reinterpret_cast<int64_t*>(steps), nullptr, static_cast<int32_t>(given_kind),
                     static_cast<int32_t>(k), update != 0, {}};
    std::copy_n(given.begin(), k, step.incoming.chosen);
    step.outgoing = {beta, reinterpret_cast<const double*>(decayed), static_cast<int32_t>(given_kind)};
    return PyLong_FromLongLong(run_step(packing, step, context, memory, bytes));
  });
}

}  // namespace fastconfig

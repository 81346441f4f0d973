// The way in for small calls: m contiguous vectors, or m lists of contiguous tensors, on one device, checked in one call
// and, on the CPU, handed to the kernels in a second one. Anything else answers None, and fastconfig/gradients/rows.py looks
// closer (and explains what is wrong).
#include "vectors.hpp"

#include <cstdint>
#include <vector>

#include "groups.hpp"
#include "results.hpp"
#include "ring.hpp"
#include "rows.hpp"

namespace fastconfig {
namespace {

int index_of(const dlpack::Device& device) { return device.type == dlpack::kCpu ? -1 : static_cast<int>(device.id); }

// scan(rows, types) -> (kind, n, [shape or None, ...] or None, device) if rows, a list, holds contiguous tensors of
// exactly one of the types and one dtype and device: m vectors of one shape, or m lists or tuples of as many tensors,
// whose shapes agree, or None. kind counts in fastconfig.numbers.DTYPES, n is the number of elements, device that of the
// CUDA device, or -1 for the CPU. Otherwise None.
PyObject* scan(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2 || !PyList_Check(arguments[0]) || !PyTuple_Check(arguments[1])) {
    PyErr_SetString(PyExc_TypeError, "scan takes a list of rows and a tuple of types");
    return nullptr;
  }
  PyObject *rows = arguments[0], *types = arguments[1];
  const Py_ssize_t m = PyList_GET_SIZE(rows);
  if (m == 0 || exchange == nullptr || watched()) Py_RETURN_NONE;
  Common common;
  if (!is_row(PyList_GET_ITEM(rows, 0))) {
    Column column;
    const bool fits = read_column(rows, 0, true, types, common, column) && column.tensor.ndim == 1;
    if (PyErr_Occurred()) return nullptr;
    if (!fits) Py_RETURN_NONE;
    return Py_BuildValue("iLOi", common.kind, static_cast<long long>(column.tensor.shape[0]), Py_None, index_of(common.device));
  }
  const Py_ssize_t columns = Py_SIZE(PyList_GET_ITEM(rows, 0));
  for (Py_ssize_t i = 0; i < m; ++i)
    if (!is_row(PyList_GET_ITEM(rows, i)) || Py_SIZE(PyList_GET_ITEM(rows, i)) != columns) Py_RETURN_NONE;
  const Reference shapes(PyList_New(0));
  int64_t n = 0;
  bool fits = bool(shapes);
  for (Py_ssize_t p = 0; fits && p < columns; ++p) {
    Column column;
    fits = read_column(rows, p, false, types, common, column);
    if (fits && column.first == nullptr) {
      fits = PyList_Append(shapes.get(), Py_None) == 0;
    } else if (fits) {
      const Reference shape(PyObject_GetAttr(column.first, names().shape));
      fits = shape && PyList_Append(shapes.get(), shape.get()) == 0;
      n += numel(column.tensor);
    }
  }
  if (PyErr_Occurred()) return nullptr;
  if (!fits || common.kind < 0) Py_RETURN_NONE;
  return Py_BuildValue("iLOi", common.kind, static_cast<long long>(n), shapes.get(), index_of(common.device));
}

// describe(tensor, types) -> (kind, B or -1, m, N, device as in scan) of a tensor (m, N) or (B, m, N), m > 0, of exactly
// one of the types, whatever its strides. Otherwise None.
PyObject* describe(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2 || !PyTuple_Check(arguments[1])) {
    PyErr_SetString(PyExc_TypeError, "describe takes a tensor and a tuple of types");
    return nullptr;
  }
  dlpack::Tensor tensor{};
  if (exchange == nullptr || watched() || !view(arguments[0], arguments[1], tensor)) {
    if (PyErr_Occurred()) return nullptr;
    Py_RETURN_NONE;
  }
  const int32_t d = tensor.ndim - 2;
  if (d < 0 || d > 1 || tensor.shape[d] == 0) Py_RETURN_NONE;
  return Py_BuildValue("iLLLi", kind_of(tensor.dtype), d == 0 ? -1LL : static_cast<long long>(tensor.shape[0]),
                       static_cast<long long>(tensor.shape[d]), static_cast<long long>(tensor.shape[d + 1]),
                       index_of(tensor.device));
}

// attach(capsule): torch.Tensor.__dlpack_c_exchange_api__; without it scan always answers None.
PyObject* attach(PyObject*, PyObject* capsule) {
  if (!keep_exchange(capsule)) return nullptr;
  Py_RETURN_NONE;
}

constexpr int kIntegers = 13;

// run(run, steps, table, problems, segments, m, gram, c, rule, size, threads, team, gram_body, combine_body,
// rcond), all integers but the last: the kernels' own signature (kernels/numba/update.py), without the GIL.
PyObject* run(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  int64_t v[kIntegers + 1];
  if (count != kIntegers + 2) {
    PyErr_SetString(PyExc_TypeError, "run takes 14 integers and rcond");
    return nullptr;
  }
  if (!as_ints(arguments, v, kIntegers + 1)) return nullptr;
  const double rcond = PyFloat_AsDouble(arguments[kIntegers + 1]);
  if (rcond == -1 && PyErr_Occurred()) return nullptr;
  const auto function = reinterpret_cast<Run>(v[0]);
  const auto coefficients = static_cast<int64_t>(reinterpret_cast<uintptr_t>(&fastconfig_coefficients));
  Py_BEGIN_ALLOW_THREADS
  function(v[1], v[2], v[3], v[4], v[5], v[6], v[7], coefficients, v[8], rcond, v[9], v[10], v[11], v[12], v[13]);
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

// run_plain(run, steps, rows, out, gram, c, rule, size, threads, team, gram_body, combine_body, rcond): steps of the
// kernels for rows that scan has accepted. out: a tensor, a list of them (or None) in the order of the columns, or None;
// gram and c: addresses, or 0 for memory of its own.
PyObject* run_plain(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 13 || exchange == nullptr || !PyList_Check(arguments[2]) || PyList_GET_SIZE(arguments[2]) == 0) {
    PyErr_SetString(PyExc_TypeError, "run_plain takes 13 arguments, the third a list of rows");
    return nullptr;
  }
  PyObject *rows = arguments[2], *out = arguments[3];
  int64_t function, steps, v[8];
  if (!as_int(arguments[0], function) || !as_int(arguments[1], steps)) return nullptr;
  if (!as_ints(arguments + 4, v, 8)) return nullptr;
  const double rcond = PyFloat_AsDouble(arguments[12]);
  if (rcond == -1 && PyErr_Occurred()) return nullptr;

  const Py_ssize_t m = PyList_GET_SIZE(rows);
  const bool vectors = !is_row(PyList_GET_ITEM(rows, 0));
  const Py_ssize_t columns = vectors ? 1 : Py_SIZE(PyList_GET_ITEM(rows, 0));
  if (PyList_Check(out) && PyList_GET_SIZE(out) != columns) {
    PyErr_SetString(PyExc_ValueError, "run_plain: out has another number of tensors than the rows");
    return nullptr;
  }
  std::vector<int64_t> table;
  table.reserve(columns * (2 + 2 * m));
  for (Py_ssize_t p = 0; p < columns; ++p)
    if (!append_entry(table, rows, p, vectors, PyList_Check(out) ? PyList_GET_ITEM(out, p) : out)) return nullptr;
  std::vector<double> scratch(v[0] == 0 ? m * (m + 1) : 0);
  const int64_t gram = v[0] == 0 ? integer(scratch.data()) : v[0];
  const int64_t c = v[1] == 0 ? integer(scratch.data() + m * m) : v[1];
  const auto segments = static_cast<int64_t>(table.size() / (2 + 2 * m));
  Py_BEGIN_ALLOW_THREADS
  reinterpret_cast<Run>(function)(steps, integer(table.data()), 1, segments, m, gram, c,
                                  integer(reinterpret_cast<const void*>(&fastconfig_coefficients)), v[2], rcond, v[3],
                                  v[4], v[5], v[6], v[7]);
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

Kernels kept_kernels[4] = {};  // of short_update and merge_into, by the kind of element

// keep_kernels(kind, empty_like, threads_for, run, team, gram_body, combine_body, size, alone, most): how short_update
// makes a result of this kind of element, the kernels, bytes of an element, of an input from which on threads_for is
// asked, and of the largest result.
PyObject* keep_kernels(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  int64_t kind;
  if (count != 10 || !as_int(arguments[0], kind) || kind < 0 || kind > 3) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "keep_kernels takes a kind, 0 to 3, and 9 more arguments");
    return nullptr;
  }
  if (!kept_kernels[kind].read(arguments + 1)) return nullptr;
  Py_RETURN_NONE;
}

// How an update is computed.
struct Stage {
  int64_t rule = 0, threads = 0;
  double cutoff = 0;

  // False with a Python error. elements: of all rows.
  bool read(const Kernels& kernels, PyObject* address, PyObject* cut, int64_t elements) {
    cutoff = PyFloat_AsDouble(cut);
    if ((cutoff == -1 && PyErr_Occurred()) || !as_int(address, rule)) return false;
    threads = kernels.threads(elements * kernels.size);
    return threads >= 0;
  }
};

// Both passes over a table of contiguous segments, without the GIL. G and c stay in the ring.
void update(const Kernels& kernels, const Stage& stage, const std::vector<int64_t>& table, int64_t m, const Ring& ring) {
  double* memory = ring.next();  // of G, then c
  std::vector<double> scratch(memory == nullptr ? m * (m + 1) : 0);
  if (memory == nullptr) memory = scratch.data();
  const auto segments = static_cast<int64_t>(table.size() / (2 + 2 * m));
  const int64_t coefficients = integer(reinterpret_cast<const void*>(&fastconfig_coefficients));
  Py_BEGIN_ALLOW_THREADS
  reinterpret_cast<Run>(kernels.run)(kUpdate, integer(table.data()), 1, segments, m, integer(memory),
                                     integer(memory + m * m), coefficients, stage.rule, stage.cutoff,
                                     kernels.size, stage.threads, kernels.team, kernels.first_body, kernels.second_body);
  Py_END_ALLOW_THREADS
}

// Appends the table entry of a column (kernels/numba/gram.py) of contiguous tensors.
void add_entry(std::vector<int64_t>& table, int64_t size, int64_t target, const std::vector<int64_t>& addresses) {
  table.insert(table.end(), {size, target});
  table.insert(table.end(), addresses.begin(), addresses.end());
  table.insert(table.end(), addresses.size(), 1);
}

// The update of m lists or tuples of tensors (None is zeros), in a list of new tensors that share a buffer; or None.
PyObject* update_lists(PyObject* given, PyObject* types, PyObject* rule, PyObject* cutoffs, const Ring& ring) {
  const Reference rows(PySequence_List(given));  // the caller's, and each of these, may change while a kernel reads
  if (!rows) return nullptr;
  const auto m = static_cast<int64_t>(PyList_GET_SIZE(rows.get()));
  if (!ring.takes(m)) Py_RETURN_NONE;
  for (int64_t i = 0; i < m; ++i) {
    if (!is_row(PyList_GET_ITEM(rows.get(), i))) Py_RETURN_NONE;
    PyObject* row = PySequence_Tuple(PyList_GET_ITEM(rows.get(), i));
    if (row == nullptr || PyList_SetItem(rows.get(), i, row) != 0) return nullptr;
    if (Py_SIZE(row) != Py_SIZE(PyList_GET_ITEM(rows.get(), 0))) Py_RETURN_NONE;
  }
  std::vector<Column> columns(Py_SIZE(PyList_GET_ITEM(rows.get(), 0)));
  std::vector<int64_t> table, addresses(m), places;
  Common common;
  PyObject* like = nullptr;
  int64_t n = 0;
  for (size_t p = 0; p < columns.size(); ++p) {
    addresses.assign(m, 0);
    const bool fits = read_column(rows.get(), p, false, types, common, columns[p], addresses.data());
    if (PyErr_Occurred()) return nullptr;
    if (!fits) Py_RETURN_NONE;
    if (columns[p].first == nullptr) continue;
    like = columns[p].first;
    const int64_t size = numel(columns[p].tensor);
    n += size;
    if (common.device.type != dlpack::kCpu || (n != 0 && !kept_kernels[common.kind].take(n))) Py_RETURN_NONE;
    if (size != 0) add_entry(table, size, 0, addresses);
  }
  if (like == nullptr) Py_RETURN_NONE;
  const Kernels kernels = kept_kernels[common.kind];
  if (!kernels.take(n)) Py_RETURN_NONE;
  Stage stage;
  if (!stage.read(kernels, rule, PyTuple_GET_ITEM(cutoffs, common.kind), m * n)) return nullptr;
  Places ends(kernels.size);
  for (const Column& column : columns) places.push_back(column.first == nullptr ? 0 : ends.add(numel(column.tensor)));
  if (!kernels.take(ends.end())) Py_RETURN_NONE;
  dlpack::Tensor memory{};
  const Reference buffer(new_vector(like, ends.end(), memory));
  const Reference results(PyList_New(static_cast<Py_ssize_t>(columns.size())));
  if (!buffer || !results) return nullptr;
  Pieces pieces(buffer.get());
  int64_t* target = table.data() + 1;
  for (size_t p = 0; p < columns.size(); ++p) {
    const dlpack::Tensor& tensor = columns[p].tensor;
    const bool none = columns[p].first == nullptr;
    PyObject* piece = none ? Py_NewRef(Py_None) : pieces.contiguous(tensor.shape, tensor.ndim, places[p]);
    if (piece == nullptr) return nullptr;
    PyList_SET_ITEM(results.get(), p, piece);
    if (none || numel(tensor) == 0) continue;
    *target = integer(data(memory) + places[p] * kernels.size);
    target += 2 + 2 * m;
  }
  update(kernels, stage, table, m, ring);
  return Py_NewRef(results.get());
}

// short_update(grads, types, rule, cutoffs, ring) -> the update of a list or tuple of vectors, or of lists or tuples of tensors,
// as scan accepts them, on the CPU and no larger than keep_kernels said for their dtype. Otherwise None. rule: address;
// cutoffs: one a kind; ring: address of a monitor's words, or 0.
PyObject* short_update(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  int64_t words;
  if (count != 5 || !PyTuple_Check(arguments[3]) || PyTuple_GET_SIZE(arguments[3]) != 4) {
    PyErr_SetString(PyExc_TypeError, "short_update takes gradients, a tuple of types, a rule, four cut-offs and a ring");
    return nullptr;
  }
  if (!as_int(arguments[4], words)) return nullptr;
  const Ring ring(words);
  if (exchange == nullptr || !is_row(arguments[0]) || Py_SIZE(arguments[0]) == 0 || watched()) Py_RETURN_NONE;
  if (is_row(item(arguments[0], 0))) {
    if (reinterpret == nullptr) Py_RETURN_NONE;
    return update_lists(arguments[0], arguments[1], arguments[2], arguments[3], ring);
  }
  const Reference rows(PySequence_List(arguments[0]));  // the caller's may change while a kernel reads
  if (!rows) return nullptr;
  const auto m = static_cast<int64_t>(PyList_GET_SIZE(rows.get()));
  if (!ring.takes(m)) Py_RETURN_NONE;
  std::vector<int64_t> table(2 + 2 * m, 1);  // kernels/numba/gram.py
  Common common;
  Column column;
  const bool fits = read_column(rows.get(), 0, true, arguments[1], common, column, table.data() + 2);
  if (PyErr_Occurred()) return nullptr;
  if (!fits || column.tensor.ndim != 1 || common.device.type != dlpack::kCpu) Py_RETURN_NONE;
  const Kernels kernels = kept_kernels[common.kind];
  const int64_t n = column.tensor.shape[0];
  if (!kernels.take(n)) Py_RETURN_NONE;
  Stage stage;
  if (!stage.read(kernels, arguments[2], PyTuple_GET_ITEM(arguments[3], common.kind), m * n)) return nullptr;
  dlpack::Tensor result{};
  PyObject* out = new_like(kernels.empty_like, column.first, result);
  if (out == nullptr) return nullptr;
  table[0] = n;
  table[1] = integer(data(result));
  update(kernels, stage, table, m, ring);
  return out;
}

// Looks at .grad of a parameter: free, and plain like the gradients in a column, which the update goes to.
bool read_target(PyObject* grad, PyObject* types, const Common& common, const Column& column, int64_t& address) {
  dlpack::Tensor tensor{};
  if (!view(grad, types, tensor) || !contiguous(tensor) || !same_shape(tensor, column.tensor)) return false;
  if (kind_of(tensor.dtype) != common.kind || tensor.device.type != common.device.type || !is_free(grad)) return false;
  address = integer(data(tensor));
  return true;
}

// merge_into(rows, parameters, types, rule, cutoffs, ring) -> the parameters' .grad, a list without those that no row has, after
// the update was written to them. rows: a list of m lists or tuples of gradients of the parameters (None is zeros) as scan
// accepts them, on the CPU and together no larger than keep_kernels said; .grad is like them, and no hook waits for it.
// Otherwise None. rule,
// cutoffs, ring: as in short_update.
PyObject* merge_into(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  int64_t words;
  if (count != 6 || !PyList_Check(arguments[0]) || !PyList_Check(arguments[1]) || !PyTuple_Check(arguments[4]) ||
      PyTuple_GET_SIZE(arguments[4]) != 4) {
    PyErr_SetString(PyExc_TypeError, "merge_into takes lists of rows and parameters, types, a rule, four cut-offs and a ring");
    return nullptr;
  }
  if (!as_int(arguments[5], words)) return nullptr;
  const Ring ring(words);
  PyObject *rows = arguments[0], *parameters = arguments[1], *types = arguments[2];
  const auto m = static_cast<int64_t>(PyList_GET_SIZE(rows));
  const Py_ssize_t columns = PyList_GET_SIZE(parameters);
  if (!ring.takes(m)) Py_RETURN_NONE;
  for (int64_t i = 0; i < m; ++i)
    if (!is_row(PyList_GET_ITEM(rows, i)) || Py_SIZE(PyList_GET_ITEM(rows, i)) != columns) Py_RETURN_NONE;
  const Reference grads(PyList_New(0));
  if (exchange == nullptr || !grads || watched()) Py_RETURN_NONE;
  std::vector<int64_t> table, addresses(m);
  table.reserve(columns * (2 + 2 * m));
  Common common;
  int64_t n = 0;
  bool fits = true;
  for (Py_ssize_t p = 0; fits && p < columns; ++p) {
    Column column;
    int64_t target = 0;
    addresses.assign(m, 0);
    fits = read_column(rows, p, false, types, common, column, addresses.data());
    if (!fits || column.first == nullptr) continue;
    PyObject* parameter = PyList_GET_ITEM(parameters, p);
    const Reference grad(PyObject_GetAttr(parameter, names().grad));
    fits = grad && !has_hooks(parameter) && read_target(grad.get(), types, common, column, target) && PyList_Append(grads.get(), grad.get()) == 0;
    const int64_t size = numel(column.tensor);
    if (size == 0) continue;
    n += size;
    fits = fits && kept_kernels[common.kind].take(n);
    add_entry(table, size, target, addresses);
  }
  if (PyErr_Occurred()) return nullptr;
  if (!fits || common.kind < 0 || common.device.type != dlpack::kCpu) Py_RETURN_NONE;
  const Kernels kernels = kept_kernels[common.kind];
  if (!kernels.take(n)) Py_RETURN_NONE;
  Stage stage;
  if (!stage.read(kernels, arguments[3], PyTuple_GET_ITEM(arguments[4], common.kind), m * n)) return nullptr;
  update(kernels, stage, table, m, ring);
  return Py_NewRef(grads.get());
}

PyMethodDef methods[] = {
    {"attach", &attach, METH_O, nullptr},
    {"describe", fast(&describe), METH_FASTCALL, nullptr},
    {"scan", fast(&scan), METH_FASTCALL, nullptr},
    {"run", fast(&run), METH_FASTCALL, nullptr},
    {"run_plain", fast(&run_plain), METH_FASTCALL, nullptr},
    {"run_groups", fast(&run_groups), METH_FASTCALL, nullptr},
    {"keep_kernels", fast(&keep_kernels), METH_FASTCALL, nullptr},
    {"short_update", fast(&short_update), METH_FASTCALL, nullptr},
    {"merge_into", fast(&merge_into), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

int add_vectors(PyObject* module) {
  const bool added = PyModule_AddFunctions(module, methods) == 0;
  return added && add_networks(module) == 0 && add_results(module) == 0 && add_steps(module) == 0 ? 0 : -1;
}

}  // namespace fastconfig

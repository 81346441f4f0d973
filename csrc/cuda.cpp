// fastconfig._cuda: one call an update. Reads the tensors, lays out what the launches are told, launches; waits for nothing.
// The Python side has checked the gradients (fastconfig/gradients/rows.py) and made their device the current one.
#include <Python.h>

#include <cstdint>
#include <vector>

#include "calls.hpp"
#include "packing.hpp"
#include "tensors.hpp"

namespace fastconfig {
namespace {

// The gradients of one call, and the result, read from their Python objects.
struct Input {
  Packing packing;
  int kind = -1;

  // rows: a tensor (m, N) or (B, m, N); or what fastconfig.gradients calls plain; out: None, or of the rows' form.
  bool read(PyObject* rows, PyObject* out) {
    if (!PyList_Check(rows)) return read_tensor(rows, out);
    const int64_t m = packing.m = PyList_GET_SIZE(rows);
    const bool vectors = m > 0 && !is_row(PyList_GET_ITEM(rows, 0));
    const Py_ssize_t columns = vectors ? 1 : m > 0 ? Py_SIZE(PyList_GET_ITEM(rows, 0)) : 0;
    std::vector<int64_t> addresses(m), steps(m, 1);
    for (Py_ssize_t p = 0; p < columns; ++p) {
      dlpack::Tensor tensor{};
      int64_t length = 0;
      for (int64_t i = 0; i < m; ++i) {
        PyObject* object = element(rows, i, p, vectors);
        addresses[i] = 0;
        if (object == Py_None) continue;
        if (!view(object, tensor)) return false;
        length = numel(tensor);
        addresses[i] = integer(data(tensor));
      }
      PyObject* target = PyList_Check(out) ? PyList_GetItem(out, p) : out;
      if (target == nullptr || !add(length, target, addresses, steps)) return false;
    }
    return true;
  }

  // (words, m, kind, problems, bytes between problems' rows, and between their results), words as in
  // fastconfig/backends/table.py: per segment length, address of the result, m addresses, m steps.
  bool read_words(PyObject* source) {
    Py_buffer buffer;
    long long m, problems, batch_step, out_step;
    if (!PyArg_ParseTuple(source, "y*LiLLL", &buffer, &m, &kind, &problems, &batch_step, &out_step)) return false;
    packing.m = m;
    packing.problems = problems;
    packing.batch_step = batch_step;
    packing.out_step = out_step;
    const auto* words = static_cast<const int64_t*>(buffer.buf);
    const std::vector<int64_t> all(words, words + buffer.len / sizeof(int64_t));
    PyBuffer_Release(&buffer);
    for (auto entry = all.begin(); entry != all.end(); entry += 2 + 2 * m)
      packing.add(entry[0], kItemsize[kind], entry[1], {entry + 2, entry + 2 + m}, {entry + 2 + m, entry + 2 + 2 * m});
    return true;
  }

 private:
  bool view(PyObject* object, dlpack::Tensor& tensor) {
    if (exchange == nullptr) {
      PyErr_SetString(PyExc_RuntimeError, "run: no exchange table is attached, want words instead of tensors");
      return false;
    }
    if (exchange->from_object(object, &tensor) != 0) return false;
    if (tensor.device.type != kDeviceType) {
      PyErr_Format(PyExc_ValueError, "run: got a tensor on DLPack device %d, want %d", tensor.device.type, kDeviceType);
      return false;
    }
    if (kind < 0) kind = kind_of(tensor.dtype);
    if (kind >= 0 && kind_of(tensor.dtype) == kind) return true;
    PyErr_SetString(PyExc_TypeError, "run: got tensors of different or unknown dtypes");
    return false;
  }

  bool read_tensor(PyObject* rows, PyObject* out) {
    dlpack::Tensor tensor{};
    if (!view(rows, tensor)) return false;
    if (tensor.ndim != 2 && tensor.ndim != 3) {
      PyErr_Format(PyExc_ValueError, "run: got %d dimensions, want 2 or 3", tensor.ndim);
      return false;
    }
    const int64_t elements = numel(tensor);
    int64_t target = 0;
    if (elements > 0 && !address_of(out, target)) return false;
    add_tensor(packing, tensor, kItemsize[kind], target);
    return true;
  }

  // Of a result's memory; 0 for None.
  bool address_of(PyObject* out, int64_t& target) {
    dlpack::Tensor tensor{};
    if (out == Py_None) return true;
    if (!view(out, tensor)) return false;
    target = integer(data(tensor));
    return true;
  }

  bool add(int64_t length, PyObject* out, const std::vector<int64_t>& addresses, const std::vector<int64_t>& steps) {
    int64_t target = 0;
    if (length > 0 && !address_of(out, target)) return false;
    packing.add(length, kItemsize[kind < 0 ? 0 : kind], target, addresses, steps);
    return true;
  }
};

// All launches for up to kProblems problems of a batch.
void launch_problems(const Context& context, const Plan& plan, const Table& table, int64_t first, int64_t problems,
                     const Call& call, Scratch scratch) {
  const int m = table.m;
  if (call.steps == kCombine) {
    launch_combine(context, plan, table, problems, reinterpret_cast<const double*>(call.c) + first * m);
    return;
  }
  double* partials = scratch.take(problems * plan.blocks * triangle(m));
  if (call.steps == kGram) {
    launch_gram(context, plan, table, problems, partials);
    launch_sum(context, plan.blocks, m, problems, partials, reinterpret_cast<double*>(call.gram) + first * m * m);
  } else if (plan.one_launch) {
    launch_whole(context, plan, table, partials, call.stage);
  } else {
    const bool fused = is_fused(call.stage, m);
    launch_gram(context, plan, table, problems, partials);
    if (m <= kSmallRows && fused) {
      launch_finish(context, plan, table, first, problems, plan.blocks, partials, call.stage);
      return;
    }
    double* gram = scratch.take(problems * m * m);
    launch_sum(context, plan.blocks, m, problems, partials, gram);
    if (m <= kSolvedRows && fused) {
      launch_finish(context, plan, table, first, problems, 0, gram, call.stage);
      return;
    }
    double* c = scratch.take(problems * m);
    launch_coefficients(context, m, first, problems, gram, c, scratch, call.stage);
    launch_combine(context, plan, table, problems, c);
  }
}

}  // namespace

int64_t run_rows(const Packing& rows, const Call& call, const Context& context, int64_t memory, int64_t bytes) {
  if (rows.problems == 0 || (rows.chunks() == 0 && call.steps != kGram)) return 0;
  const bool update = call.steps == kGram + kCombine, fused = is_fused(call.stage, rows.m);
  const int size = static_cast<int>(kItemsize[context.kind < 0 ? 0 : context.kind]);
  const Plan p = plan(static_cast<int>(rows.m), rows.chunks(), rows.problems, size, context.device,
                      one_launch && update && fused);
  const auto words = rows.needs_memory() ? static_cast<int64_t>(rows.words().size()) : 0;
  const int64_t stage = update && !fused ? lone_stage_doubles(rows.m, rows.problems, call.stage) : 0;
  const int64_t needed = 8 * (p.doubles + words + stage);
  if (needed > bytes) return needed;
  auto* table_memory = reinterpret_cast<int64_t*>(memory);
  if (words > 0) launch_write(context, rows.words().data(), words, table_memory);
  Table table;
  for (int64_t first = 0; first < rows.problems; first += kProblems) {
    const int64_t problems = rows.problems - first < kProblems ? rows.problems - first : kProblems;
    rows.fill(first, table_memory, table);
    try {
      launch_problems(context, p, table, first, problems, call, Scratch(memory + 8 * words));
    } catch (const RefusedAtOnce&) {
      Context again = context;
      again.device.cooperative = current_known_device().cooperative = false;
      return run_rows(rows, call, again, memory, bytes);
    }
  }
  return 0;
}

namespace {

// run(rows, out, steps, device, stream, memory, bytes, rule, gram, c, rcond) -> bytes of scratch memory that are missing
// (nothing is launched then), or 0. rows: see Input::read and read_words. rule, gram and c are addresses,
// of the Rule and of float64 device memory; those that the steps do not need are 0.
PyObject* run(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  int64_t v[8];
  if (count != 11) {
    PyErr_SetString(PyExc_TypeError, "run takes 11 arguments");
    return nullptr;
  }
  if (!as_ints(arguments + 2, v, 8)) return nullptr;
  const double rcond = PyFloat_AsDouble(arguments[10]);
  if (rcond == -1 && PyErr_Occurred()) return nullptr;
  return guarded([&]() -> PyObject* {
    Input input;
    const bool words = PyTuple_Check(arguments[0]);
    if (!(words ? input.read_words(arguments[0]) : input.read(arguments[0], arguments[1]))) return nullptr;
    const Context context = context_of(v[1], v[2], input.kind);
    check_rows("run", input.packing.m, v[0] == kCombine ? kMostRows : most_rows(context.device));
    const Call call{v[0], v[6], v[7], stage_of(v[5], rcond)};
    return PyLong_FromLongLong(run_rows(input.packing, call, context, v[3], v[4]));
  });
}

// solve(gram, c, m, problems, device, stream, memory, bytes, rule, rcond) -> bytes of scratch memory that are missing
// (nothing is launched then), or 0: coefficients (problems, m) of Gram matrices (problems, m, m). All but rcond are
// integers, most of them addresses.
PyObject* solve(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  int64_t v[9];
  if (count != 10) {
    PyErr_SetString(PyExc_TypeError, "solve takes 10 arguments");
    return nullptr;
  }
  if (!as_ints(arguments, v, 9)) return nullptr;
  const double rcond = PyFloat_AsDouble(arguments[9]);
  if (rcond == -1 && PyErr_Occurred()) return nullptr;
  const auto [gram, c, m, all, device, stream, memory, bytes, rule] = v;
  return guarded([&, gram = gram, c = c, m = m, all = all, memory = memory, bytes = bytes]() -> PyObject* {
    const Context context = context_of(device, stream, 0);
    check_rows("solve", m, most_rows(context.device));
    const Stage stage = stage_of(rule, rcond);
    const int64_t needed = 8 * coefficients_doubles(m, all, stage);
    if (needed > bytes) return PyLong_FromLongLong(needed);
    for (int64_t first = 0; first < all; first += kProblems) {
      Scratch scratch(memory);
      launch_coefficients(context, m, first, all - first < kProblems ? all - first : kProblems,
                          reinterpret_cast<const double*>(gram) + first * m * m,
                          reinterpret_cast<double*>(c) + first * m, scratch, stage);
    }
    return PyLong_FromLong(0);
  });
}

// device(index) -> (major, minor, multiprocessors, whether float64 is computed at a usable rate); RuntimeError if no
// kernel here runs on it.
PyObject* device(PyObject*, PyObject* index) {
  int64_t i;
  if (!as_int(index, i)) return nullptr;
  return guarded([&] {
    const Device& d = device_of(static_cast<int>(i));
    return Py_BuildValue("iiiO", d.major, d.minor, d.processors, d.float64 ? Py_True : Py_False);
  });
}

// problem() -> why there is no device here, or None.
PyObject* problem(PyObject*, PyObject*) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return PyUnicode_FromFormat("%s (%s)", cudaGetErrorString(error), cudaGetErrorName(error));
  if (count == 0) return PyUnicode_FromString("no CUDA device");
  Py_RETURN_NONE;
}

// options(one_launch, overlapped): whether an update may be one cooperative launch; whether a launch may begin before the
// one it follows has ended. Devices that have refused the one launch are asked again.
PyObject* options(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "options takes 2 arguments");
    return nullptr;
  }
  one_launch = PyObject_IsTrue(arguments[0]) == 1;
  overlapped = PyObject_IsTrue(arguments[1]) == 1;
  known_devices.clear();
  Py_RETURN_NONE;
}

// attach(capsule, current): torch.Tensor.__dlpack_c_exchange_api__, without which run takes words only and update nothing;
// and what tells the number of torch's current device, or None where there is one only.
PyObject* attach(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "attach takes 2 arguments");
    return nullptr;
  }
  if (!keep_exchange(arguments[0])) return nullptr;
  Py_XSETREF(current_device, arguments[1] == Py_None ? nullptr : Py_NewRef(arguments[1]));
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {{"attach", fast(&attach), METH_FASTCALL, nullptr},
                         {"device", &device, METH_O, nullptr},
                         {"merge_into", fast(&merge_into), METH_FASTCALL, nullptr},
                         {"momentum", fast(&momentum), METH_FASTCALL, nullptr},
                         {"options", fast(&options), METH_FASTCALL, nullptr},
                         {"problem", &problem, METH_NOARGS, nullptr},
                         {"run", fast(&run), METH_FASTCALL, nullptr},
                         {"run_groups", fast(&run_groups), METH_FASTCALL, nullptr},
                         {"solve", fast(&solve), METH_FASTCALL, nullptr},
                         {"update", fast(&update), METH_FASTCALL, nullptr},
                         {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cuda", "The CUDA kernels of fastconfig.", -1, methods,
                          nullptr,               nullptr, nullptr,                            nullptr};

}  // namespace
}  // namespace fastconfig

PyMODINIT_FUNC PyInit__cuda() {
  using namespace fastconfig;
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  if (PyModule_AddStringConstant(module, "device_type", kDeviceType == dlpack::kCpu ? "cpu" : "cuda") != 0 ||
      PyModule_AddIntConstant(module, "most", kMostRows) != 0 ||
      PyModule_AddIntConstant(module, "few", kSmallRows) != 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}

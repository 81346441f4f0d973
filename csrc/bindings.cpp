// fastconfig._C: the m x m stage on the host. Arrays come as addresses and sizes; the Python side has checked them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "rules.hpp"
#include "vectors.hpp"

namespace py = pybind11;

namespace {

constexpr int kOnStack = 16;  // problems up to this m need no allocation

constexpr int64_t kStackDoubles = std::max({
#define FASTCONFIG_RULE(name, weight, more) fastconfig::scratch_doubles(fastconfig::Method::name, kOnStack),
#include "rules.def"
#undef FASTCONFIG_RULE
});

}  // namespace

extern "C" void fastconfig_coefficients(const double* gram, double* c, int64_t batch, int64_t m,
                                        const fastconfig::Rule* rule, double rcond) {
  double stack_memory[kStackDoubles];
  int stack_pivots[kOnStack];
  std::unique_ptr<double[]> heap_memory;
  std::unique_ptr<int[]> heap_pivots;
  if (m > kOnStack) {
    heap_memory.reset(new double[fastconfig::scratch_doubles(rule->method, m)]);
    heap_pivots.reset(new int[m]);
  }
  const fastconfig::Workspace workspace(heap_memory ? heap_memory.get() : stack_memory,
                                        heap_pivots ? heap_pivots.get() : stack_pivots, static_cast<int>(m));
  for (int64_t problem = 0; problem < batch; ++problem)
    fastconfig::coefficients<fastconfig::Weight::heavy>(
        fastconfig::ThreadTeam{}, workspace, {gram + problem * m * m, static_cast<int>(m), *rule, problem, rcond},
        c + problem * m);
}

PYBIND11_MODULE(_C, module) {
  module.doc() = "The m x m stage of fastconfig, compiled.";
#define FASTCONFIG_RULE(name, weight, more) #name,
  const std::vector<const char*> methods{
#include "rules.def"
  };
#undef FASTCONFIG_RULE
  const int known = static_cast<int>(methods.size());
  std::vector<const char*> heavy;
  for (int method = 0; method < known; ++method)
    if (weight_of(static_cast<fastconfig::Method>(method)) != fastconfig::Weight::light) heavy.push_back(methods[method]);
  module.attr("HEAVY") = py::frozenset(py::cast(heavy));
  module.attr("METHODS") = py::tuple(py::cast(methods));

  py::class_<fastconfig::Rule>(module, "Rule")
      .def(py::init([known](int method, int length, int64_t track_id, bool mean, uintptr_t weights, int64_t weights_step,
                       uintptr_t order, int64_t order_step, const std::vector<double>& parameters, uintptr_t state,
                       int64_t state_step) {
             if (method < 0 || method >= known || length < 0 ||
                 length > static_cast<int>(fastconfig::Length::none))
               throw py::value_error("Rule: got a method or length that is unknown here");
             fastconfig::Rule rule{static_cast<fastconfig::Method>(method),
                                   static_cast<fastconfig::Length>(length),
                                   track_id,
                                   mean,
                                   reinterpret_cast<const double*>(weights),
                                   weights_step,
                                   reinterpret_cast<const int64_t*>(order),
                                   order_step,
                                   {},
                                   nullptr,
                                   0,
                                   nullptr};
             if (parameters.size() > std::size(rule.parameters))
               throw py::value_error("Rule: got " + std::to_string(parameters.size()) + " parameters, want at most " +
                                     std::to_string(std::size(rule.parameters)));
             std::copy(parameters.begin(), parameters.end(), rule.parameters);
             rule.state = reinterpret_cast<double*>(state);
             rule.state_step = state_step;
             return rule;
           }),
           py::kw_only(), py::arg("method"), py::arg("length"), py::arg("track_id"), py::arg("mean"),
           py::arg("weights"), py::arg("weights_step"), py::arg("order"), py::arg("order_step"), py::arg("parameters"),
           py::arg("state") = 0, py::arg("state_step") = 0)
      .def_property_readonly("address",
                             [](const fastconfig::Rule& rule) { return reinterpret_cast<uintptr_t>(&rule); });

  module.def(
      "coefficients",
      [](uintptr_t gram, uintptr_t c, int64_t batch, int64_t m, const fastconfig::Rule& rule, double rcond) {
        fastconfig_coefficients(reinterpret_cast<const double*>(gram), reinterpret_cast<double*>(c), batch, m, &rule,
                                rcond);
      },
      py::arg("gram"), py::arg("c"), py::arg("batch"), py::arg("m"), py::arg("rule"), py::arg("rcond"),
      "Write the coefficients (batch, m) of the Gram matrices (batch, m, m), all float64, contiguous.");

  // for compiled code that calls it by its address
  module.attr("coefficients_address") = reinterpret_cast<uintptr_t>(&fastconfig_coefficients);

  if (fastconfig::add_vectors(module.ptr()) != 0) throw py::error_already_set();
}

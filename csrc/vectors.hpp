// The parts of fastconfig._C that are called once an update: plain C functions, since pybind11's own calls cost more.
#pragma once

#include <Python.h>

#include <cstdint>

#include "problem.hpp"

// c (batch, m) from gram (batch, m, m), float64; also called by its address, from compiled kernels.
extern "C" void fastconfig_coefficients(const double* gram, double* c, int64_t batch, int64_t m,
                                        const fastconfig::Rule* rule, double rcond);

namespace fastconfig {

// Adds attach, describe, scan, run, run_plain, run_groups, keep_kernels, short_update, merge_into and what the others below
// add; -1 and a Python error if that fails.
int add_vectors(PyObject* module);

// Adds parameters, leaves, join and spread.
int add_networks(PyObject* module);

// Adds new_results.
int add_results(PyObject* module);

// Adds keep_step_kernels and short_step.
int add_steps(PyObject* module);

}  // namespace fastconfig

"""Faults of the compiled methods: from the Gram matrix to coefficients."""

from __future__ import annotations

from .fault import Fault

_LINALG = "csrc/linalg.hpp"
_RULES = "csrc/rules.hpp"
_PROBLEM = "csrc/problem.hpp"
_CONFIG = "csrc/rules/config.hpp"
_PCGRAD = "csrc/rules/pcgrad.hpp"
_PPCGRAD = "csrc/rules/ppcgrad.hpp"
_IMTLG = "csrc/rules/imtlg.hpp"
_OPS = (
    "test_ops.py::test_native_and_plain_coefficients_agree",
    "test_ops.py::test_rcond_cuts_the_eigenvalues_that_the_reference_cuts",
    "test_ops.py::test_weights_count_as_unsupported_where_the_reference_says_so",
    "test_ops.py::test_nan_in_a_gram_matrix_stays_in_its_problem",
)
_DEGENERATE = (*_OPS, "test_degenerate.py")

FAULTS = (
    Fault(
        "compiled-cutoff-once",
        _LINALG,
        "pivoted_cholesky(team, l, m, 2 * rcond,",
        "pivoted_cholesky(team, l, m, rcond,",
        "the rank is cut at rcond instead of 2 rcond on Schur diagonals",
        _OPS,
    ),
    Fault(
        "compiled-support-cutoff",
        _LINALG,
        "!(supported > rcond * rcond * whole)",
        "!(supported > rcond * whole)",
        "weights count as unsupported by the range of C below rcond instead of rcond^2",
        _OPS,
    ),
    Fault(
        "compiled-support-dropped",
        _LINALG,
        "z[i] = zero ? 0 : s;",
        "z[i] = s;",
        "opposed gradients give a direction instead of zero",
        _DEGENERATE,
    ),
    Fault(
        "compiled-pivot-smallest",
        _LINALG,
        "if (schur[i] > best) {",
        "if (best < 0) {",
        "the first row that is left is the pivot, not the one with the largest Schur diagonal",
        _OPS,
    ),
    Fault(
        "compiled-pivots-not-noted",
        _LINALG,
        "pivots[p] = row;",
        "pivots[p] = pivots[p];",
        "a row is swapped in C, but not in the list of pivots",
        _OPS,
    ),
    Fault(
        "compiled-schur-not-swapped",
        _LINALG,
        "        schur[p] = schur[k];\n",
        "",
        "the Schur diagonal stays behind when rows are swapped",
        _OPS,
    ),
    Fault(
        "compiled-schur-not-updated",
        _LINALG,
        "schur[i] -= v * v;",
        "schur[i] -= v * v * 0;",
        "what a row shares with those taken is not subtracted",
        _OPS,
    ),
    Fault(
        "compiled-dot-remainder",
        _LINALG,
        "FASTCONFIG_ROLLED for (; k < n; ++k) s[0] += a[k] * b[k];",
        "FASTCONFIG_ROLLED for (; k + 1 < n; ++k) s[0] += a[k] * b[k];",
        "a dot product leaves out its last element where n is no multiple of 4",
        _OPS,
    ),
    Fault(
        "compiled-zero-rows-weighted",
        _CONFIG,
        "w.x[i] = w.norms[i] > 0 ? (weights ? weights[i] : 1.0) : 0.0;",
        "w.x[i] = weights ? weights[i] : 1.0;",
        "a zero gradient has a weight in ConFIG",
        ("test_degenerate.py::test_opposed_rows_cancel_beside_a_zero_row",),
    ),
    Fault(
        "compiled-imtlg-zero-rows",
        _IMTLG,
        "w.x[i] = w.norms[i] > 0 ? 1.0 : 0.0;",
        "w.x[i] = 1.0;",
        "a zero gradient has a weight in IMTL-G",
        ("test_degenerate.py::test_opposed_rows_cancel_beside_a_zero_row",),
    ),
    Fault(
        "compiled-imtlg-unresolved",
        _IMTLG,
        "w.x[i] = resolved ? w.x[i] / total : 0;",
        "w.x[i] = w.x[i] / total;",
        "IMTL-G divides by a sum that is nothing but rounding",
        _DEGENERATE,
    ),
    Fault(
        "compiled-imtlg-tolerance",
        _IMTLG,
        "fabs(total) > m * DBL_EPSILON * size",
        "fabs(total) > m * 1e-3 * size",
        "IMTL-G gives zero where the sum of its coefficients is small beside them",
        (*_OPS, "test_known_faults.py", "test_degenerate.py"),
    ),
    Fault(
        "compiled-nan-passed-over",
        _RULES,
        "if (!(broken > 0)) {",
        "if (true) {",
        "NaN on the diagonal of G does not reach all coefficients",
        _DEGENERATE,
    ),
    Fault(
        "compiled-inf-passed-over",
        _RULES,
        "std::isfinite(gram[i * m + i]) ? 0.0 : 1.0",
        "gram[i * m + i] == gram[i * m + i] ? 0.0 : 1.0",
        "Inf in a gradient is not taken for broken",
        ("test_degenerate.py",),
    ),
    Fault(
        "compiled-pcgrad-order",
        _PCGRAD,
        "static_cast<int>(order[i * m + step])",
        "static_cast<int>(order[step])",
        "every gradient is projected in the order of the first",
        _OPS,
    ),
    Fault(
        "compiled-pcgrad-originals",
        _PCGRAD,
        "const double along = dot(b, w.cosines + j * m, m);",
        "const double along = b[i] * w.cosines[j * m + i];",
        "PCGrad projects the original gradient, not the one projected so far",
        _OPS,
    ),
    Fault(
        "compiled-pcgrad-sign",
        _PCGRAD,
        "if (along < 0) b[j] -= along;",
        "if (along > 0) b[j] -= along;",
        "PCGrad projects where gradients agree",
        _OPS,
    ),
    Fault(
        "compiled-pcgrad-mean",
        _PCGRAD,
        "w.x[j] = rule.mean ? s / m : s;",
        "w.x[j] = s;",
        "PCGrad adds up where a mean was asked for",
        _OPS,
    ),
    Fault(
        "compiled-ppcgrad-transposed",
        _PPCGRAD,
        "s -= w.norms[i] * w.cosines[i * m + j];",
        "s -= w.norms[j] * w.cosines[i * m + j];",
        "PPCGrad subtracts a multiple of the wrong norm",
        _OPS,
    ),
    Fault(
        "compiled-minimum-zeros",
        _CONFIG,
        "norms[i] > 0 && norms[i] < least",
        "norms[i] < least",
        "TrackMinimum counts a zero gradient",
        _DEGENERATE,
    ),
    Fault(
        "compiled-arithmetic-count",
        _CONFIG,
        "team_sum(team, m, [&](int i) { return norms[i]; }) / count",
        "team_sum(team, m, [&](int i) { return norms[i]; }) / m",
        "the arithmetic mean of the norms counts zero gradients",
        _DEGENERATE,
    ),
    Fault(
        "compiled-track-id",
        _CONFIG,
        "return norms[rule.track_id];",
        "return norms[0];",
        "TrackSpecific always tracks the first gradient",
        _OPS,
    ),
    Fault(
        "compiled-weights-step",
        _PROBLEM,
        "place(weights, weights_step, problem, 0)",
        "place(weights, 0, problem, 0)",
        "all problems of a batch take the first one's weights",
        _OPS,
    ),
    Fault(
        "compiled-order-step",
        _PROBLEM,
        "place(order, order_step, problem, 1)",
        "place(order, 0, problem, 1)",
        "all problems of a batch take the first one's order",
        _OPS,
    ),
    Fault(
        "compiled-lengthless",
        _CONFIG,
        "  if (rule.length == Length::none) return;\n",
        "",
        'length "none" scales all the same',
        _OPS,
    ),
)

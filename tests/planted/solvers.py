"""Faults of what iterates: quadratic programs, Newton's method, rotations; compiled and in torch."""

# the sources' text as it is
from __future__ import annotations

from .fault import Fault

_SET = "csrc/rules/active_set.hpp"
_DUAL = "csrc/rules/dual_cone.hpp"
_MGDA = "csrc/rules/mgda.hpp"
_NEWTON = "csrc/rules/newton.hpp"
_CAGRAD = "csrc/rules/cagrad.hpp"
_ALIGNED = "csrc/rules/aligned.hpp"
_GRADVAC = "csrc/rules/gradvac.hpp"
_KRUM = "csrc/rules/krum.hpp"
_PCD = "csrc/rules/pcd.hpp"
_TORCH = "fastconfig/methods/solvers.py"
_TORCH_NEWTON = "fastconfig/methods/newton.py"
_TORCH_ALIGNED = "fastconfig/methods/aligned.py"

FAULTS = (
    Fault(
        "set-dependent-parts",
        _SET,
        "if (!(rest > 4 * noise * parts * parts)) return false;",
        "if (!(rest > 4 * noise)) return false;",
        "a rest that is rounding of large parts counts as a direction of its own",
        ("test_nearly_dependent.py",),
    ),
    Fault(
        "set-gentlest-enters",
        _SET,
        "slope[order[k]] < slope[order[best]])) best = k;",
        "slope[order[k]] > slope[order[best]])) best = k;",
        "the coordinate of the gentlest slope enters",
        ("test_nearly_dependent.py",),
    ),
    Fault(
        "cone-not-tried-again",
        _DUAL,
        "!free && together >= 0;",
        "!free && together > 0;",
        "a set that all at once end in is not tried again one by one",
        ("test_nearly_dependent.py",),
    ),
    Fault(
        "mgda-stationary-units",
        _MGDA,
        "double share = least > 0 ? shortest(set, w.cosines, r, matrix, q, p.rcond) : 0;",
        "double share = least > 0 ? shortest(set, w.cosines, r, matrix, q, p.rcond) + 1 : 0;",
        "stationary gradients of different norms have an update of rounding",
        ("test_dual_cone.py::test_all_zero_and_balanced_gradients_give_zero",),
    ),
    Fault(
        "newton-over-the-edge",
        _NEWTON,
        "fmax(-s[i], power * s[i] - rest[i])",
        "-s[i]",
        "FairGrad's products with the update are stepped below zero",
        ("test_fair_methods.py::test_the_papers_equation",),
    ),
    Fault(
        "newton-early-end",
        _NEWTON,
        "if (near && decrement < 1e-18) break;",
        "if (near && decrement < 1e-6) break;",
        "Newton's method ends before the answer has its digits",
        ("test_fair_methods.py::test_all_digits_of_many_problems",),
    ),
    Fault(
        "newton-fair-early-end",
        _NEWTON,
        "(error < 1e-8 && error > last / 2)",
        "(error < 1e-5)",
        "FairGrad's iteration ends before the answer has its digits",
        ("test_fair_methods.py::test_the_papers_equation",),
    ),
    Fault(
        "nash-longest-of-all",
        "csrc/rules/nash.hpp",
        "scale = fmin(scale, longest / sqrt(count));",
        "scale = fmin(scale, longest / sqrt(m));",
        "a zero gradient shortens the longest update",
        ("test_fair_methods.py::test_a_zero_gradient", "test_fair_methods.py::test_lengths_of_nash"),
    ),
    Fault(
        "cagrad-not-stationary",
        _CAGRAD,
        "    stationary = true;\n",
        "    stationary = false;\n",
        "gradients that cancel have an update",
        ("test_fair_methods.py::test_all_zero_and_opposed_gradients_give_zero",),
    ),
    Fault(
        "aligned-upper-median",
        _ALIGNED,
        "? (r - 1) / 2 : 0)",
        "? r / 2 : 0)",
        "the upper median is the common length",
        ("test_aligned.py::test_exact",),
    ),
    Fault(
        "aligned-few-sweeps",
        _ALIGNED,
        "if (largest < 1e-16) break;",
        "if (largest < 1e-4) break;",
        "the rotations end before the components are orthogonal",
        ("test_aligned.py::test_components_of_many_problems",),
    ),
    Fault(
        "aligned-mean-of-all",
        _ALIGNED,
        "scale += length * length / r;",
        "scale += length * length / m;",
        "components of length zero count in the mean",
        ("test_aligned.py::test_dependent_gradients",),
    ),
    Fault(
        "aligned-equal-lengths",
        _ALIGNED,
        "lengths[b] < length || (lengths[b] == length && b < a);",
        "lengths[b] < length;",
        "of components of the very same length none is the median",
        ("test_aligned.py::test_orthogonal_gradients_of_the_very_same_length",),
    ),
    Fault(
        "gradvac-target-of-one",
        _GRADVAC,
        "wanted = sqrt(rest > least ? rest : least);",
        "wanted = sqrt(rest);",
        "a target of one takes without bound",
        ("test_simple_methods.py::test_gradvac_with_a_target_of_one_takes_a_bounded_part",),
    ),
    Fault(
        "torch-set-dependent-parts",
        _TORCH,
        "dependent = distance <= 4 * noise * (1 + spans.abs().sum(-2)).square()",
        "dependent = distance <= 4 * noise",
        "a rest that is rounding of large parts counts as a direction of its own",
        ("test_nearly_dependent.py",),
    ),
    Fault(
        "torch-sets-dependent",
        _TORCH,
        "valid = (broken == 0) & ((apart & (z > 0)) | ~free).all(-1)",
        "valid = (broken == 0) & ((z > 0) | ~free).all(-1)",
        "a set of dependent gradients may be the best",
        ("test_nearly_dependent.py::test_by_the_best_of_all_sets",),
    ),
    Fault(
        "torch-cone-contradiction",
        _TORCH,
        "        met &= ~broken\n",
        "",
        "constraints that contradict each other count as met",
        (
            "test_krum_and_pcd.py::test_pcd_special_cases",
            "test_krum_and_pcd.py::test_pcd_at_all_norms_and_angles",
        ),
    ),
    Fault(
        "torch-newton-over-the-edge",
        _TORCH_NEWTON,
        "lowest = torch.minimum(s, u).amin(-1, keepdim=True)",
        "lowest = s.amin(-1, keepdim=True)",
        "FairGrad's products with the update are stepped below zero",
        ("test_fair_methods.py::test_the_papers_equation",),
    ),
    Fault(
        "torch-newton-longest",
        _TORCH_NEWTON,
        "exists &= torch.where(alive, b, 0).square().sum(-1, keepdim=True) < longest",
        "exists &= b.isfinite()",
        "opposed gradients have an update of coefficients without bound",
        ("test_fair_methods.py::test_all_zero_and_opposed_gradients_give_zero",),
    ),
    Fault(
        "torch-aligned-dependent-parts",
        _TORCH_ALIGNED,
        "        cut = (rcond / 64 * (1 + parts.abs().sum(-1)).square()).clamp(min=2 * rcond)",
        "        cut = torch.full_like(rest, 2 * rcond)",
        "a rest that is rounding of large parts counts as a component",
        ("test_aligned.py::test_what_is_a_thousand_times_the_difference_of_two_longer_ones",),
    ),
    Fault(
        "aligned-dependent-parts",
        _ALIGNED,
        "rest[i] > fmax(2 * rcond, rcond / 64 * whole * whole) && value > best",
        "rest[i] > 2 * rcond && value > best",
        "a rest that is rounding of large parts counts as a component",
        ("test_aligned.py::test_what_is_a_thousand_times_the_difference_of_two_longer_ones",),
    ),
    Fault(
        "krum-one-too-many",
        _KRUM,
        "for (; end > closest; --end)",
        "for (; end > closest + 1; --end)",
        "a score counts one gradient more",
        ("test_krum_and_pcd.py::test_krum_selects_what_the_paper_selects",),
    ),
    Fault(
        "krum-rounding-decides",
        _KRUM,
        "8 * DBL_EPSILON * closest",
        "0 * closest",
        "scores that are equal but for rounding differ",
        ("test_krum_and_pcd.py::test_scores_that_are_equal_but_for_rounding",),
    ),
    Fault(
        "krum-last-of-equals",
        _KRUM,
        "&& -i > before",
        "&& -i < before",
        "of equal scores not the first counts",
        ("test_krum_and_pcd.py::test_scores_that_are_equal_but_for_rounding",),
    ),
    Fault(
        "krum-chosen-again",
        _KRUM,
        "least[first] = most[first] = INFINITY;",
        "most[first] = INFINITY;",
        "a gradient that was chosen is chosen again",
        ("test_krum_and_pcd.py::test_krum_selects_what_the_paper_selects",),
    ),
    Fault(
        "pcd-not-corrected",
        _PCD,
        "share = averages ? 1 - pow(beta, calls) : 1;",
        "share = 1;",
        "the moving averages begin at zero, uncorrected",
        ("test_krum_and_pcd.py::test_pcd_of_batches_with_averages_and_shares",),
    ),
    Fault(
        "pcd-shares-shifted",
        _PCD,
        "taus[j - 1] : p",
        "taus[j] : p",
        "each gradient has another one's share",
        ("test_krum_and_pcd.py::test_pcd_of_batches_with_averages_and_shares",),
    ),
    Fault(
        "pcd-contradictions-kept",
        _PCD,
        "met ? cone.y[j] : 0",
        "cone.y[j]",
        "constraints that contradict each other move the update",
        (
            "test_krum_and_pcd.py::test_pcd_special_cases",
            "test_krum_and_pcd.py::test_pcd_at_all_norms_and_angles",
        ),
    ),
    Fault(
        "pcd-never-dropped",
        _PCD,
        "if (held[k] > 0 && -y[used[k]]",
        "if (held[k] > INFINITY && -y[used[k]]",
        "a constraint in use may push",
        ("test_krum_and_pcd.py::test_pcd_of_many",),
    ),
    Fault(
        "pcd-factor-not-renewed",
        _PCD,
        "enter(j, squared > 0 ? squared : DBL_MIN);",
        "enter(j, 1);",
        "what stood behind a dropped constraint keeps a wrong row in the factor",
        ("test_krum_and_pcd.py::test_pcd_of_many",),
    ),
    Fault(
        "pcd-length-of-d",
        _PCD,
        "w.norms[0] / sqrt(squared)",
        "1",
        "the update keeps the length of d",
        ("test_krum_and_pcd.py::test_pcd_at_all_norms_and_angles",),
    ),
)

"""gram, conflict_mask, coefficients and combine by themselves, also batched; compiled and plain alike."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from inputs import BACKENDS, equiangular, gram_error, low_rank, relative_error, scaled
from torch import Tensor

from fastconfig import _C, ops, reference, use_backend
from fastconfig.methods import LENGTHS, RULES, ConFIG, make_rule, native_coefficients

CPU = torch.device("cpu")


def test_an_unknown_rule_is_no_other_method() -> None:
    with pytest.raises(ValueError, match="method: got 'total', want one of 'config'"):
        make_rule("total", 2, CPU)
    with pytest.raises(ValueError, match="length: got 'long', want one of 'projection'"):
        ConFIG(length="long").coefficients(torch.eye(2).double(), torch.float64)
    given: Any = {"track_id": 0, "mean": False, "weights": 0, "weights_step": 0, "order": 0, "order_step": 0}
    for method, length in ((len(_C.METHODS), 0), (-1, 0), (0, 8)):
        with pytest.raises(ValueError, match="unknown here"):
            _C.Rule(method=method, length=length, **given, parameters=())
    with pytest.raises(ValueError, match="Rule: got 5 parameters, want at most 4"):
        _C.Rule(method=0, length=0, **given, parameters=range(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 33, 64, 65, 100])
def test_gram(m: int, dtype: torch.dtype) -> None:
    for n in (1, 63, 2051, 20_003):
        rows = (torch.randn(m, n) + 0.3).to(dtype)
        exact = reference.gram(rows)
        for backend in BACKENDS:
            with use_backend(backend):
                gram = ops.gram(list(rows))
            assert gram.dtype == torch.float64
            assert torch.equal(gram, gram.T)
            # float64 sums in blocks: far below n eps, the bound of a plain sum
            assert gram_error(gram, exact) <= 1e-14, backend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, 2, 777])
def test_the_judge_of_gram_is_exact(n: int, dtype: torch.dtype) -> None:
    rows = (scaled(torch.randn(5, n), decades=2) * torch.randn(5, n).exp()).to(dtype)
    rows[3] = 0
    gram = reference.gram(rows)
    full = rows.double()  # products of two such numbers are exact
    exact = torch.tensor([[math.fsum((a * b).tolist()) for b in full] for a in full], dtype=torch.float64)
    assert torch.equal(gram, gram.T)
    assert gram_error(gram, exact) <= 2.0**-51 + n * 2.0**-74


@pytest.mark.parametrize("m", [1, 3, 9, 65])
def test_all_forms_have_the_same_bits_in_plain_pytorch(m: int) -> None:
    for n in (7, 600, 50_021):
        rows, c = torch.randn(m, n), torch.randn(m, dtype=torch.float64)
        cut = n // 3
        forms: list[Any] = [
            list(rows),
            rows.T.contiguous().T,
            rows.repeat_interleave(2, dim=1)[:, ::2],
            [torch.cat([row[:1], row])[1:] for row in rows],
            [[row[:cut], row[cut:]] for row in rows],
        ]
        with use_backend("pytorch"):
            gram, update = ops.gram(rows), ops.combine(rows, c)
            for form in forms:
                assert torch.equal(ops.gram(form), gram)
                found = ops.combine(form, c)
                assert torch.equal(found if isinstance(found, Tensor) else torch.cat(found), update)  # type: ignore[arg-type]


def test_gram_of_a_batch(backend: str) -> None:
    rows = torch.randn(4, 5, 777)
    torch.testing.assert_close(ops.gram(rows), torch.stack([ops.gram(r) for r in rows]), rtol=0, atol=1e-11)


def test_conflict_mask() -> None:
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    mask = ops.conflict_mask(ops.gram(rows))
    wanted = torch.zeros(4, 4, dtype=torch.bool)
    wanted[0, 1] = wanted[1, 0] = True
    assert torch.equal(mask, wanted)
    assert torch.equal(ops.conflict_mask(ops.gram(rows.expand(3, 4, 2))), wanted.expand(3, 4, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("m", [1, 3, 20])
def test_combine(m: int, dtype: torch.dtype, backend: str) -> None:
    for n in (1, 63, 8193):
        rows, c = torch.randn(m, n).to(dtype), torch.randn(m, dtype=torch.float64)
        exact = c @ rows.double()
        error = (ops.combine(list(rows), c).double() - exact).abs()
        # one rounding, and float64 sums before it
        bound = 0.51 * torch.finfo(dtype).eps * exact.abs() + 1e-14 * (c.abs() @ rows.double().abs())
        smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert torch.isfinite(error).all()
        assert (error <= bound + smallest).all()


def test_a_coefficient_that_is_nan_breaks_what_its_gradient_lacks(backend: str) -> None:
    """A missing gradient counts as zeros, and zero times NaN is NaN."""
    rows = [[torch.ones(5), None], [torch.ones(5), torch.ones(70)]]
    for piece in ops.combine(rows, [torch.nan, 1.0]):  # type: ignore[arg-type]
        assert piece is not None
        assert piece.isnan().all()


def test_combine_of_a_batch(backend: str) -> None:
    rows, c = torch.randn(4, 3, 501), torch.randn(4, 3)
    wanted = torch.stack([ops.combine(r, weights) for r, weights in zip(rows, c, strict=True)])
    # other matrix products, whose float64 sums may round to the next float32
    terms = (c.double().abs()[:, None] @ rows.double().abs()).squeeze(1)
    bound = torch.finfo(torch.float32).eps * wanted.double().abs() + 1e-14 * terms
    assert ((ops.combine(rows, c).double() - wanted.double()).abs() <= bound).all()
    with pytest.raises(ValueError, match=r"c: got shape \(3,\), want \(4, 3\)"):
        ops.combine(rows, c[0])


GRAMS = {
    "independent": lambda m: low_rank(m, m + 5, m),
    "dependent": lambda m: low_rank(m, m + 5, (m + 1) // 2),
    "duplicates": lambda m: torch.randn((m + 1) // 2, m + 5).double().repeat_interleave(2, 0)[:m],
    "conflicting": lambda m: equiangular(m, m + 3, -0.8 / max(m - 1, 1)),
    "scales": lambda m: scaled(equiangular(m, m + 3, 0.2), 20),
    "zero row": lambda m: torch.randn(m, m + 3).double() * (torch.arange(m) > 0).double().unsqueeze(1),
    "zero": lambda m: torch.zeros(m, 4).double(),
    "opposed": lambda m: torch.randn(4).double() * (-1.0) ** torch.arange(m).double().unsqueeze(1),
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", GRAMS)
@pytest.mark.parametrize("m", [1, 2, 3, 8, 17, 64])
def test_native_and_plain_coefficients_agree(m: int, kind: str, length: str) -> None:
    rows = torch.stack([GRAMS[kind](m) for _ in range(3)])
    gram = rows @ rows.mT
    order = torch.rand(3, m, m).argsort(-1)
    weights = torch.rand(3, m, dtype=torch.float64) + 0.1
    settings = [{"method": "config", "length": length, "track_id": -1, "weights": weights}]
    if length == "projection":
        settings += [
            {"method": "pcgrad", "order": order},
            {"method": "pcgrad", "reduction": "mean"},
            {"method": "ppcgrad"},
            {"method": "imtlg"},
        ]
    for setting in settings:
        rule = make_rule(m=m, device=CPU, batch=3, **setting)  # type: ignore[arg-type]
        plain = rule.coefficients(gram, torch.float64)
        native = native_coefficients(gram, rule, torch.float64)
        assert torch.isfinite(plain).all()
        # by the update: coefficients of dependent rows may differ along the null space; and relative to
        # the rows too, since projections on opposed rows cancel
        update, wanted = (c.unsqueeze(-2) @ rows for c in (native, plain))
        size = ((1 + plain.abs()).unsqueeze(-1) * rows.abs()).sum((-2, -1))
        assert ((update - wanted).abs().amax((-2, -1)) <= 1e-10 * size).all(), setting


def test_coefficients_of_a_batch_are_those_of_each() -> None:
    rows = torch.randn(5, 4, 9, dtype=torch.float64)
    gram = rows @ rows.mT
    for method in [name for name in RULES if name != "random"]:
        both = (
            ops.coefficients(gram, method),
            torch.stack([ops.coefficients(g, method) for g in gram]),
        )
        torch.testing.assert_close(*both, rtol=1e-12, atol=1e-14)


def test_rcond_merges_nearby_rows() -> None:
    gram = torch.tensor([[1.0, 0.999], [0.999, 1.0]], dtype=torch.float64)
    weights = torch.tensor([2.0, 1.0], dtype=torch.float64)
    apart = ops.coefficients(gram, weights=weights, length="none")
    merged = ops.coefficients(gram, weights=weights, length="none", rcond=1e-2)
    torch.testing.assert_close(apart, torch.linalg.solve(gram, weights))
    assert (merged > 0).all()
    assert merged.norm() < apart.norm() / 100


def by_both(rows: Tensor, weights: Tensor, rcond: float) -> list[Tensor]:
    """ConFIG's update by compiled and by plain coefficients."""
    rule = make_rule("config", len(rows), CPU, weights=weights, rcond=rcond)
    gram = rows @ rows.T
    found = rule.coefficients(gram, torch.float64), native_coefficients(gram, rule, torch.float64)
    return [c @ rows for c in found]


@pytest.mark.parametrize("rcond", [1e-5, 1e-3])
@pytest.mark.parametrize("share", [0.45, 1.1])
def test_rcond_cuts_the_eigenvalues_that_the_reference_cuts(share: float, rcond: float) -> None:
    """Under uneven weights the update turns where one of two near rows drops out."""
    cosine = (1 - share * rcond) / (1 + share * rcond)
    rows, weights = equiangular(2, 9, cosine), torch.tensor([1.0, 2.0])
    exact = reference.config(rows, weights, rcond=rcond)
    for update in by_both(rows, weights, rcond):
        # of two rows at sin^2 < 5 rcond, one stands for both
        assert relative_error(update, exact) <= 5 * rcond


@pytest.mark.parametrize("rcond", [1e-5, 1e-3])
@pytest.mark.parametrize("share", [0.5, 2.0])
def test_weights_count_as_unsupported_where_the_reference_says_so(share: float, rcond: float) -> None:
    """Opposed rows support the difference of their weights, however small beside these, down to rcond."""
    row = torch.randn(9, dtype=torch.float64)
    rows = torch.stack([row, -0.25 * row])
    weights = torch.tensor([1 + share * rcond, 1 - share * rcond], dtype=torch.float64)
    exact = reference.config(rows, weights, rcond=rcond)
    assert bool(exact.any()) == (share > 1)
    for update in by_both(rows, weights, rcond):
        if share > 1:
            assert relative_error(update, exact) <= 1e-14 / rcond
        else:
            assert not update.any()


@pytest.mark.parametrize("spread", [1, 2])
def test_nan_in_a_gram_matrix_stays_in_its_problem(spread: int) -> None:
    rows = torch.randn(3, 4, 9, dtype=torch.float64)
    gram = rows @ rows.mT
    gram[1, 2, 2] = torch.nan
    for method in RULES:
        rule = make_rule(method, 4, CPU)
        both = [rule.coefficients(gram, torch.float32)]
        if rule.native is not None:
            both.append(native_coefficients(gram, rule, torch.float32))
        for c in both:
            assert torch.isnan(c[1]).all()
            assert torch.isfinite(c[[0, 2]]).all()


def test_a_setting_that_a_method_does_not_have() -> None:
    with pytest.raises(TypeError, match="alpha: got it for 'imtlg', which takes rcond"):
        ops.coefficients(torch.eye(2).double(), "imtlg", alpha=2.0)


def test_refusals() -> None:
    with pytest.raises(TypeError, match="gram: got a list, want a tensor"):
        ops.coefficients([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gram: got shape \(2, 3\), want \(m, m\) or \(B, m, m\)"):
        ops.coefficients(torch.ones(2, 3).double())
    with pytest.raises(TypeError, match=r"gram: got dtype torch.float32, want torch.float64"):
        ops.coefficients(torch.eye(2))
    with pytest.raises(ValueError, match=r"weights: got shape \(3,\), want \(2,\)"):
        ops.coefficients(torch.eye(2).double(), weights=torch.ones(3))
    with pytest.raises(ValueError, match=r"c: got shape \(3,\), want \(2,\)"):
        ops.combine(torch.eye(2), torch.ones(3))
    with pytest.raises(TypeError, match=r"dtype: got torch\.int64, want one of float32"):
        ops.coefficients(torch.eye(2).double(), dtype=torch.int64)

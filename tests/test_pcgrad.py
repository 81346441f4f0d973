"""PCGrad and PPCGrad for PyTorch against the float64 oracle, and around an optimizer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from inputs import conflicting, projected, relative_error, rounding_bound
from pairs import some
from torch import Tensor

from fastconfig import reference
from fastconfig.pcgrad import PCGrad, PPCGrad

LIMIT = 2e-6  # of the relative error in float32


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("m", [1, 2, 3, 8, 16])
def test_project_conflicting(m: int, reduction: str, backend: str) -> None:
    n = 2003
    masks = torch.ones(m, n)
    for i in range(m):
        masks[i, 100 * i : 100 * i + 50] = 0
    order = torch.rand(m, m).argsort(-1)
    pcgrad, ppcgrad = PCGrad(reduction=reduction), PPCGrad(reduction)
    for given in (None, masks, torch.ones(m, n)):
        rows = conflicting(m, n) if given is None else conflicting(m, n) * given
        has = None if given is None else list(given)
        before = rows.clone()
        wanted = projected(rows, given, reduction, order)
        assert relative_error(pcgrad.project_conflicting(list(rows), has, order=order), wanted) <= LIMIT
        assert relative_error(pcgrad.project_conflicting(rows, has, order=order), wanted) <= LIMIT
        wanted = projected(rows, given, reduction, None)
        assert relative_error(ppcgrad.project_conflicting(list(rows), has), wanted) <= LIMIT
        assert torch.equal(rows, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype, backend: str) -> None:
    rows = conflicting(3, 500).to(dtype)
    update = PPCGrad("sum").project_conflicting(list(rows))
    assert update.dtype == dtype
    wanted = projected(rows.double(), None, "sum", None)
    assert relative_error(update, wanted) <= max(1e-12, rounding_bound(rows, wanted))


class Tasks:
    """m losses on a shared parameter, one parameter each, and one that none uses."""

    def __init__(self, m: int, half: bool = False) -> None:
        self.shared = torch.randn(7, 3, requires_grad=True)
        own = torch.float16 if half else torch.float32
        self.own = [torch.randn(4).to(own).requires_grad_() for _ in range(m)]
        self.unused = torch.ones(2, 2, requires_grad=True)
        self.ways = [torch.randn(7, 3) for _ in range(m)]

    @property
    def parameters(self) -> list[Tensor]:
        return [self.own[0], self.shared, self.unused, *self.own[1:]]

    def losses(self) -> list[Tensor]:
        return [
            self.shared * way + (own.float() ** 2).sum() * self.shared
            for way, own in zip(self.ways, self.own, strict=True)
        ]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("m", [1, 2, 4])
def test_pc_backward(m: int, reduction: str, half: bool, backend: str) -> None:
    tasks = Tasks(m, half)
    order = torch.rand(m, m).argsort(-1)
    for method, given in ((PCGrad(reduction=reduction), {"order": order}), (PPCGrad(reduction), {})):
        merged = method.pc_backward(tasks.losses(), tasks.parameters, **given)
        assert merged is not None
        packed, shapes, masks = method.pack_grad(tasks.losses(), tasks.parameters)
        assert shapes == [p.shape for p in tasks.parameters] == [piece.shape for piece in merged]
        assert [piece.dtype for piece in merged] == [p.dtype for p in tasks.parameters]
        wanted = projected(torch.stack(packed), torch.stack(masks), reduction, order if given else None)
        flat = torch.cat([piece.reshape(-1).float() for piece in merged])
        assert relative_error(flat, wanted) <= (2**-10 if half else LIMIT)
        assert not merged[2].any()
        if not half:
            again = method.project_conflicting(packed, masks, **given)
            assert relative_error(again, wanted) <= LIMIT


def test_all_kinds_of_parameters_say_what_conflicts(backend: str) -> None:
    """Gradients that conflict in float64 parameters agree in all."""
    first, second = torch.zeros(2, dtype=torch.float64), torch.zeros(2)
    parameters = [tensor.requires_grad_() for tensor in (first, second)]
    losses = [first[0] + 10 * second[0], first[1] - first[0] + 10 * second[0]]
    for method in (PCGrad(reduction="sum"), PPCGrad(reduction="sum")):
        merged = method.pc_backward(losses, parameters)
        assert merged is not None
        assert [piece.tolist() for piece in merged] == [[0, 1], [20, 0]]


def test_pack_grad() -> None:
    tasks = Tasks(2)
    grads, _, has = PPCGrad().pack_grad(tasks.losses(), tasks.parameters)
    assert [vector.shape for vector in (*grads, *has)] == [(33,)] * 4
    assert has[0].tolist() == [1.0] * 25 + [0.0] * 8
    assert has[1].tolist() == [0.0] * 4 + [1.0] * 21 + [0.0] * 4 + [1.0] * 4
    (direct,) = torch.autograd.grad(tasks.losses()[0].sum(), tasks.shared)
    assert torch.equal(grads[0][4:25], direct.reshape(-1))


def test_the_graph_is_kept_unless_it_is_not_wanted() -> None:
    tasks = Tasks(2)
    losses = tasks.losses()
    first = PPCGrad().pc_backward(losses, tasks.parameters)
    second = PPCGrad().pc_backward(losses, tasks.parameters, retain_graph=False)
    assert first is not None
    assert second is not None
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(ValueError, match=r"losses\[1\]: its graph is freed already"):
        PPCGrad().pc_backward(losses, tasks.parameters)


@pytest.mark.parametrize("method", [PCGrad, PPCGrad])
def test_around_an_optimizer(method: Any) -> None:
    tasks = Tasks(3)
    plain = torch.optim.SGD(tasks.parameters, lr=0.1)
    optimizer = method(plain, reduction="sum")
    assert optimizer.optimizer is plain
    torch.manual_seed(5)
    wanted = method(reduction="sum").pc_backward(tasks.losses(), tasks.parameters)
    before = [p.detach().clone() for p in tasks.parameters]
    optimizer.zero_grad()
    torch.manual_seed(5)  # the order
    assert optimizer.pc_backward(tasks.losses()) is None
    optimizer.step()
    for p, old, grad in zip(tasks.parameters, before, wanted, strict=True):
        assert torch.equal(p.grad, grad)
        torch.testing.assert_close(p.detach(), old - 0.1 * grad)
    optimizer.zero_grad()
    assert all(p.grad is None for p in tasks.parameters)


def test_orders() -> None:
    rows = conflicting(6, 50)
    shuffled = PCGrad(generator=torch.Generator().manual_seed(3))
    updates = [shuffled.project_conflicting(rows) for _ in range(5)]
    assert not all(torch.equal(updates[0], update) for update in updates[1:])
    again = PCGrad(generator=torch.Generator().manual_seed(3))
    assert torch.equal(again.project_conflicting(rows), updates[0])
    fixed = PCGrad("sum", shuffle=False).project_conflicting(rows)
    assert relative_error(fixed, reference.pcgrad(rows)) <= LIMIT


@pytest.mark.parametrize("method", [PCGrad, PPCGrad])
def test_errors(method: Any) -> None:
    tasks = Tasks(2)
    with pytest.raises(ValueError, match="reduction: got 'median', want 'mean' or 'sum'"):
        method("median")
    with pytest.raises(TypeError, match=r"optimizer: got 3, want a torch\.optim\.Optimizer"):
        method(3)
    with pytest.raises(TypeError, match=r"optimizer: got none, want PP?CGrad\(optimizer\)"):
        method().pc_backward(tasks.losses())
    with pytest.raises(ValueError, match="losses: got none, want at least one"):
        method().pc_backward([], tasks.parameters)
    with pytest.raises(ValueError, match=r"losses: got shape \(7, 3\), want a vector"):
        method().pc_backward(tasks.losses()[0], tasks.parameters)
    with pytest.raises(TypeError, match=r"losses\[1\]: got a float"):
        method().pc_backward([tasks.losses()[0], 1.0], tasks.parameters)
    with pytest.raises(ValueError, match="parameters: got an empty list"):
        method().pack_grad(tasks.losses(), [])
    with pytest.raises(ValueError, match="depend on none of the parameters"):
        method().pc_backward(tasks.losses(), [tasks.unused])
    with pytest.raises(ValueError, match="depend on none of the parameters"):
        method().pc_backward([torch.tensor(1.0)], tasks.parameters)
    rows = list(conflicting(2, 5))
    with pytest.raises(ValueError, match="has_grads: got 1, want 2"):
        method().project_conflicting(rows, rows[:1])
    with pytest.raises(ValueError, match=r"has_grads\[1\]: got shape \(4,\), want \(5,\)"):
        method().project_conflicting(rows, [rows[0], rows[0][:4]])
    for wrong, message in [
        ([rows[0], 1.0], r"has_grads\[1\]: got 1.0, want a tensor \(5,\)"),
        ([rows[0], (rows[0] for _ in range(2))], r"has_grads\[1\]: got a generator"),
        ([rows[0], rows[0].to_sparse()], r"has_grads\[1\]: got a sparse tensor"),
        ([rows[0], rows[0].to(torch.complex64)], r"has_grads\[1\]: got dtype torch.complex64"),
        (1.0, "has_grads: got 1.0, want a sequence of masks"),
        ({0: rows[0], 1: rows[1]}, "has_grads: got a dict"),
    ]:
        with pytest.raises(TypeError, match=message):
            method().project_conflicting(rows, wrong)
    with pytest.raises(ValueError, match=r"has_grads\[1\]: got device meta, want cpu"):
        method().project_conflicting(rows, [rows[0], rows[0].to("meta")])
    with pytest.raises(ValueError, match=r"has_grads: got shape \(2, 4\), want \(2, 5\)"):
        method().project_conflicting(rows, torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"grads: got no gradient"):
        method().project_conflicting([])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [1, 3, -1])
def test_masks_of_any_dtype_say_whether(dtype: torch.dtype, value: int) -> None:
    rows = conflicting(3, 40)
    has = torch.ones(3, 40)
    has[0, :10] = rows[0, :10] = has[2, 5:20] = rows[2, 5:20] = 0
    masks = (value * has.long()).to(dtype)
    for given in (masks, list(masks), (mask for mask in masks)):
        update = PPCGrad().project_conflicting(list(rows), given)
        wanted = projected(rows, has, "mean", None)
        assert (update - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize("method", some(["pcgrad", "ppcgrad"], quick=["pcgrad"]))
@pytest.mark.parametrize("example", some(["torch_pcgrad.py", "keras_ppcgrad.py"], quick=["torch_pcgrad.py"]))
def test_examples(example: str, method: str) -> None:
    if example.startswith("keras"):
        pytest.importorskip("tensorflow")
    script = Path(__file__).parents[1] / "examples" / example
    command = [sys.executable, str(script), "--method", method, "--steps", "120"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    lines = re.findall(r"loss (\S+) -> (\S+)", run.stdout)
    assert len(lines) == 2
    assert all(float(after) < float(before) / 2 for before, after in lines)

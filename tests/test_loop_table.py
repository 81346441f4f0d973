"""docs/training.md, "What your loop does, and what happens here": a test runs every row."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from inputs import relative_error, rows_of
from torch import Tensor, nn

import fastconfig
from fastconfig import PCGradOperator, reference

ROOT = Path(__file__).parents[1]


def network(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*(layers or (nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))).double()


def losses_of(net: nn.Module) -> list[Tensor]:
    y = net(torch.linspace(-1, 1, 24, dtype=torch.float64).view(8, 3))
    return [y[:, 0].square().mean(), (y[:, 1] - 1).square().mean()]


def flat(net: nn.Module) -> Tensor:
    return torch.cat([par.grad.reshape(-1) for par in net.parameters() if par.grad is not None])


def exact(net: nn.Module) -> Tensor:
    return reference.config(rows_of(losses_of(net), [par for par in net.parameters() if par.requires_grad]))


def iterables() -> None:
    net = network()
    values = {"a": 0, "b": 1}
    for form in (list, tuple, iter, torch.stack, lambda v: {**values, "a": v[0], "b": v[1]}.values()):
        fastconfig.backward(form(losses_of(net)), net)
        assert relative_error(flat(net), exact(net)) <= 1e-9
        net.zero_grad()


def zeroed_or_not() -> None:
    net = network()
    fastconfig.backward(losses_of(net), net)
    first = [par.grad for par in net.parameters()]
    fastconfig.backward(losses_of(net), net)
    assert all(par.grad is grad for par, grad in zip(net.parameters(), first, strict=True))
    assert relative_error(flat(net), exact(net)) <= 1e-9


def tensor_hooks() -> None:
    net, twin = network(), None
    twin = copy.deepcopy(net)
    seen: list[Tensor] = []
    par = next(net.parameters())
    par.register_hook(lambda g: seen.append(g.clone()))
    fastconfig.backward(losses_of(net), net)
    own = [torch.autograd.grad(value, next(twin.parameters()))[0] for value in losses_of(twin)[:1]]
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], own[0])


def copied() -> None:
    net, operator = network(), PCGradOperator()
    fastconfig.backward(losses_of(net), net, operator)
    wanted = flat(net)
    for other in (copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
        fastconfig.backward(losses_of(net), net, other)
        assert torch.equal(flat(net), wanted)


def compiled() -> None:
    torch.compiler.reset()
    plain = network()
    net = torch.compile(copy.deepcopy(plain), backend="aot_eager")
    with torch._functorch.config.patch(donated_buffer=False):  # type: ignore[attr-defined]
        fastconfig.backward(losses_of(net), net)
    assert relative_error(flat(net), exact(plain)) <= 1e-9


def donated(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own message: whether a graph has donated buffers is up to its compiler."""
    net = network()
    message = "This backward function was compiled with non-empty donated buffers"

    def refuse(*given: Any, **more: Any) -> Any:
        raise RuntimeError(message)

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    with pytest.raises(ValueError, match=r"donated_buffer = False before the model is compiled"):
        fastconfig.backward(losses_of(net), net)


LOOPS: dict[str, Callable[..., None] | str] = {
    "gives losses as a list, `losses.values()`, a generator or one vector": iterables,
    "calls `zero_grad()`, or does not": zeroed_or_not,
    "accumulates over batches": "test_training_loops.py::test_clipping_and_accumulation",
    "steps a fused optimizer, or L-BFGS": (
        "test_layouts.py::test_optimizers_that_read_memory_take_the_step_of_the_others"
    ),
    "scales losses for float16": "test_training_loops.py::test_training_in_float16_with_a_scaler",
    "has hooks by `register_post_accumulate_grad_hook`": (
        "test_layouts.py::test_hooks_run_once_when_all_gradients_are_there"
    ),
    "has hooks by `register_hook` on parameters": tensor_hooks,
    "freezes, ties or leaves out parameters": "test_training.py::test_frozen_tied_and_unused_parameters",
    "trains sparse embeddings": "test_kinds.py::test_every_way",
    "trains complex parameters": "test_kinds.py::test_every_way",
    "mixes dtypes (bfloat16 layers, float32 norms)": "test_kinds.py::test_every_way",
    "checkpoints with `use_reentrant=False`": (
        "test_hidden.py::test_checkpoints_that_are_part_of_the_graph_train"
    ),
    "checkpoints with `use_reentrant=True`": (
        "test_hidden.py::test_a_parameter_without_gradient_that_a_function_holds"
    ),
    "ties a weight of the trunk to a head": "test_trunks.py::test_refused",
    "wraps its optimizer, `PCGrad(optimizer)`": "test_wrapped_optimizer.py::test_schedulers_set_the_rate",
    "steps its heads by an optimizer of their own": (
        "test_wrapped_optimizer.py::test_heads_in_an_optimizer_of_their_own"
    ),
    "copies or saves an operator": copied,
    "sets a default device or dtype": "test_defaults.py::test_the_same_answers",
    "compiles the model": compiled,
    "is in DistributedDataParallel": "distributed_disguises.py::case_every_disguise",
    "is in FSDP2 (`fully_shard`)": "distributed_fsdp.py::case_steps_of_an_optimizer",
    "is in FSDP1": "distributed_disguises.py::case_what_would_train_apart_is_refused",
}


def test_the_table_has_these_rows() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table = text.split("<!-- loops:begin -->")[1].split("<!-- loops:end -->")[0]
    assert re.findall(r"^\| (.+?) \| ", table, re.MULTILINE)[2:] == list(LOOPS)


@pytest.mark.parametrize("row", LOOPS)
def test_row(row: str) -> None:
    run = LOOPS[row]
    if isinstance(run, str):
        file, _, name = run.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")
    else:
        run()


def test_buffers_that_were_donated(monkeypatch: pytest.MonkeyPatch) -> None:
    donated(monkeypatch)

"""Results of many parameters in one buffer: as good as tensors of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from inputs import in_one_call

from fastconfig import _C, ConFIG_update
from fastconfig.gradients import Gradients
from fastconfig.gradients.results import KEPT_FROM
from fastconfig.numbers import DTYPES

pytestmark = in_one_call
SHAPES = [(4, 3), None, (), (0, 5), (31,), (2, 3, 1, 7), (1, 1), (33,)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_new_results(dtype: torch.dtype) -> None:
    found: Any = _C.new_results(torch.ones(1, dtype=dtype), [s and torch.Size(s) for s in SHAPES], 1 << 20)
    assert [None if piece is None else piece.shape for piece in found] == [
        None if shape is None else torch.Size(shape) for shape in SHAPES
    ]
    pieces = [piece for piece in found if piece is not None]
    for piece in pieces:
        assert (piece.dtype, piece.stride(), piece._base) == (dtype, torch.empty(piece.shape).stride(), None)
        assert piece.isnan().all()  # as all new memory in tests
        assert piece.data_ptr() % 64 == 0
    for i, piece in enumerate(pieces):
        piece.fill_(i)
    assert all((piece == i).all() and piece._version == 1 for i, piece in enumerate(pieces))
    assert len({piece.untyped_storage().data_ptr() for piece in pieces}) == 1


def test_sizes_and_modes() -> None:
    like, shapes = torch.ones(1), [torch.Size((32,)), torch.Size((32,))]
    assert _C.new_results(like, shapes, 256) is not None
    assert _C.new_results(like, shapes, 255) is None
    with torch.device("meta"):
        made: Any = _C.new_results(like, shapes, 256)
    assert made[0].device.type == "cpu"
    with pytest.raises(TypeError, match="new_results takes"):
        _C.new_results(like, tuple(shapes), 256)  # type: ignore[arg-type]


def test_small_updates_share_and_large_ones_do_not() -> None:
    for n, shared in ((1000, True), (KEPT_FROM // 8, False)):
        rows = [[torch.randn(n), torch.randn(n)] for _ in range(3)]
        update: Any = ConFIG_update(rows)
        assert (len({piece.untyped_storage().data_ptr() for piece in update}) == 1) == shared
        apart: Any = Gradients(rows).new_update(apart=True)
        assert len({piece.untyped_storage().data_ptr() for piece in apart}) == 2


def test_what_the_registered_operator_gives_does_not_alias() -> None:
    import fastconfig.graph  # noqa: F401  # registers it

    tensors = [torch.randn(5) for _ in range(6)]
    rest = "parameters", "config", "projection", 0, None, False, None
    pieces = torch.ops.fastconfig.merge(tensors, 3, *rest)
    assert len({piece.untyped_storage().data_ptr() for piece in pieces}) == 2

"""M-ConFIG: the momentum operators of ``conflictfree.momentum_operator``, with a state that can be saved.

    operator = PseudoMomentumOperator(num_vectors=len(losses))
    for step, batch in enumerate(data):
        index = step % len(losses)
        optimizer.zero_grad()
        losses[index](network, batch).backward()  # one backward pass a step, whatever the number of losses
        operator.update_gradient(network, index, get_gradient_vector(network))
        optimizer.step()

Names, parameters and defaults are conflictfree's; what raises there by mistake works here as documented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Optional, Union  # also taken from here by star import

import torch
from torch import Tensor

from .backends import choose
from .backends.momentum import momentum_by_steps
from .checks import abstract, check_group, check_operator, check_recorder, fraction, whole
from .compiling import outside_the_graph
from .config_update import losses_of, merge
from .grad_operator import *  # noqa: F403  # as conflictfree's module offers them
from .grad_operator import ConFIGOperator, GradientOperator, rule_of
from .grad_operator import __all__ as _operator_all
from .gradients import Gradients, Update
from .gradients.pairs import in_dtype
from .gradients.shards import Grouped, Shards, reshard
from .loss_recorder import LatestLossRecorder, LossRecorder, MomentumLossRecorder
from .momentum.adoption import Adopting, is_theirs
from .momentum.clock import Clock
from .momentum.indexes import as_rows, index_list, is_one
from .momentum.precision import at_precision, merged_by
from .momentum.state import EPSILON, Momenta
from .network import parameters_of
from .ranks.replicas import learned
from .utils import *  # noqa: F403
from .utils import __all__ as _utils_all
from .utils import write_gradient

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "LatestLossRecorder",
    "LossRecorder",
    "MomentumLossRecorder",
    "MomentumOperator",
    "Optional",
    "PseudoMomentumOperator",
    "SeparateMomentumOperator",
    "Sequence",
    "Union",
    *_operator_all,
    *_utils_all,
]

CONFIG = ConFIGOperator()


class MomentumOperator(Grouped):
    """Base class of momentum operators. A subclass overrides :meth:`calculate_gradient`.

    Args:
        num_vectors: number of gradients, m.
        beta_1: moving average constant of the first momenta, 0 <= beta_1 < 1.
        beta_2: moving average constant of the second, 0 <= beta_2 < 1.
        gradient_operator: merges the bias-corrected momenta. One that a user wrote is called with their
            (m, N) tensor.
        loss_recorder: needed where losses are given; remembers those that a step does not compute.
        dtype: of the state, torch.float32 or torch.float64; the first gradients' by default, float32 for
            half precision.
        num_vector: num_vectors, as conflictfree's documentation calls it.
        process_group: ranks of which each gives its part of every gradient, keeps that part of the state, and
            gets that part of the update; the gradient operator's by default. DTensors need none.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """

    def __init__(
        self,
        num_vectors: int | None = None,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        gradient_operator: GradientOperator = CONFIG,
        loss_recorder: LossRecorder | None = None,
        *,
        dtype: torch.dtype | None = None,
        num_vector: int | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        if (num_vectors is None) == (num_vector is None):
            got = "none" if num_vectors is None else "num_vectors and num_vector"
            raise TypeError(f"num_vectors: got {got}, want the number of gradients once")
        num_vectors = num_vector if num_vectors is None else num_vectors
        num_vectors = whole("num_vectors", num_vectors)
        if num_vectors < 1:
            raise ValueError(f"num_vectors: got {num_vectors}, want at least 1")
        fraction("beta_1", beta_1)
        fraction("beta_2", beta_2)
        check_operator(gradient_operator, "gradient_operator")
        check_group(process_group)
        if dtype not in (None, torch.float32, torch.float64):
            # below, the moving averages stop moving: 1 - beta_2 is less than half precision resolves
            raise TypeError(f"dtype: got {dtype!r}, want torch.float32 or torch.float64")
        check_recorder(loss_recorder)
        if loss_recorder is not None and loss_recorder.num_losses != num_vectors:
            raise ValueError(
                f"loss_recorder: got one for {loss_recorder.num_losses} losses, want {num_vectors}"
            )
        self.num_vectors = num_vectors
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.gradient_operator = gradient_operator
        self.loss_recorder = loss_recorder
        self.dtype = dtype
        inner = getattr(gradient_operator, "process_group", None)
        self.process_group = inner if process_group is None else process_group

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({"dtype": None, "process_group": None} | state)  # which conflictfree's have not

    def calculate_gradient(self, indexes: Any, grads: Any, losses: Any = None) -> Update:
        """Take in some of the gradients and merge the momenta.

        Args:
            indexes: which gradients come: an integer, or a sequence of k different ones.
            grads: for one index its gradient: a vector (N,) or a sequence of per-parameter tensors (None
                counts as zeros); for a sequence of indexes k of them, or a tensor (k, N). float32, float64,
                bfloat16 or float16; any strides; never modified.
            losses: their losses, one or k, for operators that use them; ``loss_recorder`` keeps them.

        Returns:
            The update in the form, dtype and device of the gradients; zeros until every gradient has come.

        Raises:
            NotImplementedError: always; a subclass overrides it.
        """
        raise abstract(self, "calculate_gradient")

    def update_gradient(
        self,
        network: torch.nn.Module,
        indexes: Any,
        grads: Any,
        losses: Any = None,
        *,
        none_grad_mode: Literal["zero", "skip"] = "skip",
        zero_grad_mode: Literal["skip", "pad_zero", "pad_value"] = "pad_value",
    ) -> None:
        """Write :meth:`calculate_gradient`'s result to the network's ``.grad``.

        Args:
            network: the network.
            indexes, grads, losses: as in :meth:`calculate_gradient`; per-parameter sequences follow
                ``network.parameters()``, and a parameter that no gradient had so far is left alone.
            none_grad_mode, zero_grad_mode: as in :func:`fastconfig.utils.apply_gradient_vector`; use
                "zero" where the vectors were taken with "zero".

        Raises:
            TypeError, ValueError: as :meth:`calculate_gradient`; or if the result does not fit the network:
                ``.grad`` is as before then.
        """
        update = self.calculate_gradient(indexes, grads, losses)
        write_gradient(network, update, none_grad_mode, zero_grad_mode)

    def _preprocess_gradients_losses(
        self, indexes: Any, grads: Any, losses: Any = None
    ) -> tuple[list[int], list[Any], list[Any] | None]:
        """For subclasses: indexes and gradients as lists of one length, and all losses as recorded."""
        chosen, rows = self._checked(indexes, grads, losses)
        return chosen, list(rows.rows), self._recorded(chosen, losses)

    def _recorded(self, chosen: list[int], losses: Any) -> list[Any] | None:
        if losses is None or self.loss_recorder is None:
            return None
        return self.loss_recorder.record_loss(chosen, losses)

    def _checked(self, indexes: Any, grads: Any, losses: Any) -> tuple[list[int], Gradients]:
        """Which gradients come, and these, checked."""
        chosen = index_list(indexes, self.num_vectors, "indexes")
        rows = Gradients(as_rows(grads, is_one(indexes)), group=self.process_group)
        rows.check_one_kind("an operator with a state")
        if rows.batch is not None:
            raise ValueError(f"grads: got shape {tuple(grads.shape)}, want (N,) or (k, N)")
        if rows.m != len(chosen):
            raise ValueError(f"grads: got {rows.m} gradients, want {len(chosen)}: one an index")
        if losses is not None and self.loss_recorder is None:
            raise ValueError("losses: got some without a loss_recorder, want one given to the operator")
        return chosen, rows


class _Resumable(Adopting, MomentumOperator):
    """An operator with a state."""

    @cached_property
    def _momenta(self) -> Momenta:
        clock = Clock(self.num_vectors, self.beta_1, self.beta_2)
        return Momenta(self.num_vectors, self.dtype, clock, self._other_vectors())

    def _other_vectors(self) -> list[str]:
        """Names of the vectors that the state has beside the momenta."""
        raise NotImplementedError

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._adopt()

    @property
    def all_initialized(self) -> bool:
        """Whether every gradient has come, so that updates are not zeros any more."""
        self._adopt()
        return self._momenta.clock.complete

    @all_initialized.setter
    def all_initialized(self, value: bool) -> None:
        vars(self)["all_initialized"] = value  # as code written for conflictfree restores its state

    def state_dict(self) -> dict[str, Any]:
        """All that a step changes, for ``torch.save``: plain containers, numbers and tensors.

        The tensors are the state's own, as those of a torch optimizer; DTensors where the gradients are, so
        that torch.distributed.checkpoint can bring them to another number of ranks. With ``process_group``
        they are this rank's parts, to be saved by every rank for itself. Waits for the device.
        """
        self._adopt()
        state = self._momenta.state_dict()
        if self.loss_recorder is not None:
            state["loss_recorder"] = self.loss_recorder.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, or from ``vars()`` of conflictfree's operator; tensors are copied.

        They follow the next gradient to its device; their dtype stays, unless ``dtype`` was given.

        Raises:
            ValueError: if it does not fit the operator, or what the operator holds; nothing is changed then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: got a {type(state).__name__}, want what state_dict() gave")
        if is_theirs(state):
            state = self._adopted(state)
        group = self.process_group
        self._momenta.check_state(state, None if group is None else Shards(group))
        recorder = self.loss_recorder
        if (recorder is None) != ("loss_recorder" not in state):
            got, wanted = ("one", "none") if recorder is None else ("none", "one")
            raise ValueError(f"state: got {got} for loss_recorder, want {wanted}, as the operator has")
        if recorder is not None:
            recorder.load_state_dict(state["loss_recorder"])
        self._momenta.load_state_dict(state)

    def allocate(self, like: torch.nn.Module | Tensor | Sequence[Tensor | None]) -> None:
        """Make room for the state now, in zeros, instead of when gradients come.

        For torch.distributed.checkpoint, which loads into the tensors that are there.

        Args:
            like: a network, for gradients as :func:`fastconfig.backward` takes them, or as
                :func:`fastconfig.distributed.backward` does if it is in DistributedDataParallel; or a vector
                (N,) or a sequence of per-parameter tensors as gradients will come.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is wanted; the state is as before.
        """
        if isinstance(like, torch.nn.parallel.DistributedDataParallel):
            from .ranks.exchange import Exchange

            parameters = [par for par in learned(like) if par.requires_grad]
            like = Exchange(parameters, like.process_group).like()
        if isinstance(like, torch.nn.Module):
            reshard(like)
            like = [par for par in parameters_of(like) if par.requires_grad]
        one: Any = [like]
        rows = Gradients(one, "like", self.process_group)
        self._momenta.check(rows)
        self._momenta.allocate(rows)

    def _take(
        self, indexes: Any, grads: Any, losses: Any
    ) -> tuple[list[int], Gradients, list[list[Tensor | None]], list[Any] | None]:
        """Indexes, gradients, these as flat segments, and all losses; the state is ready for the step."""
        if is_theirs(vars(self)):
            self._adopt()
        chosen, rows = self._checked(indexes, grads, losses)
        self._momenta.check(rows)
        losses = self._recorded(chosen, losses)
        return chosen, rows, self._momenta.take(rows, chosen), losses


class PseudoMomentumOperator(_Resumable):
    """M-ConFIG (Liu, Chu and Thuerey 2024, arXiv:2408.11104, algorithm 1): the operator to use.

    Momenta m_i <- beta_1 m_i + (1 - beta_1) g_i of the gradients that come are merged to u after their bias
    correction; the second moment is estimated from what u would have taken for a gradient, and the update is
    u / (sqrt(second) + 1e-8). Use an optimizer without momentum of its own, such as SGD.

    The state is m + 2 vectors. A gradient with NaN or Inf stays in it, as in any moving average.

    Args, errors: as :class:`MomentumOperator`.

    Examples:
        >>> operator = PseudoMomentumOperator(num_vectors=len(losses))
        >>> update = operator.calculate_gradient(index, get_gradient_vector(network))
    """

    def _other_vectors(self) -> list[str]:
        return ["second", "fake"]

    def calculate_gradient(self, indexes: Any, grads: Any, losses: Any = None) -> Update:
        """Take in some of the gradients and merge the momenta; arguments, result: see the base class.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is wanted; the state is as before.
        """
        if torch.compiler.is_compiling():
            return outside_the_graph(self.calculate_gradient, indexes, grads, losses)
        chosen, rows, flat, losses = self._take(indexes, grads, losses)
        state, dtype = self._momenta, rows.dtype
        momenta = state.gradients
        step = state.step(flat, chosen, dtype)
        backend = choose(momenta)
        if not state.clock.complete:
            backend.accumulate(step)
            return momenta.as_given(state.new_update(dtype, zeros=True))
        rule = rule_of(self.gradient_operator, momenta)
        if rule is None:
            momenta.check_whole()
        out = state.new_update(dtype)
        if rule is not None:
            rule = at_precision(rule, dtype, momenta.dtype)
            if rule.native is not None:
                backend.momentum_update(step, rule, out)
            else:
                momentum_by_steps(backend, step, rule, out, losses_of(rule, losses, momenta))
            state.keep(step)
            return momenta.as_given(out)
        backend.accumulate(step)
        with torch.no_grad():
            decayed = state.clock.decayed(momenta.device)[:-2, None].to(momenta.device)
            merged = merged_by(self.gradient_operator, momenta.stacked().div_(decayed), dtype, losses)
            backend.rescale(step, state.ordered(momenta.restored(merged)), out)
        return out


class SeparateMomentumOperator(_Resumable):
    """Momenta that are each rescaled by their own second moment before they are merged.

    conflictfree's authors found it worse than :class:`PseudoMomentumOperator`. The state is 3 m vectors: the
    momenta, their second moments, and the rescaled momenta, which change with their own gradient only.

    Args, errors: as :class:`MomentumOperator`.
    """

    def _other_vectors(self) -> list[str]:
        return [f"{name}_{i}" for name in ("second", "rescaled") for i in range(self.num_vectors)]

    def _adopted(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        raise ValueError("state: got that of conflictfree's SeparateMomentumOperator, want this package's")

    @torch.no_grad()
    def calculate_gradient(self, indexes: Any, grads: Any, losses: Any = None) -> Update:
        """Take in some of the gradients and merge the rescaled momenta; see the base class.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is wanted; the state is as before.
        """
        if torch.compiler.is_compiling():
            return outside_the_graph(self.calculate_gradient, indexes, grads, losses)
        chosen, rows, flat, losses = self._take(indexes, grads, losses)
        state = self._momenta
        first = state.clock.decayed(rows.device)
        second = state.clock.decayed_second(rows.device)
        for k, i in enumerate(chosen):
            rescaled, square = state.flat(f"rescaled_{i}"), state.flat(f"second_{i}")
            for momentum, s, z, column in zip(state.flat_row(i), square, rescaled, flat, strict=True):
                if momentum is not None:
                    self._rescale(momentum, s, z, column[k], first[i], second[i])
        if not state.clock.complete:
            return state.gradients.as_given(state.new_update(rows.dtype, zeros=True))
        merged = self._merge([state.others[f"rescaled_{i}"] for i in range(state.m)], rows.dtype, losses)
        if isinstance(merged, Tensor):
            return in_dtype(merged, rows.dtype)
        return [None if piece is None else in_dtype(piece, rows.dtype) for piece in merged]

    def _rescale(
        self, momentum: Tensor, square: Tensor, rescaled: Tensor, gradient: Tensor | None, *decayed: Tensor
    ) -> None:
        """Both moments with a gradient, then their corrected ratio; all in place."""
        first, second = (factor.to(momentum) for factor in decayed)
        if gradient is None:
            momentum.mul_(self.beta_1)
            square.mul_(self.beta_2)
        else:
            gradient = gradient.to(momentum.dtype)
            momentum.lerp_(gradient, 1 - self.beta_1)
            square.mul_(self.beta_2).addcmul_(gradient, gradient, value=1 - self.beta_2)
        torch.div(square, second, out=rescaled).sqrt_().add_(EPSILON).mul_(first)
        torch.div(momentum, rescaled, out=rescaled)

    def _merge(self, rows: list[list[Tensor | None]], given: torch.dtype, losses: list[Any] | None) -> Update:
        rescaled = self._momenta.as_gradients(rows)
        rule = rule_of(self.gradient_operator, rescaled)
        if rule is not None:
            rule = at_precision(rule, given, rescaled.dtype)
            return merge(rescaled, rule, losses=losses_of(rule, losses, rescaled))
        return rescaled.restored(merged_by(self.gradient_operator, rescaled.stacked(), given, losses))

"""Base of the momentum operators: checked steps, and a state that can be saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..checks import abstract, check_group, check_operator, check_recorder, fraction, whole
from ..grad_operator import ConFIGOperator, GradientOperator
from ..gradients import Gradients, Update
from ..gradients.shards import Grouped, Shards, reshard
from ..loss_recorder import LossRecorder
from ..methods.base import Rule
from ..methods.groups import Group, GroupsLike, among, checked_groups, groups_of, partition
from ..methods.operator import check_grouped
from ..methods.watched import check_monitor, watched
from ..network import checked_network, parameters_of
from ..ranks.replicas import learned
from ..utils import write_gradient
from .adoption import Adopting, is_theirs
from .clock import Clock
from .indexes import as_rows, index_list, is_one
from .precision import at_precision
from .state import Momenta

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

CONFIG = ConFIGOperator()


class MomentumOperator(Grouped):
    """Base class of momentum operators. A subclass overrides :meth:`calculate_gradient`.

    Args:
        num_vectors: number of gradients, m.
        beta_1: decay of the first momenta, 0 <= beta_1 < 1.
        beta_2: decay of the second moment, 0 <= beta_2 < 1.
        gradient_operator: merges the bias-corrected momenta; ConFIG by default. An operator of your own gets
            them as one (m, N) tensor.
        loss_recorder: remembers the losses that a step does not compute; needed if you pass losses.
        dtype: of the state, torch.float32 or torch.float64; by default that of the first gradient, and
            float32 for half precision.
        num_vector: another name of num_vectors, from conflictfree's documentation.
        process_group: for gradients in plain tensors that are spread over ranks. Each rank passes its part,
            keeps that part of the state and gets that part of the update. By default the gradient operator's
            group. DTensors need none.

    Attributes:
        monitor: a :class:`fastconfig.monitor.Monitor` that is told of every step, or None.

    Raises:
        TypeError, ValueError: for a wrong argument, which the message names.

    Examples:
        >>> fastconfig.MomentumOperator(3)
        MomentumOperator(num_vectors=3)
    """

    _groups: Any = None
    monitor: Any = None

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
                f"loss_recorder: got a recorder of {loss_recorder.num_losses} losses, want {num_vectors}"
            )
        self.num_vectors = num_vectors
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.gradient_operator = gradient_operator
        self.loss_recorder = loss_recorder
        self.dtype = dtype
        inner = getattr(gradient_operator, "process_group", None)
        self.process_group = inner if process_group is None else process_group

    @property
    def groups(self) -> GroupsLike:
        """Groups of parameters, as :attr:`fastconfig.GradientOperator.groups`; by default its operator's."""
        return getattr(self.gradient_operator, "_groups", None) if self._groups is None else self._groups

    @groups.setter
    def groups(self, groups: GroupsLike) -> None:
        if groups is not None and not isinstance(self, Resumable):
            kind = type(self).__name__
            raise TypeError(f"groups: got some for a {kind}, want them on its gradient_operator: it merges")
        self._groups = checked_groups(groups)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({"dtype": None, "process_group": None} | state)  # which conflictfree's have not

    def calculate_gradient(self, indexes: Any, grads: Any, losses: Any = None) -> Update:
        """Update the momenta of some losses, then merge all momenta.

        Args:
            indexes: which losses the gradients belong to: an integer, or a sequence of k different ones.
            grads: for one index a gradient: a vector (N,), or a sequence of per-parameter tensors (None
                counts as zeros). For a sequence of indexes k gradients, or a tensor (k, N). float32, float64,
                bfloat16 or float16; any strides; never modified.
            losses: one loss or k, for operators that use them; ``loss_recorder`` keeps them.

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
        """Call :meth:`calculate_gradient` and write the result to the network's ``.grad``.

        Args:
            network: the network.
            indexes, grads, losses: as in :meth:`calculate_gradient`; per-parameter sequences follow
                ``network.parameters()``; a parameter without any gradient so far is left alone.
            none_grad_mode, zero_grad_mode: as in :func:`fastconfig.utils.apply_gradient_vector`; use
                "zero" if the vectors were made with "zero".

        Raises:
            TypeError, ValueError: as :meth:`calculate_gradient`, and if the result does not fit the network;
                ``.grad`` is unchanged then.
        """
        groups = None
        if self.groups is not None:
            groups = partition(self, parameters_of(checked_network(network)), network)
        with among(groups):
            update = self.calculate_gradient(indexes, grads, losses)
        write_gradient(network, update, none_grad_mode, zero_grad_mode)

    def _preprocess_gradients_losses(
        self, indexes: Any, grads: Any, losses: Any = None
    ) -> tuple[list[int], list[Any], list[Any] | None]:
        """For subclasses: indexes and gradients as lists of one length, and all losses as recorded."""
        chosen, rows = self._checked(indexes, grads, losses)
        return chosen, list(rows.rows), self._recorded(chosen, losses)

    def _grouped(self, rows: Gradients) -> list[Group] | None:
        """The groups of the parameters that gradients belong to; None without groups.

        Raises:
            TypeError, ValueError: where the groups need what is not given.
        """
        if self.groups is None:
            return None
        if rows.form != "parameters":
            raise ValueError("grads: got vectors for an operator with groups, want per-parameter tensors")
        check_grouped(self.gradient_operator)
        return groups_of(self, len(rows.shapes))

    def _recorded(self, chosen: list[int], losses: Any) -> list[Any] | None:
        if losses is None or self.loss_recorder is None:
            return None
        return self.loss_recorder.record_loss(chosen, losses)

    def _checked(self, indexes: Any, grads: Any, losses: Any) -> tuple[list[int], Gradients]:
        """Indexes and gradients, checked."""
        chosen = index_list(indexes, self.num_vectors, "indexes")
        rows = Gradients(as_rows(grads, is_one(indexes)), group=self.process_group)
        rows.check_one_kind("an operator with a state")
        if rows.batch is not None:
            raise ValueError(f"grads: got shape {tuple(grads.shape)}, want (N,) or (k, N)")
        if rows.m != len(chosen):
            raise ValueError(f"grads: got {rows.m} gradients, want {len(chosen)}: one an index")
        if losses is not None and self.loss_recorder is None:
            raise ValueError("losses: got losses, but the operator has no loss_recorder")
        return chosen, rows


class Resumable(Adopting, MomentumOperator):
    """An operator with a state."""

    @cached_property
    def _momenta(self) -> Momenta:
        clock = Clock(self.num_vectors, self.beta_1, self.beta_2)
        return Momenta(self.num_vectors, self.dtype, clock, self._other_vectors())

    def _other_vectors(self) -> list[str]:
        """Names of the vectors that the state has besides the momenta."""
        raise NotImplementedError

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._adopt()

    @property
    def all_initialized(self) -> bool:
        """Whether every loss has had a gradient, so that updates are no longer zero."""
        self._adopt()
        return self._momenta.clock.complete

    @all_initialized.setter
    def all_initialized(self, value: bool) -> None:
        vars(self)["all_initialized"] = value  # as code written for conflictfree restores its state

    def state_dict(self) -> dict[str, Any]:
        """The state for ``torch.save``: plain containers, numbers and tensors.

        As in torch's optimizers the tensors are not copied. They are DTensors if the gradients are, so that
        torch.distributed.checkpoint can load them on another number of ranks. With ``process_group`` they are
        this rank's parts, and every rank saves its own. Waits for the device.
        """
        self._adopt()
        state = self._momenta.state_dict()
        if self.loss_recorder is not None:
            state["loss_recorder"] = self.loss_recorder.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a :meth:`state_dict`, or ``vars()`` of conflictfree's operator; tensors are copied.

        They move to the device of the next gradient. Their dtype stays, unless ``dtype`` was given.

        Raises:
            ValueError: if the state does not fit the operator; nothing is changed then.
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
        """Allocate the state now, as zeros, and not at the first gradients.

        torch.distributed.checkpoint needs this, because it loads into existing tensors.

        Args:
            like: the network that :func:`fastconfig.backward` will be called with; or a vector (N,), or a
                sequence of per-parameter tensors, in the form of the gradients to come.

        Raises:
            TypeError, ValueError: for a wrong argument, which the message names; the state is as before.
        """
        if isinstance(like, torch.nn.parallel.DistributedDataParallel):
            from ..ranks.exchange import Exchange

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
    ) -> tuple[list[int], Gradients, list[list[Tensor | None]], list[Any] | None, list[Group] | None]:
        """Prepare a step: indexes, gradients, their flat segments, all losses, and the groups if any."""
        if is_theirs(vars(self)):
            self._adopt()
        if self.monitor is not None:
            check_monitor(self.monitor)
            self.monitor.check(self.num_vectors)
        chosen, rows = self._checked(indexes, grads, losses)
        groups = self._grouped(rows)
        self._momenta.check(rows)
        losses = self._recorded(chosen, losses)
        return chosen, rows, self._momenta.take(rows, chosen), losses, groups

    def _prepared(self, rule: Rule, given: torch.dtype, grads: Gradients, losses: Any) -> Rule:
        """The rule for momenta of gradients of dtype ``given``; it tells the monitor."""
        return watched(at_precision(rule, given, grads.dtype), self.monitor, losses)

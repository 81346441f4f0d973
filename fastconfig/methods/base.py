"""A method: how the coefficients of the merged gradient follow from the Gram matrix.

Everything is plain torch float64, batched (leading dimensions of the Gram matrix), and free of host
synchronisation on a device, so that it may run inside a CUDA graph. A method works on C = D^-1 G D^-1 and on
coefficients of the *unit* gradients, so that row norms from 1e-30 to 1e30 meet no overflow; the division by d
comes last.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cache, cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import abstract, as_tensor, got
from ..numbers import DTYPES, capturing, cutoff, sent
from ..showing import Shown
from ..transforms import refuse_transforms

try:
    from .. import _C
except ImportError:  # not built: torch's own operations do the same, more slowly
    _C = None  # type: ignore[assignment]

LENGTHS = (  # in the order of enum Length in csrc/problem.hpp
    "projection",
    "minimum",
    "maximum",
    "harmonic",
    "arithmetic",
    "geometric",
    "specific",
    "none",  # the direction pinv(units) w as it is: a user's own length model scales it
)
_MADE = ("native_rule", "native_address", "cutoffs", "_placed")  # about this very object


class Rule(Shown):
    """How coefficients follow from a Gram matrix: a method with its settings, which never change.

    A method of your own is a subclass with :meth:`unit_coefficients`; every backend, operator and loop serves
    it then. :class:`fastconfig.GramOperator` makes an operator of it.

    Args:
        rcond: cut-off on the eigenvalues of C relative to the largest; None takes the dtype's.

    Attributes:
        native: its name in csrc/rules.def, where compiled code has the method, too; None where it has not.
        parameters: up to four numbers of the method's own, for compiled code.
        weights, length, track_id, order, state, mean: the other settings that compiled code knows of; of no
            concern to other methods.

    Examples:
        >>> class Half(fastconfig.Rule):
        ...     def unit_coefficients(self, cosines, norms, losses, rcond):
        ...         return norms / 2
        >>> fastconfig.GramOperator(Half()).calculate_gradient(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([0.5000, 1.0000])
    """

    native: ClassVar[str | None] = None
    weighs: ClassVar[bool] = False  # whether the weights hang on nothing: G only tells of NaN and Inf
    iterates: ClassVar[bool] = True  # whether a heavy one takes hundreds of torch operations
    state_dims: ClassVar[int] = 2  # of the state of one problem
    words: ClassVar[tuple[str, str]]  # for the table in the docs: what the update is, and the paper or "–"
    rank_dtype: ClassVar[torch.dtype | None] = None  # whose cut-off is taken for gradients of any dtype
    parameters: tuple[float, ...] = ()
    oracle: ClassVar[Callable[..., Tensor]]  # the paper's formula on full rows (m, N), never through G

    rcond: float | None = None
    weights: Tensor | None = None
    length = "projection"
    track_id = 0
    order: Tensor | None = None
    state: Tensor | None = None
    mean = False

    def __init_subclass__(cls, **given: Any) -> None:
        """A subclass that computes something else has no native twin, unless it names one itself."""
        super().__init_subclass__(**given)
        for base in cls.__mro__:  # also what no Rule is may compute, mixed in
            if "native" in vars(base):
                return
            if not vars(base).keys().isdisjoint(("unit_coefficients", "coefficients")):
                cls.native = None
                return

    def __init__(self, *, rcond: float | None = None) -> None:
        self.rcond = rcond

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        """Coefficients of the unit gradients.

        Args:
            cosines: (..., m, m) float64, C = D^-1 G D^-1 with ones on the diagonal; a zero gradient has zeros
                beside its one.
            norms: (..., m) float64, of the gradients.
            losses: (..., m) float64, or None if there are none.
            rcond: cut-off on the eigenvalues of C relative to the largest.

        Returns:
            (..., m) float64; what a zero gradient gets does not count.
        """
        raise abstract(self, "unit_coefficients")

    def for_rows(self, m: int, device: torch.device) -> Rule:
        """The rule for so many gradients, whose Gram matrix is on a device, as compiled code takes it.

        Compiled code asks nothing: a rule that has no answer for some m, or that holds tensors, overrides
        this.

        Raises:
            ValueError: where there is no answer for so many.
        """
        return self

    @property
    def takes_losses(self) -> bool:
        """Whether the losses may count."""
        return self.native is None

    @property
    def unwatched(self) -> Rule:
        """The rule itself, where a monitor is told of what it gives."""
        return self

    def served_by(self, backend: Any, gram: Tensor, grads: Any, losses: Tensor | None) -> Tensor:
        """:meth:`coefficients` for a backend that has nothing faster."""
        return plain_coefficients(self, gram, grads.dtype, losses)

    @torch.no_grad()
    def coefficients(self, gram: Tensor, dtype: torch.dtype, losses: Tensor | None = None) -> Tensor:
        """Coefficients c of the merged gradient sum_i c_i g_i.

        Args:
            gram: (..., m, m) float64.
            dtype: of the gradients, which sets the rank cut-off.
            losses: (..., m), for methods that use them.

        Returns:
            (..., m) float64; all NaN for a problem with NaN or Inf on the diagonal of its Gram matrix.
        """
        norms = gram.diagonal(dim1=-2, dim2=-1).sqrt()
        inverse = torch.where(norms > 0, 1 / norms, 0)
        cosines = gram * inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
        cosines.diagonal(dim1=-2, dim2=-1).fill_(1)  # also for a zero gradient
        x = self.unit_coefficients(cosines, norms, losses, self.cutoff(dtype))
        return torch.where(norms.isfinite().all(-1, keepdim=True), x * inverse, torch.nan)

    def cutoff(self, dtype: torch.dtype) -> float:
        """The eigenvalue cut-off for gradients of this dtype."""
        return cutoff(self.rank_dtype or dtype) if self.rcond is None else self.rcond

    @cached_property
    def cutoffs(self) -> tuple[float, ...]:
        """:meth:`cutoff` of all dtypes, in their order."""
        return tuple(float(self.cutoff(dtype)) for dtype in DTYPES)

    def placed(self, setting: Tensor, device: torch.device) -> Tensor:
        """A tensor of the rule's own on a device: sent there once, not in every call, which would wait."""
        if setting.device == device:
            return setting
        kept: dict[Any, tuple[Tensor, Tensor]] = vars(self).setdefault("_placed", {})
        key = id(setting), device
        if key not in kept:
            kept[key] = setting, sent(setting, device)  # with the setting, so that no other gets its id
        return kept[key][1]

    def at_cutoff(self, rcond: float) -> Rule:
        """The same rule with another cut-off."""
        other = copy(self)
        other.rcond = rcond
        return other

    @property
    def has_settings(self) -> bool:
        """Whether ``native``, ``mean`` and ``rcond`` do not tell all of it, or there is no ``native``."""
        tensors = self.weights is not None or self.order is not None
        return self.native is None or tensors or self.length != "projection" or self.parameters != ()

    @cached_property
    def native_rule(self) -> Any:
        """The same rule for compiled code; its tensors must lie in that code's memory."""
        w, order, state = self.weights, self.order, self.state
        return _C.Rule(
            method=_C.METHODS.index(self.native),
            length=LENGTHS.index(self.length),
            track_id=self.track_id,
            mean=self.mean,
            weights=0 if w is None else w.data_ptr(),
            weights_step=0 if w is None or w.dim() == 1 else w.shape[-1],
            order=0 if order is None else order.data_ptr(),
            order_step=0 if order is None or order.dim() == 2 else order.shape[-1] ** 2,
            parameters=self.parameters,
            state=0 if state is None else state.data_ptr(),
            state_step=0 if state is None or state.dim() == self.state_dims else state.stride(0),
        )

    @cached_property
    def native_address(self) -> int:
        """Where :attr:`native_rule` lies."""
        return int(self.native_rule.address)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was made of it, which is made again for a copy.

        With tensors of its own: torch moves what goes to another process, and compiled code has the address.
        """
        state = {name: value for name, value in vars(self).items() if name not in _MADE}
        read = {name: state[name] for name in ("weights", "order") if isinstance(state.get(name), Tensor)}
        return state | {name: value.clone() for name, value in read.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if type(self) is Rule and "method" in state:  # of version 0.1, which had one class for all
            from . import RULES

            self.__class__ = RULES[state["method"]]
            state = {name: value for name, value in state.items() if name != "method"}
        vars(self).update(state)


class ByFunction(Rule):
    """A user's own function G -> c as a rule; a TorchJD ``Weighting``, too.

    Args:
        function: of a Gram matrix (m, m) float64, on the gradients' device; returns m numbers. It is called
            for each problem of a batch, and never with NaN or Inf on the diagonal: the update is NaN then.
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    @torch.no_grad()
    def coefficients(self, gram: Tensor, dtype: torch.dtype, losses: Tensor | None = None) -> Tensor:
        m = gram.shape[-1]
        finite = gram.diagonal(dim1=-2, dim2=-1).isfinite().all(-1)[..., None]
        safe = torch.where(finite[..., None], gram, torch.eye(m, dtype=gram.dtype, device=gram.device))
        c = [self._called(problem) for problem in safe.reshape(-1, m, m)]
        stacked = torch.stack(c) if c else gram.new_empty(0, m)
        return torch.where(finite, stacked.view(gram.shape[:-1]), torch.nan)

    def _called(self, gram: Tensor) -> Tensor:
        m, name = len(gram), getattr(self.function, "__name__", type(self.function).__name__)
        c = as_tensor("rule", self.function(gram), f"{m} numbers from {name}", torch.float64)
        if tuple(c.shape) != (m,):
            raise ValueError(
                f"rule: got shape {tuple(c.shape)} from {name}, want {m} real numbers, one a gradient"
            )
        return c.detach().to(gram)


def as_rule(rule: Any) -> Rule:
    """A rule as it is, or one made of a function G -> c.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(rule, Rule):
        return rule
    if isinstance(rule, type) or not callable(rule):
        raise TypeError(f"rule: got {got(rule)}, want a Rule, such as ConFIG(), or a function G -> c")
    return ByFunction(rule)


def coefficients_of(rule: Rule, gram: Tensor, dtype: torch.dtype, losses: Tensor | None = None) -> Tensor:
    """:meth:`Rule.coefficients`, by compiled code where it has the method and G is in CPU memory."""
    if gram.is_cpu and rule.native is not None and _C is not None:
        return native_coefficients(gram, rule, dtype)
    return plain_coefficients(rule, gram, dtype, losses)


def plain_coefficients(rule: Rule, gram: Tensor, dtype: torch.dtype, losses: Tensor | None = None) -> Tensor:
    """:meth:`Rule.coefficients` where there is no compiled code for G's device.

    A method that iterates, hundreds to thousands of operations on a device, is solved on the host instead, in
    microseconds, unless a CUDA graph records.
    """
    iterates = _C is not None and rule.native in _C.HEAVY and rule.iterates and not rule.weighs
    if iterates and gram.device.type not in ("cpu", "meta") and not capturing(gram.device):
        return by_host(rule, gram, dtype)
    return rule.coefficients(gram, dtype, losses)


@torch.no_grad()
def by_host(rule: Rule, gram: Tensor, dtype: torch.dtype) -> Tensor:
    """:func:`native_coefficients` of a Gram matrix and a rule on a device, whose state goes on there."""
    if gram.device.type == "cuda":
        load_solvers(gram.device)
    host = copy(rule)
    for name in ("weights", "order", "state"):
        if (value := getattr(rule, name)) is not None:
            setattr(host, name, value.to("cpu", copy=True))
    c = native_coefficients(gram.cpu(), host, dtype).to(gram.device)
    if rule.state is not None and host.state is not None:
        rule.state.copy_(host.state)
    return c


@cache
def load_solvers(device: torch.device) -> None:
    """Once: a CUDA graph that records the torch operations later could not load their libraries."""
    unit = torch.eye(2, dtype=torch.float64, device=device)
    for problems in (unit, unit.expand(2, 2, 2) @ unit):
        torch.linalg.solve_triangular(torch.linalg.cholesky_ex(problems)[0], problems, upper=False)


def native_coefficients(gram: Tensor, rule: Rule, dtype: torch.dtype) -> Tensor:
    """:meth:`Rule.coefficients` by csrc/rules.hpp, for Gram matrices and rules in CPU memory."""
    refuse_transforms("gram")
    gram = gram.contiguous()
    m = gram.shape[-1]
    rule = rule.for_rows(m, gram.device)
    c = gram.new_empty(m if gram.dim() == 2 else gram.shape[:-1])  # a third of torch.empty's time
    _C.coefficients(gram.data_ptr(), c.data_ptr(), c.numel() // m, m, rule.native_rule, rule.cutoff(dtype))
    return c

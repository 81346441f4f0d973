"""Faults of what keeps momenta: their state, its clock, what is loaded into it, recorded losses."""

# ruff: noqa: E501  # the sources' text as it is
from __future__ import annotations

from .fault import Fault

_MOMENTA = "fastconfig/momentum/state.py"
_OPERATOR = "fastconfig/momentum_operator.py"
_RECORDER = "fastconfig/loss_recorder.py"
_CLOCK = "fastconfig/momentum/clock.py"
_LOADED = ("test_loaded_states.py", "test_momentum_state.py")

FAULTS = (
    Fault(
        "clock-counts-when-asked",
        _MOMENTA,
        "            if self.clock.on_host:\n",
        "            if self.clock.counted_steps() is None:\n",
        "asking whether a device counts makes it count a step before its kernel does",
        ("test_cuda_momentum.py::test_layouts",),
    ),
    Fault(
        "load-momenta-shared",
        _MOMENTA,
        'self.rows = [_copies(local_state(row)[0]) for row in state["momenta"]]',
        'self.rows = [list(local_state(row)[0]) for row in state["momenta"]]',
        "load_state_dict goes on in the caller's momenta",
        _LOADED,
    ),
    Fault(
        "load-others-shared",
        _MOMENTA,
        "self.others = {name: _copies(local_state(state[name])[0]) for name in self.others}",
        "self.others = {name: list(local_state(state[name])[0]) for name in self.others}",
        "load_state_dict goes on in the caller's second moments",
        _LOADED,
    ),
    Fault(
        "load-gram-shared",
        _MOMENTA,
        "self._gram = None if gram is None else gram.detach().cpu().clone()",
        "self._gram = None if gram is None else gram.detach()",
        "load_state_dict goes on in the caller's Gram matrix",
        _LOADED,
    ),
    Fault(
        "load-recorder-shared",
        _RECORDER,
        'self.current_losses = _copies(state["current_losses"])',
        'self.current_losses = state["current_losses"]',
        "the recorder goes on in the caller's losses",
        _LOADED,
    ),
    Fault(
        "load-averages-shared",
        _RECORDER,
        'self.m, self.t = _copies(state["m"]), [int(n) for n in state["t"]]',
        'self.m, self.t = state["m"], state["t"]',
        "the recorder goes on in the caller's moving averages",
        _LOADED,
    ),
    Fault(
        "state-of-the-recorder-shared",
        _RECORDER,
        'return {"current_losses": list(self.current_losses)}',
        'return {"current_losses": self.current_losses}',
        "a saved state follows the recorder",
        ("test_loaded_states.py", "test_loss_recorder.py"),
    ),
    Fault(
        "recorder-correction",
        _RECORDER,
        "self.current_losses[i] = self.m[i] / (1 - beta ** self.t[i])",
        "self.current_losses[i] = self.m[i] / (1 - beta ** (self.t[i] + 1))",
        "the moving average of losses is corrected for a step too many",
        ("test_loss_recorder.py",),
    ),
    Fault(
        "recorder-keeps-the-callers-loss",
        _RECORDER,
        "self.current_losses[i] = _copy(value)  #",
        "self.current_losses[i] = value  #",
        "a loss that a captured graph writes again changes what was recorded",
        ("test_loaded_states.py",),
    ),
    Fault(
        "clock-updates",
        _CLOCK,
        "self.updates += self.complete",
        "self.updates += 1",
        "updates are counted before every gradient has come",
        ("test_momentum.py",),
    ),
    Fault(
        "clock-second",
        _CLOCK,
        "return [*first, 1 - self.beta_2**self.updates]",
        "return [*first, 1 - self.beta_2 ** sum(self.counts)]",
        "the second moment is corrected for the gradients, not for the updates",
        ("test_momentum.py",),
    ),
    Fault(
        "clock-device-updates",
        _CLOCK,
        "list(each[-2:] if self.complete else ())",
        "list(each[-2:])",
        "counters on a device count updates too early",
        ("test_momentum.py::test_counters_on_a_device",),
    ),
    Fault(
        "gram-kept-too-long",
        _MOMENTA,
        "known, self._gram = self._gram, None",
        "known = self._gram",
        "products of momenta that another operator has moved are taken for known",
        ("test_momentum.py::test_the_operator_may_change_between_steps",),
    ),
    Fault(
        "short-step-of-an-old-state",
        _MOMENTA,
        "self._vectors: list[Any] | None = None  #",
        "self._vectors: list[Any] | None = vars(self).get('_vectors')  #",
        "short steps go on in tensors that the state no longer has",
        ("test_momentum_short.py",),
    ),
    Fault(
        "gram-of-other-dtype",
        _MOMENTA,
        "tensor.dtype is not self.dtype for row in rows for tensor in row):\n            self._gram = None",
        "tensor.dtype is not self.dtype for row in rows for tensor in row):\n            self._gram = self._gram",
        "products of momenta that were rounded to another dtype are taken for known",
        _LOADED,
    ),
    Fault(
        "separate-missing-momentum",
        _OPERATOR,
        "            momentum.mul_(self.beta_1)\n            square.mul_(self.beta_2)\n",
        "            square.mul_(self.beta_2)\n",
        "SeparateMomentum's momentum does not decay for a missing gradient",
        ("test_momentum.py::test_separate_moments_of_missing_gradients",),
    ),
    Fault(
        "separate-missing-square",
        _OPERATOR,
        "            momentum.mul_(self.beta_1)\n            square.mul_(self.beta_2)\n",
        "            momentum.mul_(self.beta_1)\n",
        "SeparateMomentum's second moment does not decay for a missing gradient",
        ("test_momentum.py::test_separate_moments_of_missing_gradients",),
    ),
    Fault(
        "separate-correction",
        _OPERATOR,
        "self._rescale(momentum, s, z, column[k], first[i], second[i])",
        "self._rescale(momentum, s, z, column[k], first[i], second[k])",
        "SeparateMomentum corrects by another gradient's count",
        ("test_momentum.py::test_separate_moments",),
    ),
    Fault(
        "plain-momentum-beta",
        "fastconfig/backends/base.py",
        "row.lerp_(gradient.to(row.dtype), 1 - beta)",
        "row.lerp_(gradient.to(row.dtype), beta)",
        "moving averages of plain torch take beta for 1 - beta",
        ("test_momentum.py",),
    ),
    Fault(
        "losses-before-the-check",
        "fastconfig/momentum/base.py",
        "        self._momenta.check(rows)\n        losses = self._recorded(chosen, losses)\n",
        "        losses = self._recorded(chosen, losses)\n        self._momenta.check(rows)\n",
        "losses of gradients that are refused are recorded",
        ("test_momentum_state.py::test_losses_that_do_not_fit_change_nothing",),
    ),
)

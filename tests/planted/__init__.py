"""Small faults that are planted in the sources one at a time, and what plants them: see README.md."""

from __future__ import annotations

from . import coefficients, cuda, kernels, merging, momentum, solvers, tensors, training
from .fault import Fault

__all__ = ["ALL", "Fault"]

ALL: tuple[Fault, ...] = (
    *coefficients.FAULTS,
    *tensors.FAULTS,
    *kernels.FAULTS,
    *cuda.FAULTS,
    *merging.FAULTS,
    *momentum.FAULTS,
    *solvers.FAULTS,
    *training.FAULTS,
)

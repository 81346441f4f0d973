"""Bias corrections in Triton: what is left of 1 after beta^t, from the counts t in device memory.

``steps`` is that of fastconfig/momenta.py's Clock: m counts, the number of updates, the same again (int64).
A beta comes as the 64 bits of a double, since Triton rounds a float argument to 32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def number(bits):
    """The double with these bits."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def decayed(t, beta):
    """1 - beta^t, t >= 1."""
    return 1 - tl.exp(t.to(tl.float64) * tl.log(beta))


@triton.jit
def corrections(steps, beta, m, MP: tl.constexpr):
    """(MP,) 1 / (1 - beta^t_i); something finite beyond m."""
    i = tl.arange(0, MP)
    return 1 / decayed(tl.load(steps + i, mask=i < m, other=1), beta)

"""From losses to ``.grad`` without a flat vector: ``backward`` and ``mtl_backward``; or to their weights."""

from .step import backward, mtl_backward
from .weighting import weights

__all__ = ["backward", "mtl_backward", "weights"]

"""From losses to ``.grad`` without a flat vector: ``backward`` and ``mtl_backward``."""

from .step import backward, mtl_backward

__all__ = ["backward", "mtl_backward"]

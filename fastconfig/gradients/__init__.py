"""Gradients in all input forms: checks that explain, memory, and where shards lie."""

import sys

from . import shards
from .rows import TYPES, Gradients, GradientsLike, Segment, Update

__all__ = ["TYPES", "Gradients", "GradientsLike", "Segment", "Update"]

sys.modules["fastconfig.shards"] = shards  # where pickles of version 0.1 look

"""Eager backend: the fast PyTorch formulation of each op, forward and backward, on CPU and CUDA."""

from collections.abc import Callable

from .. import reference
from . import ssd

FUNCTIONS: dict[str, Callable] = {**reference.FUNCTIONS, "ssd_scan": ssd.ssd_scan, "ssd_step": ssd.ssd_step}

"""Backends from other packages, by their own names, where they are installed: mamba-ssm, causal-conv1d, flash-attn.

Each is taken only where NANO3_BACKEND or `backend=` names it. Each function takes what its package is made for; other
types, sizes and layouts go to the eager one.
"""

from __future__ import annotations

from . import causal_conv1d, flash_attn, mamba_ssm

__all__ = ["causal_conv1d", "flash_attn", "mamba_ssm"]

"""Numbers that the host makes for a device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def on_device(values: Sequence[int] | np.ndarray, device: torch.device) -> Tensor:
    """int64 of the same shape on `device`, where nothing waits for it: the copy reads memory that the system cannot
    move, and that PyTorch keeps until it is done."""
    host = torch.from_numpy(np.asarray(values, dtype=np.int64))
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)

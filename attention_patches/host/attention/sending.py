"""What was worked out on the CPU, on the device."""

from __future__ import annotations

import torch
from comfy.model_management import cast_to_device
from torch import Tensor


def sent(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on the device, and in the dtype, without standing still until the device has done what it has to do.

    By the host's own function, which knows the devices where that is not possible.
    """
    return cast_to_device(tensor, device, dtype)

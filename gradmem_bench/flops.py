"""Counting floating-point operations: torch's counter, and the product that it does not know."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def flop_counter() -> FlopCounterMode:
    """Counts the matrix products that are done within it: two operations for each multiplication.

    It sees those of backward passes and of custom functions. Fused attention counts as what it replaces on CUDA and as
    nothing on a CPU: count under `sdpa_kernel(SDPBackend.MATH)`, where attention is plain products.
    """
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm_})


def _addmm_(added: torch.Size, one: torch.Size, other: torch.Size, out_shape: torch.Size, **_: Any) -> int:
    return 2 * one[0] * one[1] * other[1]

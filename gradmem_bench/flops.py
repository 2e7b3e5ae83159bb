"""Counting floating-point operations: torch's counter, with the product it does not know, and without its hooks."""

from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def flop_counter() -> FlopCounterMode:
    """Counts the matrix products that are done within it: two operations for each multiplication.

    It sees those of backward passes and of custom functions. Fused attention counts as what it replaces on CUDA and as
    nothing on a CPU: count under `sdpa_kernel(SDPBackend.MATH)`, where attention is plain products.
    """
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm_})
    counter.mod_tracker = _NoModules()
    return counter


class _NoModules(nullcontext):
    """In place of the hooks that tell modules apart: they fail on a view of a parameter that is made under no_grad, and
    in a layer that is run again inside a gradient; only the total is of use here."""

    parents = frozenset({"Global"})


def _addmm_(added: torch.Size, one: torch.Size, other: torch.Size, out_shape: torch.Size, **_: Any) -> int:
    return 2 * one[0] * one[1] * other[1]

"""Where a training or an evaluation is computed, and how precisely."""

from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor


def round_products(dtype: str) -> None:
    """Whether a GPU rounds the factors of float32 products from here on: with `tf32` alone."""
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"


def in_force(device: str) -> tuple[torch.dtype | None, bool]:
    """The dtype of autocast, `None` without it; and whether products are rounded, by it or by `round_products`."""
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return autocast, autocast is not None or torch.get_float32_matmul_precision() != "highest"


def alike(found: Iterable[Tensor], expected: Iterable[Tensor], tolerance: float, scale: float) -> bool:
    """Whether the norm of each difference is within a tolerance, relative to what is expected.

    Args:
        scale: the norm of the largest: a gradient that is nothing but rounding beside it has no relative error.
    """
    return all(
        float((ours - theirs).norm()) <= tolerance * max(float(theirs.norm()), 1e-3 * scale)
        for ours, theirs in zip(found, expected, strict=True)
    )


def accelerator_for(device: str, dtype: str, folder: Path | None) -> Accelerator:
    """The accelerator of a device, `cpu` or `cuda`; weights, memory and inner steps are float32 with each dtype.

    Args:
        dtype: `float32`; `bfloat16`, in which products of matrices and what follows them are computed; or `tf32`, in
            which a GPU rounds the factors of such products alone to 11 significant bits.
        folder: of the tensorboard log; `None` is none.
    """
    round_products(dtype)
    return Accelerator(
        # In first order WRITE's own head is a parameter without a gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        cpu=device == "cpu",
        mixed_precision="bf16" if dtype == "bfloat16" else "no",
        log_with="tensorboard" if folder else None,
        project_dir=folder,
    )

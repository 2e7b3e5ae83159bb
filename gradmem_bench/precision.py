"""Where a training or an evaluation is computed, and how precisely."""

from pathlib import Path

import torch
from accelerate import Accelerator


def accelerator_for(device: str, dtype: str, folder: Path | None) -> Accelerator:
    """The accelerator of a device, `cpu` or `cuda`; weights, memory and inner steps are float32 with each dtype.

    Args:
        dtype: `float32`; `bfloat16`, in which products of matrices and what follows them are computed; or `tf32`, in
            which a GPU rounds the factors of such products alone to 11 significant bits.
        folder: of the tensorboard log; `None` is none.
    """
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if dtype == "bfloat16" else "no",
        log_with="tensorboard" if folder else None,
        project_dir=folder,
    )

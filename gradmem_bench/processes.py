"""Processes that train one method together, as `torchrun` starts them; the first one alone evaluates and writes."""

import os
from datetime import timedelta


def count() -> int:
    """How many there are; 1 where nothing started several."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the first of them, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def meet(device: str) -> None:
    """Waits until all of them are here, which may be until the first has evaluated.

    Args:
        device: `cpu` or `cuda`, where they will train.
    """
    if count() > 1:
        from accelerate.state import PartialState

        PartialState(cpu=device == "cpu", timeout=timedelta(days=7)).wait_for_everyone()

"""Processes that train one method together, as `torchrun` starts them; the first one alone evaluates and writes."""

import os
from datetime import timedelta
from pathlib import Path


def count() -> int:
    """How many there are; 1 where nothing started several."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the first of them, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def already_made(record: Path, device: str) -> bool:
    """Whether a record is there, the same answer in each of them: all look before one can write.

    So they wait for each other, which may be until the first has evaluated what came before.

    Args:
        device: `cpu` or `cuda`, where they will train.
    """
    if count() == 1:
        return record.exists()
    from accelerate.state import PartialState

    together = PartialState(cpu=device == "cpu", timeout=timedelta(days=7))
    together.wait_for_everyone()
    made = record.exists()
    together.wait_for_everyone()
    return made

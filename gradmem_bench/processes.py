"""Processes that train one method together, as `torchrun` starts them; the first one alone evaluates and writes."""

import os


def count() -> int:
    """How many there are; 1 where nothing started several."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the first of them, or the only one."""
    return os.environ.get("RANK", "0") == "0"

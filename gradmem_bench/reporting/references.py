"""The floor and the ceiling that scores are normalised with."""

from collections.abc import Callable, Sequence
from typing import Literal

from gradmem_bench.reporting.rows import Row

RULE = "one whose states are not quantised before others, then the most training steps, then the best score"
"""How one of several is taken, for people; see `reference`."""


def reference(rows: Sequence[Row], role: Literal["floor", "ceiling"]) -> Row | None:
    """The floor or the ceiling that counts where there are several.

    States as they were computed go before narrower ones, and of those the most training steps, which is that trained
    most like the methods; what is alike in both goes by its score, so that normalised scores are the lowest.
    """
    scored = [row for row in rows if row.role == role and row.score is not None]
    return max(scored, key=lambda row: (not row.narrowed, row.trained("steps") or 0, row.score), default=None)


def normalization(floor: Row | None, ceiling: Row | None) -> Callable[[float | None], float | None]:
    """(score - floor) / (ceiling - floor), as a function of the score; `None` where that is not to be had."""
    if floor is None or ceiling is None or ceiling.score <= floor.score:
        return lambda score: None
    low, high = floor.score, ceiling.score
    return lambda score: None if score is None else (score - low) / (high - low)

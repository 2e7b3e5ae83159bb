"""Numbers that others published, as reference rows: `leaderboards/paper/*.yaml`, one figure or table a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from gradmem_bench.config import StrictModel, load_yaml, validated


class Published(StrictModel):
    """Files of other tools may say more than is shown here."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class PaperRow(Published):
    """One published number."""

    method: str
    task: str
    setting: dict[str, Any] = {}
    """What it was measured under, for example `pairs: 16`."""
    metric: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    source: str = ""
    note: str = ""


class PaperFigure(Published):
    """One figure or table of a paper."""

    figure: str
    title: str = ""
    source: str = ""
    rows: tuple[PaperRow, ...] = Field(min_length=1)


def figures_of(board: Path) -> Iterator[PaperFigure]:
    """The figures in `board/paper`, by file name; none where there is no such folder.

    Raises UserError for a file that is not YAML or lacks a key.
    """
    for path in sorted((board / "paper").glob("*.yaml")):
        yield validated(PaperFigure, load_yaml(path), str(path))


def belongs(row: PaperRow, task: str, settings: dict[str, Any]) -> bool:
    """Whether `row` is of this task, with none of the task's settings other than in `settings`."""
    return row.task == task and all(settings.get(key, value) == value for key, value in row.setting.items())

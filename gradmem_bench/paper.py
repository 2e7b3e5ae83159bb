"""Numbers that others published, as data: `leaderboards/paper/*.yaml`, one figure or table of a paper a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from gradmem_bench.config import StrictModel, load_yaml, validated
from gradmem_bench.registry import recipe_folder


class PaperRow(StrictModel):
    """One number as it was published."""

    # A page's data are JSON, which has no word for what is no number.
    model_config = ConfigDict(allow_inf_nan=False)

    method: str
    task: str
    setting: dict[str, Any] = {}
    """What tells the row from others of its method and task, for example `{pairs: 16}`."""
    metric: str
    """As in gradmem_bench/metrics.py, or the source's own."""
    value: float | None = None
    low: float | None = None
    """Value less the published deviation; the metric's bounds are kept."""
    high: float | None = None
    n: int | None = None
    """Queries that were asked in each run."""
    seeds: int | None = None
    source: str = ""
    """Where the figure's own does not say it all."""
    note: str = ""

    def belongs(self, task: str, settings: dict[str, Any]) -> bool:
        """Whether it is of this task, with none of the task's settings other than in `settings`."""
        return self.task == task and all(settings.get(key, value) == value for key, value in self.setting.items())


class PaperFigure(StrictModel):
    """The numbers of one figure or table."""

    figure: str
    title: str = ""
    source: str = ""
    rows: tuple[PaperRow, ...] = Field(min_length=1)


def figures_of(board: Path) -> Iterator[PaperFigure]:
    """The figures in `board/paper`, by file name; none where there is no such folder.

    Raises:
        UserError: a file is not YAML, lacks a key, or has one that is not known.
    """
    return map(_read, sorted((board / "paper").glob("*.yaml")))


def paper_figure(name: str) -> PaperFigure | None:
    """The figure of this name that comes with the package; `None` where nothing of that name was published."""
    path = recipe_folder("paper") / f"{name}.yaml"
    return _read(path) if path.is_file() else None


def _read(path: Path) -> PaperFigure:
    return validated(PaperFigure, load_yaml(path), str(path))

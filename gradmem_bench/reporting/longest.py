"""The longest context that a memory still holds, beside the paper's: what is published in the place of scores."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from gradmem_bench.paper import PaperFigure, PaperRow
from gradmem_bench.reproduction import Longest

if TYPE_CHECKING:
    from gradmem_bench.reporting.reproductions import Line


@dataclass(frozen=True)
class Reached:
    """The longest context at which the rows of one method and setting reach a score."""

    name: str
    setting: str
    at: float
    sizes: tuple[int | None, int | None, int | None] | None
    """By the mean, its lower and its upper bound, `None` where no length reaches it; `None` where runs are missing."""
    paper: PaperRow | None

    @property
    def cells(self) -> list[str]:
        """Method, setting, score, ours, the paper's, and the difference."""
        ours = difference = published = "–"
        if self.sizes is None:
            ours = "missing"
        else:
            mean, low, high = ("none" if size is None else str(size) for size in self.sizes)
            ours = mean if low == high else f"{mean} [{low}, {high}]"
        if self.paper is not None and self.paper.value is not None:
            published = f"{self.paper.value:g}"
            if self.sizes is not None and self.sizes[0] is not None:
                difference = f"{self.sizes[0] - self.paper.value:+g}"
        return [self.name, self.setting, f"{self.at:g}", ours, published, difference]


def reached(table: Sequence["Line"], metric: str, longest: Longest, paper: PaperFigure | None) -> list[Reached]:
    """One for each method, setting and score, in the order of the table; rows of other tasks are left out."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in table:
        if line.task in longest.sizes:
            groups.setdefault((line.name, line.told), []).append(line)
    return [
        Reached(name, told, at, _sizes(lines, metric, longest, at), _published(lines[0], metric, at, paper))
        for (name, told), lines in groups.items()
        for at in longest.at
    ]


def _sizes(
    lines: Iterable["Line"], metric: str, longest: Longest, at: float
) -> tuple[int | None, int | None, int | None] | None:
    by_size = {}
    for line in lines:
        scores = line.scores(metric)
        if len(scores) < len(line.seeds):
            return None
        by_size[longest.sizes[line.task]] = (fmean(scores.values()), *(line.interval(metric) or (None, None)))
    return tuple(
        max((size for size, found in by_size.items() if found[side] is not None and found[side] >= at), default=None)
        for side in range(3)
    )


def _published(line: "Line", metric: str, at: float, paper: PaperFigure | None) -> PaperRow | None:
    rows = () if paper is None else paper.rows
    wanted = line.name, f"longest N with {metric} of {at:g} or more", line.setting
    return next((row for row in rows if (row.method, row.metric, row.setting) == wanted), None)

"""The longest context that a memory still holds, beside the paper's: what is published in the place of scores."""

from collections.abc import Sequence
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
    missing: bool
    """Whether a length was not run, so that nothing is known."""
    size: int | None
    """By the mean; `None` where no length reaches it."""
    bounds: tuple[int | None, int | None] | None
    """By the lower and by the upper bound of each length's interval; `None` where one of those is not known."""
    most: int | None
    """The longest that is run at all, where the experiment has longer ones: who reaches it may reach more."""
    paper: PaperRow | None

    @property
    def cells(self) -> list[str]:
        """Method, setting, score, ours, the paper's, and the difference."""
        published = self.paper and self.paper.value
        bounds = ", ".join(map(self._told, self.bounds or ("–", "–")))
        ours = "missing" if self.missing else f"{self._told(self.size)} [{bounds}]"
        beside = "–" if published is None else f"{published:g}"
        unknown = published is None or self.size is None or self.size == self.most
        difference = "–" if unknown else f"{self.size - published:+g}"
        return [self.name, self.setting, f"{self.at:g}", ours, beside, difference]

    def _told(self, size: int | str | None) -> str:
        return "none" if size is None else f"≥ {size}" if size == self.most else str(size)


def reached(table: Sequence["Line"], metric: str, longest: Longest, paper: PaperFigure | None) -> list[Reached]:
    """One for each method, setting and score, in the order of the table; rows of other tasks are left out."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in table:
        if line.task in longest.sizes:
            groups.setdefault((line.name, line.told), []).append(line)
    found = []
    for (name, told), lines in groups.items():
        scores = {longest.sizes[line.task]: line.scores(metric) for line in lines}
        missing = any(len(scores[longest.sizes[line.task]]) < len(line.seeds) for line in lines)
        means = {} if missing else {size: fmean(one.values()) for size, one in scores.items()}
        intervals = {} if missing else {longest.sizes[line.task]: line.interval(metric) for line in lines}
        for at in longest.at:
            bounds = None
            if all(interval and interval[0] is not None for interval in intervals.values()):
                low, high = ({size: one[side] for size, one in intervals.items()} for side in range(2))
                bounds = _longest(low, at), _longest(high, at)
            published = _published(lines[0], metric, at, paper)
            most = max(scores) if max(scores) < max(longest.sizes.values()) else None
            found.append(Reached(name, told, at, missing, _longest(means, at), bounds, most, published))
    return found


def _longest(scores: dict[int, float], at: float) -> int | None:
    return max((size for size, score in scores.items() if score >= at), default=None)


def _published(line: "Line", metric: str, at: float, paper: PaperFigure | None) -> PaperRow | None:
    rows = () if paper is None else paper.rows
    wanted = line.paper_name, f"longest N with {metric} of {at:g} or more", line.setting
    return next((row for row in rows if (row.method, row.metric, row.setting) == wanted), None)

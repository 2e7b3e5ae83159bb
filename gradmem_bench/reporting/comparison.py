"""The tables that records make: rows in order, normalised, compared, and what must be said under them.

What may stand in one table, `groups` tells. Everything else that differs (training, machine, budget) is shown or said.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from gradmem_bench.config import Budget
from gradmem_bench.errors import UserError, did_you_mean
from gradmem_bench.reporting.baseline import against, baselines, no_baseline
from gradmem_bench.reporting.caption import caption
from gradmem_bench.reporting.examples import Examples
from gradmem_bench.reporting.groups import distinct, groups_of, refusal, titles_of
from gradmem_bench.reporting.references import normalization, reference
from gradmem_bench.reporting.rows import Row, make_rows, place
from gradmem_bench.results import ExampleRow, RunRecord, metric_title, primary_metric


@dataclass(frozen=True)
class Section:
    """Rows of one bound, and the methods that were run under another bound but not under this one."""

    heading: str
    """The bound; empty where the table has but one."""
    rows: tuple[Row, ...]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """One table: rows that may be compared, in order, and the lines under them."""

    title: str
    sections: tuple[Section, ...]
    """The ceilings, the methods under each bound, the floors."""
    floor: Row | None
    ceiling: Row | None
    baseline: str | None
    """What rows stand against, as it was asked for; `None` where it has no row here."""
    caption: tuple[str, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for section in self.sections for row in section.rows)

    @property
    def ranked_by(self) -> str:
        """The metric by which rows are ordered, normalised and compared."""
        return self.rows[0].ranked_by

    def title_of(self, metric: str) -> str:
        """What people call a metric of this table."""
        return metric_title(metric, self.rows[0].record.task)

    @property
    def versus(self) -> tuple[str, ...]:
        """The metrics on which rows stand against a baseline."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.versus))


def comparison(
    records: Iterable[RunRecord],
    by: str = "task",
    baseline: str | None = None,
    each_seed: bool = False,
    examples: Callable[[RunRecord], Sequence[ExampleRow]] | None = None,
    ancestors: Mapping[str, RunRecord] | None = None,
) -> list[Comparison]:
    """The tables that `records` make, sorted by task.

    Args:
        by: `task` makes one table a task and raises UserError for records of it that do not compare; `config` makes
            one table for each set of records that do.
        baseline: the method, or the label of the row, that the others are compared with, query by query.
        each_seed: gives every seed a row, in place of one row for all seeds of a method.
        examples: reads a record's example rows; without them every seed has its row, and there is no baseline.
        ancestors: by their folder's name, records that have no row, and that trainings of `records` went on from.
            Seeds of which each went on from one of its own are one row where it is known what those were.
    """
    if by not in ("task", "config"):
        raise UserError(f"--by {by}: there is no such grouping.{did_you_mean(by, ('task', 'config'))}")
    together = []
    runs, unlike = distinct(records)
    runs.sort(key=_task_name)
    for _, same_task in groupby(runs, key=_task_name):
        groups = groups_of(same_task)
        if by == "task" and len(groups) > 1:
            raise refusal(groups)
        together += groups
    methods = {record.method.name for group in together for record in group if record.method.role == "method"}
    known = {**(ancestors or {}), **{place(record): record for record in runs}}
    tables = [
        _table(title, group, unlike, known, methods, baseline, each_seed, examples)
        for title, group in zip(titles_of(together), together, strict=True)
    ]
    if baseline is not None and not any(table.baseline for table in tables):
        raise no_baseline(baseline, [row for table in tables for row in table.rows])
    return tables


def _task_name(record: RunRecord) -> str:
    return record.task.name


def _table(
    title: str,
    records: list[RunRecord],
    unlike: Mapping[str, list[str]],
    known: Mapping[str, RunRecord],
    methods: set[str],
    baseline: str | None,
    each_seed: bool,
    read: Callable[[RunRecord], Sequence[ExampleRow]] | None,
) -> Comparison:
    examples = None if read is None else Examples(read)
    ranked_by = primary_metric(records)
    rows = make_rows(records, known, examples, each_seed, ranked_by)
    normalize = normalization(reference(rows, "floor"), reference(rows, "ceiling"))
    rows = [replace(row, normalized_score=normalize(row.score)) for row in rows]
    found = {} if baseline is None or examples is None else baselines(rows, baseline, records[0].task.name)
    if found:
        # Of text both are asked for, and they need not agree.
        rows = against(rows, found, ["f1", "exact_match"] if ranked_by == "f1" else [ranked_by], examples)
    rows.sort(key=lambda row: (row.score is None, -(row.score or 0), row.label))
    sections = tuple(_sections(rows))
    rows = [row for section in sections for row in section.rows]
    floor, ceiling = reference(rows, "floor"), reference(rows, "ceiling")
    absent = sorted(methods - {row.record.method.name for row in rows})
    doubts = {record.run_id: unlike[record.run_id] for record in records if record.run_id in unlike}
    lines = caption(sections, floor, ceiling, baseline, found, absent, doubts)
    return Comparison(title, sections, floor, ceiling, baseline if found else None, tuple(lines))


def _sections(rows: Sequence[Row]) -> Iterable[Section]:
    """The ceilings, the methods by what their state may cost, least first, and the floors; none of them empty."""
    bounds = {row.bound for row in rows if row.role == "method"}
    methods = {row.record.method.name for row in rows if row.role == "method"}
    sections = [Section("", tuple(row for row in rows if row.role == "ceiling"))]
    for bound in sorted(bounds, key=_order):
        chosen = tuple(row for row in rows if row.role == "method" and row.bound == bound)
        missing = sorted(methods - {row.record.method.name for row in chosen})
        sections.append(Section(_heading(bound) if len(bounds) > 1 else "", chosen, tuple(missing)))
    sections.append(Section("", tuple(row for row in rows if row.role == "floor")))
    return [section for section in sections if section.rows]


def _order(bound: Budget) -> tuple[bool, bool, int, int]:
    """No bound, then those of bytes, then those of positions alone; the least first."""
    return bound != Budget(), bound.bytes is None, bound.bytes or 0, bound.positions or 0


def _heading(bound: Budget) -> str:
    return "without a bound" if bound == Budget() else f"at most {bound}"

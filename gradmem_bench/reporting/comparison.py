"""What may stand in one table, and what must be said under it.

Records belong together when their numbers would differ by the method alone: same task and settings, same data, same
metrics, same backbone; a method that is a language model itself stands beside those on another. Everything else
(training, machine, budget) is shown or said.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from gradmem_bench.config import Budget, fingerprint
from gradmem_bench.errors import UserError, did_you_mean
from gradmem_bench.reporting.baseline import against, baselines, no_baseline
from gradmem_bench.reporting.caption import caption, shared_backbone
from gradmem_bench.reporting.rows import Examples, Row, make_rows, place
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
) -> list[Comparison]:
    """The tables that `records` make, sorted by task.

    Args:
        by: `task` makes one table a task and raises UserError for records of it that do not compare; `config` makes
            one table for each set of records that do.
        baseline: the method, or the label of the row, that the others are compared with, query by query.
        each_seed: gives every seed a row, in place of one row for all seeds of a method.
        examples: reads a record's example rows; without them every seed has its row, and there is no baseline.
    """
    if by not in ("task", "config"):
        raise UserError(f"--by takes task or config, not '{by}'.{did_you_mean(by, ('task', 'config'))}")
    together = []
    distinct = sorted(_distinct(records), key=_task_name)
    for _, same_task in groupby(distinct, key=_task_name):
        groups = _groups(same_task)
        if by == "task" and len(groups) > 1:
            one, other, *_ = (group[0] for group in groups.values())
            raise UserError(
                f"The records {one.run_id} ({one.method.name}) and {other.run_id} ({other.method.name}) of task "
                f"{one.task.name} do not belong in one table, since they differ in {_differences(one, other)}; "
                "--by config makes a table for each."
            )
        together += groups.values()
    methods = {record.method.name for group in together for record in group if record.method.role == "method"}
    known = {place(record): record for record in distinct}
    tables = [_table(group, known, methods, baseline, each_seed, examples) for group in together]
    if baseline is not None and not any(table.baseline for table in tables):
        raise no_baseline(baseline, [row for table in tables for row in table.rows])
    return tables


def _groups(records: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """The records that belong together; a method with a backbone of its own joins the first others that it can."""
    groups: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=lambda record: record.method.own_backbone):
        key = fingerprint(_common(record))
        if record.method.own_backbone and key not in groups:
            mine = _common(record, backbone=False)
            others = (key for key, group in groups.items() if _common(group[0], backbone=False) == mine)
            key = next(others, key)
        groups.setdefault(key, []).append(record)
    return groups


def _task_name(record: RunRecord) -> str:
    return record.task.name


def _distinct(records: Iterable[RunRecord]) -> Iterable[RunRecord]:
    """Every run once, where copies of its record were found too."""
    runs: dict[str, RunRecord] = {}
    for record in records:
        if runs.setdefault(record.run_id, record) != record:
            raise UserError(f"Two different records have the run id {record.run_id}; leave one of them out.")
    return runs.values()


def _common(record: RunRecord, backbone: bool = True) -> dict[str, Any]:
    """What all records of a table share, by the name a person knows it by."""
    task, source = record.task, record.task.source
    weights = {"backbone weights": record.backbone.weights_hash, "tokenizer": record.backbone.tokenizer}
    return {
        "task version": task.version,
        **{f"task setting {key}": value for key, value in task.settings.items()},
        "split": task.split,
        "data revision": source.revision,
        "data hash": source.content_hash,
        "data location": source.location if source.revision is source.content_hash is None else None,
        "rows in the split": source.rows,
        "limit": task.limit,
        "contexts": task.contexts,
        "queries": task.queries,
        "answer normalisation": task.normalized_answers,
        "the task's own metric": task.own_metric,
        # Only some methods rebuild their context; that a row lacks the metric does not set it apart.
        **{
            f"version of {name}": metric.version
            for name, metric in record.metrics.items()
            if name != "reconstruction_nats_per_token"
        },
        **(weights if backbone else {}),
    }


def _differences(one: RunRecord, other: RunRecord) -> str:
    first, second = _common(one), _common(other)
    names = [name for name in {**first, **second} if fingerprint(first.get(name)) != fingerprint(second.get(name))]
    return ", ".join(f"{name} ({_brief(first.get(name))} and {_brief(second.get(name))})" for name in names)


def _brief(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


# --------------------------------------------------------------------------------------------- table


def _table(
    records: list[RunRecord],
    known: Mapping[str, RunRecord],
    methods: set[str],
    baseline: str | None,
    each_seed: bool,
    read: Callable[[RunRecord], Sequence[ExampleRow]] | None,
) -> Comparison:
    examples = None if read is None else Examples(read)
    ranked_by = primary_metric(records)
    rows = make_rows(records, known, examples, each_seed, ranked_by)
    floor, ceiling = _reference(rows, "floor"), _reference(rows, "ceiling")
    normalize = _normalization(floor, ceiling)
    rows = [replace(row, normalized_score=normalize(row.score)) for row in rows]
    found = {} if baseline is None or examples is None else baselines(rows, baseline, records[0].task.name)
    if found:
        # Of text both are asked for, and they need not agree.
        rows = against(rows, found, ["f1", "exact_match"] if ranked_by == "f1" else [ranked_by], examples)
    rows.sort(key=lambda row: (row.score is None, -(row.score or 0), row.label))
    sections = tuple(_sections(rows))
    rows = [row for section in sections for row in section.rows]
    floor, ceiling = _reference(rows, "floor"), _reference(rows, "ceiling")
    title = f"{records[0].task.name} · {shared_backbone(records).name}"
    absent = sorted(methods - {row.record.method.name for row in rows})
    lines = caption(sections, floor, ceiling, baseline, found, absent)
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


def _reference(rows: Sequence[Row], role: Literal["floor", "ceiling"]) -> Row | None:
    """The best of the floors or of the ceilings: of several, the ones that make normalised scores lowest."""
    scored = [row for row in rows if row.role == role and row.score is not None]
    return max(scored, key=lambda row: row.score, default=None)


def _normalization(floor: Row | None, ceiling: Row | None) -> Callable[[float | None], float | None]:
    if floor is None or ceiling is None or ceiling.score <= floor.score:
        return lambda score: None
    low, high = floor.score, ceiling.score
    return lambda score: None if score is None else (score - low) / (high - low)

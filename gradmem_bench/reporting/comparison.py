"""What may stand in one table, and what must be said under it.

Records belong together when their numbers would differ by the method alone: same task and settings, same data, same
metrics, same backbone; a method that is a language model itself stands beside those on another. Everything else
(training, machine, budget) is shown or said.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from gradmem_bench.config import Budget, fingerprint, format_bytes
from gradmem_bench.errors import UserError, did_you_mean
from gradmem_bench.results import BackboneRecord, MetricResult, RunRecord

PRIMARY = "exact_match"
"""The metric that rows are ordered by and normalised on."""

SWAP_MARK, BUDGET_MARK = "†", "‡"


@dataclass(frozen=True)
class Row:
    """One record in a table."""

    label: str
    """The method, with what tells it from the table's other records of that method."""
    record: RunRecord
    normalized_score: float | None
    """(score - floor) / (ceiling - floor)."""
    over_budget: tuple[str, ...]
    """What was measured above the request, as clauses."""

    def metric(self, name: str) -> MetricResult | None:
        return self.record.metrics.get(name)

    @property
    def score(self) -> float | None:
        found = self.metric(PRIMARY)
        return found.value if found else None

    @property
    def swap_failed(self) -> bool:
        """Whether a foreign state was answered from."""
        return self.record.swap_test.passed is False


@dataclass(frozen=True)
class Comparison:
    """One table: rows that may be compared, in order, and the lines under them."""

    title: str
    rows: tuple[Row, ...]
    floor: Row | None
    ceiling: Row | None
    caption: tuple[str, ...]

    @property
    def shows_f1(self) -> bool:
        """Whether F1 says anything that exact match does not: for text, when it differs."""
        scores = [(row.metric("f1"), row.score) for row in self.rows if row.record.task.normalized_answers]
        return any(f1 is not None and f1.value != score for f1, score in scores)


def comparison(records: Iterable[RunRecord], by: str = "task") -> list[Comparison]:
    """The tables that `records` make, sorted by task.

    Args:
        by: `task` makes one table a task and raises UserError for records of it that do not compare; `config` makes
            one table for each set of records that do.
    """
    if by not in ("task", "config"):
        raise UserError(f"--by takes task or config, not '{by}'.{did_you_mean(by, ('task', 'config'))}")
    tables = []
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
        tables += [_table(group) for group in groups.values()]
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


# ---------------------------------------------------------------------------------------------- rows


def _table(records: list[RunRecord]) -> Comparison:
    floor, ceiling = _reference(records, "floor"), _reference(records, "ceiling")
    normalize = _normalization(floor, ceiling)
    rows = [
        Row(label, record, normalize(_score(record)), _over_budget(record))
        for label, record in zip(_labels(records), records, strict=True)
    ]
    place = {"ceiling": 0, "method": 1, "floor": 2}
    rows.sort(key=lambda row: (place[row.record.method.role], row.score is None, -(row.score or 0), row.label))
    by_id = {row.record.run_id: row for row in rows}
    floor_row, ceiling_row = (None if record is None else by_id[record.run_id] for record in (floor, ceiling))
    title = f"{records[0].task.name} · {_shared_backbone(rows).name}"
    return Comparison(title, tuple(rows), floor_row, ceiling_row, tuple(_caption(rows, floor_row, ceiling_row)))


def _shared_backbone(rows: Sequence[Row]) -> BackboneRecord:
    """The backbone of the rows that have none of their own, where there are such."""
    return min(rows, key=lambda row: row.record.method.own_backbone).record.backbone


def _score(record: RunRecord) -> float | None:
    return record.metrics[PRIMARY].value if PRIMARY in record.metrics else None


def _reference(records: list[RunRecord], role: Literal["floor", "ceiling"]) -> RunRecord | None:
    """The best of the floors or of the ceilings: of several, the ones that make normalised scores lowest."""
    scored = [record for record in records if record.method.role == role and _score(record) is not None]
    return max(scored, key=_score, default=None)


def _normalization(floor: RunRecord | None, ceiling: RunRecord | None) -> Callable[[float | None], float | None]:
    if floor is None or ceiling is None or _score(ceiling) <= _score(floor):
        return lambda score: None
    low, high = _score(floor), _score(ceiling)
    return lambda score: None if score is None else (score - low) / (high - low)


def _over_budget(record: RunRecord) -> tuple[str, ...]:
    budget, footprint = record.budget or Budget(), record.footprint
    over = []
    if budget.bytes is not None and footprint.state_bytes.max > budget.bytes:
        found, allowed = format_bytes(footprint.state_bytes.max), format_bytes(budget.bytes)
        over.append(f"up to {found} of state where {allowed} were allowed")
    if budget.positions is not None and footprint.read_positions.max > budget.positions:
        over.append(f"up to {footprint.read_positions.max:g} READ positions where {budget.positions} were allowed")
    return tuple(over)


def _labels(records: Sequence[RunRecord]) -> list[str]:
    """The methods' names; several records of one method are told apart by seed, then by as little else as will do."""
    labels = []
    for record in records:
        same = [other for other in records if other.method.name == record.method.name]
        told = {other.run_id: _distinctions(other) for other in same}
        varying = [
            name
            for name in dict.fromkeys(name for values in told.values() for name in values)
            if len({values.get(name) for values in told.values()}) > 1
        ]
        mine, parts = told[record.run_id], []
        for name in varying:
            alike = [values for values in told.values() if all(values.get(part) == mine.get(part) for part in parts)]
            if name == "seed" or len(alike) > 1:
                parts.append(name)
        # Seed last, as in "gradmem (inner_steps 5, seed 1)".
        parts.sort(key=lambda name: name == "seed")
        texts = [mine[name] if name == "run" else f"{name} {mine.get(name, 'none')}" for name in parts]
        labels.append(f"{record.method.name} ({', '.join(texts)})" if texts else record.method.name)
    return labels


def _distinctions(record: RunRecord) -> dict[str, str]:
    """What may tell one record of a method from another, in the order in which it is tried."""
    training = record.training
    return {
        "seed": "none" if training is None else str(training.seed),
        "budget": str(record.budget or Budget()),
        "backbone": record.backbone.name,
        **{name: str(value) for name, value in record.method.parameters.items()},
        "steps": "0" if training is None else str(training.steps),
        "run": record.run_id,
    }


# ------------------------------------------------------------------------------------------- caption


def _caption(rows: list[Row], floor: Row | None, ceiling: Row | None) -> Iterable[str]:
    task, backbone = rows[0].record.task, _shared_backbone(rows)
    source = task.source
    where = f"{source.location}, hash {(source.content_hash or 'none')[:12]}"
    where += f", revision {source.revision[:12]}" if source.revision else ""
    compared = "under SQuAD’s normalisation" if task.normalized_answers else "letter by letter"
    yield (
        f"{task.name} version {task.version}, {task.split} split: {task.queries:,} queries on {task.contexts:,} "
        f"contexts ({where}); answers compared {compared}."
    )
    yield f"Backbone {_described(backbone)}."
    others = {row.label: row.record for row in rows if row.record.method.own_backbone}
    for label, record in others.items():
        if record.backbone != backbone:
            yield f"{label} is a language model itself: {_described(record.backbone)}."
    bounds = dict.fromkeys(str(row.record.budget) for row in rows if row.record.budget is not None)
    if bounds:
        yield f"Bounds: {' or '.join(bounds)} for the methods; the floor and the ceiling have none."
    yield "READ positions stand before the query; while it is answered, they hold KV in memory, of so many bytes."
    yield _reference_line(rows, floor, ceiling)
    yield _training_line(rows)
    yield _machine_line(rows)
    unknown = {(row.label, found.reason) for row in rows if (found := row.metric(PRIMARY)) and found.reason}
    yield from (f"No interval for {label}: {reason}." for label, reason in sorted(unknown))
    if any(size.min < size.max for row in rows for size in sizes(row.record)):
        yield "~ is a mean over contexts of different sizes."
    cut = [f"{row.label} {row.record.task.truncated_contexts:,}" for row in rows if row.record.task.truncated_contexts]
    if cut:
        yield f"Contexts cut to fit the backbone: {', '.join(cut)} of {task.contexts:,}."
    untold = [row.label for row in rows if row.record.swap_test.passed is None and row.record.method.role == "method"]
    if untold:
        yield f"The swap test has no verdict on {', '.join(untold)}: there was nothing above chance to lose."
    for row in rows:
        if row.swap_failed:
            outcome = row.record.swap_test.outcome.rstrip(".")
            yield f"{SWAP_MARK} {row.label} did not pass the swap test: {outcome}."
        for clause in row.over_budget:
            yield f"{BUDGET_MARK} {row.label} is over its budget: {clause}."


def _described(backbone: BackboneRecord) -> str:
    return (
        f"{backbone.name}: {backbone.family}, {backbone.parameter_count:,} parameters, weights "
        f"{backbone.weights_hash[:12]}"
    )


def sizes(record: RunRecord) -> tuple:
    """The three sizes that a table shows of a state, each a Measured."""
    return record.footprint.state_bytes, record.footprint.read_positions, record.footprint.read_kv_bytes


def _reference_line(rows: list[Row], floor: Row | None, ceiling: Row | None) -> str:
    missing = [name for name, row in (("floor", floor), ("ceiling", ceiling)) if row is None]
    if missing:
        return f"No {' and no '.join(missing)} among these records, so scores are not normalised."
    references = f"floor {floor.label} {floor.score:.3f}, ceiling {ceiling.label} {ceiling.score:.3f}"
    if ceiling.score <= floor.score:
        return f"The ceiling is not above the floor, so scores are not normalised: {references}."
    roles = [row.record.method.role for row in rows]
    chosen = ", the best of several" if roles.count("floor") > 1 or roles.count("ceiling") > 1 else ""
    return f"Normalised: (score − floor) / (ceiling − floor), {references}{chosen}."


def _training_line(rows: list[Row]) -> str:
    trained = {row.label: row.record.training for row in rows if row.record.training is not None}
    if not trained:
        return "Nothing was trained."
    seeds = sorted({training.seed for training in trained.values()})
    line = f"Seeds {', '.join(map(str, seeds))}." if len(seeds) > 1 else f"Seeds were not varied (seed {seeds[0]})."
    unlike = []
    for name in ("steps", "queries", "tokens", "tuned_trials"):
        values = [getattr(training, name) for training in trained.values()]
        if min(values) < max(values):
            unlike.append(f"{name.replace('_', ' ')} {min(values):,} to {max(values):,}")
    untrained = [row.label for row in rows if row.label not in trained]
    unlike += [f"not at all {', '.join(untrained)}"] if untrained else []
    line += f" Not trained alike: {'; '.join(unlike)}." if unlike else " Trained alike."
    started = [label for label, training in trained.items() if training.initial_checkpoint]
    return line + (f" Training went on from a checkpoint: {', '.join(started)}." if started else "")


def _machine_line(rows: list[Row]) -> str:
    machines, codes = {}, {}  # dicts, since sets would lose the order
    for row in rows:
        machine, code = row.record.environment, row.record.code
        batch_size = row.record.costs.batch_size
        threads = f"{machine.threads} thread{'s' * (machine.threads != 1)}"
        machines[f"{machine.device}, {machine.dtype}, {threads}, evaluated {batch_size} at a time"] = None
        commit = f" ({code.commit[:10]}{', changed' if code.dirty else ''})" if code.commit else ""
        codes[f"{code.version}{commit}"] = None
    unlike = " (unlike, so times do not compare)" if len(machines) > 1 else ""
    return f"gradmem-bench {' and '.join(codes)} on {'; '.join(machines)}{unlike}."

"""The rows of a table: a method under one bound, with all the seeds that it was trained with."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gradmem_bench.config import Budget, fingerprint, format_bytes
from gradmem_bench.errors import UserError
from gradmem_bench.metrics import METRICS
from gradmem_bench.results import Capacity, ExampleRow, Measured, MetricResult, RunRecord
from gradmem_bench.statistics import Difference, Verdict, estimate

if TYPE_CHECKING:
    from numpy import ndarray


@dataclass(frozen=True)
class Versus:
    """A row's distance to the baseline."""

    baseline: str
    """The baseline's label."""
    difference: Difference
    p: float | None
    """`difference.p`, corrected for the other comparisons of the table (Holm)."""
    verdict: Verdict | None


@dataclass(frozen=True)
class Row:
    """One method in a table: a record, or one for each seed."""

    label: str
    """The method, with what tells it from other rows of that method under the same bound."""
    records: tuple[RunRecord, ...]
    """In the order of their seeds."""
    metrics: dict[str, MetricResult]
    """The record's own; of several seeds, over all of them."""
    ranked_by: str
    """The metric that the table is ordered by and normalised on (see `primary_metric`)."""
    recipe: str
    """What its records have in common (see `recipe`)."""
    normalized_score: float | None = None
    """(score - floor) / (ceiling - floor)."""
    versus: dict[str, Versus] = field(default_factory=dict)
    """By metric; empty for the baseline itself, and where there is none to compare with."""

    @property
    def record(self) -> RunRecord:
        """The first seed's: what all share stands in it."""
        return self.records[0]

    @property
    def role(self) -> str:
        return self.record.method.role

    @property
    def bound(self) -> Budget:
        """What the state may cost; rows of the same bound are compared. Floor and ceiling have none."""
        budget = self.record.budget
        if budget is None or self.role != "method":
            return Budget()
        return Budget(bytes=budget.bytes, positions=budget.positions)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of its trainings; none where nothing was trained."""
        return tuple(record.training.seed for record in self.records if record.training is not None)

    def metric(self, name: str) -> MetricResult | None:
        return self.metrics.get(name)

    @property
    def result(self) -> MetricResult | None:
        """What the row is ranked by, with its interval; `None` where its records lack that metric."""
        return self.metric(self.ranked_by)

    @property
    def score(self) -> float | None:
        return self.result.value if self.result else None

    def by_seed(self) -> list[float | None]:
        """The scores of its records, in the order of their seeds."""
        found = [record.metrics.get(self.ranked_by) for record in self.records]
        return [one.value if one else None for one in found]

    @property
    def capacity(self) -> Capacity | None:
        """What the states hold of the task's values, at the exact match of all seeds; `None` where no record says."""
        known = next((record.capacity for record in self.records if record.capacity is not None), None)
        if known is None or (exact := self.metric("exact_match")) is None:
            return None
        return Capacity.of(known.values, known.value_bits, exact, self.size("state_bytes").mean)

    @property
    def swap_failed(self) -> bool:
        """Whether a foreign state was answered from, under any seed."""
        return any(record.swap_test.passed is False for record in self.records)

    @property
    def over_budget(self) -> tuple[str, ...]:
        """What was measured above the request, as clauses."""
        bound, over = self.bound, []
        if bound.bytes is not None and self.size("state_bytes").max > bound.bytes:
            found, allowed = format_bytes(self.size("state_bytes").max), format_bytes(bound.bytes)
            over.append(f"up to {found} of state where {allowed} were allowed")
        if bound.positions is not None and self.size("read_positions").max > bound.positions:
            found = f"{self.size('read_positions').max:g}"
            over.append(f"up to {found} READ positions where {bound.positions} were allowed")
        return tuple(over)

    def size(self, name: str) -> Measured:
        """A size of the footprint, over all contexts and seeds."""
        found = [getattr(record.footprint, name) for record in self.records]
        return Measured(
            mean=self.mean(lambda record: getattr(record.footprint, name).mean),
            min=min(one.min for one in found),
            max=max(one.max for one in found),
        )

    def mean(self, number: Callable[[RunRecord], float | None]) -> float | None:
        """The mean of a number over the seeds; `None` where one of them has none."""
        found = [number(record) for record in self.records]
        if len(found) == 1 or None in found:
            return found[0] if len(found) == 1 else None
        return sum(found) / len(found)

    def flops(self, phase: str) -> float | None:
        """The mean over the seeds of the operations of one WRITE or READ (`write`, `read`), where all were counted."""
        return self.mean(lambda record: record.costs.flops(phase).value)

    def trained(self, name: str) -> float | None:
        """The mean of a number of the training over the seeds; `None` where nothing was trained."""
        return self.mean(lambda record: record.training and getattr(record.training, name))


class Examples:
    """The example rows of the records in a table, every record's in the same order.

    Args:
        read: the example rows of a record.
    """

    def __init__(self, read: Callable[[RunRecord], Sequence[ExampleRow]]) -> None:
        self._read = read
        self._rows: dict[str, list[ExampleRow]] = {}
        self._first: RunRecord | None = None

    def rows(self, record: RunRecord) -> list[ExampleRow]:
        """In the order of the first record that was asked for.

        Raises:
            UserError: they are not the answers that the record counts, or not to the first record's queries.
        """
        if record.run_id not in self._rows:
            try:
                rows = list(self._read(record))
            except UserError as error:
                raise UserError(f"{error} Only a table with --each-seed and without --baseline needs none.") from None
            right = sum(row.exact_match for row in rows)
            stated = record.metrics["exact_match"]
            if len(rows) != stated.n or abs(right - stated.value * stated.n) > 1e-6 * stated.n:
                raise UserError(
                    f"The examples of {record.run_id} do not add up to its record: {right} of {len(rows)} are right, "
                    f"where it says {stated.value:.4f} of {stated.n}."
                )
            if self._first is not None:
                rows = self._ordered(record, rows)
            self._first = self._first or record
            self._rows[record.run_id] = rows
        return self._rows[record.run_id]

    def _ordered(self, record: RunRecord, rows: list[ExampleRow]) -> list[ExampleRow]:
        by_id = {row.example_id: row for row in rows}
        ordered = []
        for one in self._rows[self._first.run_id]:
            other = by_id.get(one.example_id)
            if other is None or (other.context_id, other.targets) != (one.context_id, one.targets):
                trouble = "is not among the second's" if other is None else "has another context or other targets there"
                raise UserError(
                    f"The records {self._first.run_id} and {record.run_id} cannot be compared query by query: "
                    f"{one.example_id} {trouble}."
                )
            ordered.append(other)
        if len(rows) != len(ordered):
            raise UserError(
                f"The records {self._first.run_id} and {record.run_id} cannot be compared query by query: they answer "
                f"{len(ordered)} and {len(rows)} queries."
            )
        return ordered

    def scores(self, records: Iterable[RunRecord], name: str) -> tuple["ndarray", list[str]]:
        """A metric's values (S, n), one row a record, and the contexts (n,); what belongs to a context counts once.

        Queries that have no such value in one of the records are left out: a task's own metric may not be for all.
        """
        import numpy as np

        table = [self.rows(record) for record in records]
        chosen = range(len(table[0]))
        if name == "reconstruction_nats_per_token":
            chosen = list({row.context_id: index for index, row in enumerate(table[0])}.values())
        chosen = [index for index in chosen if all(getattr(rows[index], name) is not None for rows in table)]
        values = np.array([[getattr(rows[index], name) for index in chosen] for rows in table], dtype=np.float64)
        return values, [table[0][index].context_id for index in chosen]


def recipe(record: RunRecord, known: Mapping[str, RunRecord]) -> str:
    """A fingerprint of all that a person decided about a run but its seed.

    Args:
        known: records by `place`: where training went on from the checkpoint of one of them, that one's recipe counts
            in place of the checkpoint, which every seed has its own of.
    """
    begun = record.training and record.training.initial_checkpoint
    folder = begun and begun.partition("/")[0]
    if folder in known:
        task = known[folder].task
        others = {name: other for name, other in known.items() if name != folder}
        begun = [task.name, task.version, task.settings, recipe(known[folder], others)]
    training = record.training and [record.training.config, begun]
    budget = record.budget and record.budget.model_dump()
    return fingerprint([record.code.version, record.method.model_dump(), budget, training, record.environment.dtype])


def place(record: RunRecord) -> str:
    """The name of the folder that a run is kept in."""
    return f"{record.method.name}-{record.config_hash[:8]}"


def make_rows(
    records: Sequence[RunRecord],
    known: Mapping[str, RunRecord],
    examples: Examples | None,
    each_seed: bool,
    ranked_by: str,
) -> list[Row]:
    """One row a recipe, over its seeds; one a record with `each_seed`, without `examples` and where a seed is twice."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(recipe(record, known), []).append(record)
    apart = each_seed or examples is None
    rows = []
    for key, group in groups.items():
        seeds = [record.training.seed for record in group if record.training is not None]
        if len(group) == 1 or apart or len(set(seeds)) < len(group):
            rows += [Row("", (record,), record.metrics, ranked_by, key) for record in group]
        else:
            together = tuple(sorted(group, key=lambda record: record.training.seed))
            rows.append(Row("", together, _metrics(together, examples), ranked_by, key))
    labels = _labels(rows, seed_first=apart)
    return [replace(row, label=label) for label, row in zip(labels, rows, strict=True)]


def _metrics(records: Sequence[RunRecord], examples: Examples) -> dict[str, MetricResult]:
    results = {}
    for name, metric in METRICS.items():
        if all(name in record.metrics for record in records):
            found = estimate(*examples.scores(records, name), metric.kind == "proportion")
            results[name] = MetricResult(**found.model_dump(), version=records[0].metrics[name].version)
    return results


def _labels(rows: Sequence[Row], seed_first: bool) -> list[str]:
    """The methods' names; several rows of a method under one bound are told apart by as little as will do.

    With `seed_first` the seed is told wherever it varies.
    """
    labels = []
    for row in rows:
        same = [other for other in rows if (_name(other), other.bound) == (_name(row), row.bound)]
        told = [_distinctions(other, seed_first) for other in same]
        mine, parts = _distinctions(row, seed_first), []
        for name in dict.fromkeys(name for values in told for name in values):
            alike = [values for values in told if all(values.get(part) == mine.get(part) for part in parts)]
            if len({values.get(name) for values in alike}) > 1 or (
                name == "seed" and seed_first and len({values.get(name) for values in told}) > 1
            ):
                parts.append(name)
        # Seed last, as in "gradmem (inner_steps 5, seed 1)".
        parts.sort(key=lambda name: name == "seed")
        texts = [mine[name] if name == "run" else f"{name} {mine.get(name, 'none')}" for name in parts]
        labels.append(f"{_name(row)} ({', '.join(texts)})" if texts else _name(row))
    return labels


def _name(row: Row) -> str:
    return row.record.method.name


def _distinctions(row: Row, seed_first: bool) -> dict[str, str]:
    """What may tell one row of a method from another, in the order in which it is tried."""
    record = row.record
    budget: dict[str, Any] = {} if record.budget is None else record.budget.model_dump(exclude={"bytes", "positions"})
    seed = {"seed": ", ".join(map(str, row.seeds)) or "none"}
    return {
        **(seed if seed_first else {}),
        "backbone": record.backbone.name,
        **{name: str(value) for name, value in (budget | record.method.parameters).items()},
        "steps": "0" if record.training is None else str(record.training.steps),
        **seed,
        "run": record.run_id,
    }

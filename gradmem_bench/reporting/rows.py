"""The rows of a table: a method under one bound, with all the seeds that it was trained with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gradmem_bench.config import Budget, StateDtype, fingerprint, format_bytes
from gradmem_bench.metrics import METRICS
from gradmem_bench.reporting.examples import Examples
from gradmem_bench.reporting.labels import labels
from gradmem_bench.results import Capacity, Measured, MetricResult, RunRecord
from gradmem_bench.statistics import Difference, Verdict, estimate


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
        return budget.bound

    @property
    def state_dtype(self) -> StateDtype:
        """What the states' floating-point tensors were stored as; `float32` is as they were computed."""
        return self.record.footprint.state_dtype

    @property
    def narrowed(self) -> bool:
        """Whether the states were stored in fewer bits than the backbone computed them in."""
        return self.state_dtype not in ("float32", self.record.environment.dtype)

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
        begun = [task.name, task.version, task.declaration_hash, task.settings, recipe(known[folder], others)]
    elsewhere = [record.trained_elsewhere] if record.trained_elsewhere else []
    training = record.training and [record.training.config, begun, *elsewhere]
    budget = record.budget and record.budget.model_dump()
    # All others of a table have one backbone.
    own = record.method.own_backbone and record.backbone.weights_hash
    method = record.method.model_dump()
    return fingerprint([record.code.version, method, own, budget, training, record.environment.dtype])


def plain(record: RunRecord) -> RunRecord:
    """K at evaluation that was asked for and is the K of training is what would have been without asking."""
    parameters = record.method.parameters
    if "inner_steps" not in parameters or parameters.get("evaluation_inner_steps") != parameters["inner_steps"]:
        return record
    method = record.method.model_copy(update={"parameters": parameters | {"evaluation_inner_steps": None}})
    return record.model_copy(update={"method": method})


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
            rows += [Row("", (record,), _stated(record), ranked_by, key) for record in group]
        else:
            together = tuple(sorted(group, key=lambda record: record.training.seed))
            rows.append(Row("", together, _metrics(together, examples), ranked_by, key))
    named = zip(labels(rows, seed_first=apart), rows, strict=True)
    return [replace(row, label=label) for label, row in named]


def _stated(record: RunRecord) -> dict[str, MetricResult]:
    """The record's metrics; one without a value has no interval either, and a reason."""
    return {
        name: _without_value(found, found.reason or "its record has none") if found.value is None else found
        for name, found in record.metrics.items()
    }


def _without_value(found: MetricResult, reason: str) -> MetricResult:
    return found.model_copy(update={"value": None, "low": None, "high": None, "method": "", "reason": reason})


def _metrics(records: Sequence[RunRecord], examples: Examples) -> dict[str, MetricResult]:
    results, apart = {}, "A table with --each-seed and without --baseline needs none."
    for name, metric in METRICS.items():
        if all(name in record.metrics for record in records):
            found = estimate(*examples.scores(records, name, apart), metric.kind)
            result = MetricResult(**found.model_dump(), version=records[0].metrics[name].version)
            lacking = [record.training.seed for record in records if record.metrics[name].value is None]
            results[name] = _without_value(result, f"the record of seed {lacking[0]} has none") if lacking else result
    return results

"""Every row against a baseline: on the same queries, under the same bound."""

from collections.abc import Sequence
from dataclasses import replace

from gradmem_bench.config import Budget
from gradmem_bench.errors import UserError, did_you_mean
from gradmem_bench.metrics import METRICS
from gradmem_bench.reporting.examples import Examples
from gradmem_bench.reporting.rows import Row, Versus
from gradmem_bench.statistics import Difference, compared, holm, verdict


def baselines(rows: Sequence[Row], name: str, task: str) -> dict[Budget, Row]:
    """The rows that `name` stands for, a label or a method's name, by their bound.

    Raises UserError where it stands for more than one row of a bound.
    """
    chosen = [row for row in rows if row.label == name] or [row for row in rows if row.record.method.name == name]
    found: dict[Budget, Row] = {}
    for row in chosen:
        if row.bound in found:
            labels = sorted(f"'{one.label}'" for one in chosen if one.bound == row.bound)
            more = f", or one of {len(labels) - 4} more in the table" if len(labels) > 4 else ""
            raise UserError(
                f"--baseline {name} stands for {len(labels)} rows of {task}; name one: {' or '.join(labels[:4])}{more}."
            )
        found[row.bound] = row
    return found


def no_baseline(name: str, rows: Sequence[Row]) -> UserError:
    """The error that no table has a baseline of this name."""
    known = {row.label for row in rows} | {row.record.method.name for row in rows}
    return UserError(f"--baseline {name}: there is no such method among these records.{did_you_mean(name, known)}")


def opponent(row: Row, found: dict[Budget, Row]) -> Row | None:
    """The baseline that `row` stands against: under its own bound, or the only one where either has no bound at all."""
    if not found:
        return None
    only = next(iter(found.values())) if len(found) == 1 else None
    free = row.role != "method" or (only is not None and only.role != "method")
    other = only if free else found.get(row.bound)
    return None if other is row else other


def against(rows: Sequence[Row], found: dict[Budget, Row], metrics: Sequence[str], examples: Examples) -> list[Row]:
    """The rows with their differences to the baselines, the p values corrected over all rows, each metric by itself."""
    versus: list[dict[str, Versus]] = [{} for _ in rows]
    for name in metrics:
        differences = [
            _difference(row, other, name, examples) if (other := opponent(row, found)) is not None else None
            for row in rows
        ]
        corrected = holm([one and one.p for one in differences])
        for row, mine, one, p in zip(rows, versus, differences, corrected, strict=True):
            if one is not None:
                other = opponent(row, found)
                outcome = verdict(one.value, p, METRICS[name].higher_is_better)
                mine[name] = Versus(other.label, one, p, "tied" if _same_method(row, other) else outcome)
    return [replace(row, versus=mine) for row, mine in zip(rows, versus, strict=True)]


def _same_method(row: Row, other: Row) -> bool:
    """Whether nothing but chance, that of the seed above all, can have made the rows differ."""
    return row.recipe == other.recipe


def _same_trainings(row: Row, other: Row) -> bool:
    """Whether both are the same trained weights, seed for seed: their trainings agree to the microsecond."""
    trainings = [[record.training for record in one.records] for one in (row, other)]
    return None not in trainings[0] and trainings[0] == trainings[1]


def _difference(row: Row, other: Row, name: str, examples: Examples) -> Difference:
    values, contexts = examples.scores([*row.records, *other.records], name, "Without --baseline it is not needed.")
    mine, others = values[: len(row.records)], values[len(row.records) :]
    found = compared(mine, others, contexts, METRICS[name].kind, same_trainings=_same_trainings(row, other))
    unknown = {"low": None, "high": None, "p": None, "test": ""}
    if any(one.metric(name) is None or one.metric(name).value is None for one in (row, other)):
        return found.model_copy(update=unknown | {"value": None, "reason": "one of the two has no score"})
    if _same_method(row, other):
        # Two runs that are exchangeable: one of them is above the other by as much as seeds do, whatever that is, and a
        # test that holds the trained weights fixed would call it a difference of methods.
        return found.model_copy(update=unknown | {"reason": "it is the same method, and the difference is its seeds'"})
    return found

"""What is wrong with a record: everything in it that its example rows can tell is computed again from them."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradmem_bench.config import Budget, fingerprint, format_bytes
from gradmem_bench.errors import UserError
from gradmem_bench.metrics import METRICS, exact_match, f1
from gradmem_bench.results import (
    Capacity,
    ExampleRow,
    Measured,
    MetricResult,
    RunRecord,
    Seal,
    WrittenAgain,
    metric_results,
    read_examples,
    read_record,
    seal,
)

_ROUNDING = 1e-9
_BETTERED = 0.25
"""How far the bounds of an interval may be from today's, as a share of today's width: its method has been bettered."""
_LONE = "It has example rows, but no run.json: its record was removed, or its evaluation has not ended."


@dataclass(frozen=True)
class Checked:
    """One `run.json` of a leaderboard."""

    path: Path
    record: RunRecord | None
    """`None` where it cannot be read."""
    problems: tuple[str, ...]
    """Sentences; none where all is in order."""


def check(board: Path) -> list[Checked]:
    """Every record below `board`, sorted by path, with what is wrong with it.

    A folder with example rows and no record is wrong too. Raises UserError where `board` is no folder or has no record.
    """
    if not board.is_dir():
        raise UserError(f"There is no leaderboard at {board}: a folder with records below it was expected.")
    found: list[tuple[Path, RunRecord | None, list[str]]] = []
    asked: dict[str, RunRecord] = {}
    for path in sorted(board.rglob("run.json")):
        try:
            record = read_record(path)
        except UserError as error:
            found.append((path, None, [str(error)]))
            continue
        troubles = problems(path.parent, record)
        if record.seal is None:
            troubles.append(
                "It has no seal, which tells whether rows, data or record were changed since; "
                f"gradmem-bench leaderboard add {path.parent} --board {board} checks it and gives it one."
            )
        elif record.seal.record_hash is None:
            troubles.append(
                "Its seal is of its rows and data alone, and does not tell whether the record was changed since; "
                f"gradmem-bench leaderboard add {path.parent} --board {board} checks it and gives it a whole one."
            )
        if path.parent.parent.name != record.task.name:
            troubles.append(f"It is of the task {record.task.name}, but lies in the folder {path.parent.parent.name}.")
        if not troubles:
            troubles += _asked_alike(record, asked)
        found.append((path, record, troubles))
    lone = {path.parent for name in ("examples.parquet", "examples.jsonl") for path in board.rglob(name)}
    lone -= {path.parent for path, _, _ in found}
    found += [(folder / "run.json", None, [_LONE]) for folder in sorted(lone)]
    if not found:
        raise UserError(f"There are no records below {board}; file some with gradmem-bench leaderboard add RUN.")
    ids = Counter(record.run_id for _, record, _ in found if record is not None)
    for _, record, troubles in found:
        if record is not None and ids[record.run_id] > 1:
            troubles.append(f"The run id {record.run_id} is here {ids[record.run_id]} times; leave one of them.")
    return [Checked(path, record, tuple(troubles)) for path, record, troubles in found]


def _asked_alike(record: RunRecord, asked: dict[str, RunRecord]) -> Iterator[str]:
    """Records that name the same data must have asked the same; `asked` holds the first of each. Seals are in order."""
    task = record.task
    key = fingerprint(
        [task.name, task.version, task.declaration_hash, task.split, task.source.model_dump(), task.limit]
    )
    first = asked.setdefault(key, record)
    if record.seal.data_hash != first.seal.data_hash:
        yield f"It names the same data as {first.run_id}, but its rows do not ask the same."


def problems(folder: Path, record: RunRecord) -> list[str]:
    """What is wrong with the record of the run in `folder`, a sentence each; no seal is no problem here."""
    again: list[str] = []
    try:
        rows = read_examples(folder)
    except WrittenAgain as error:
        again, rows = [str(error)], error.rows
    except UserError as error:
        return [str(error)]
    if (folder / "examples.jsonl").exists():
        return ["Its evaluation has not ended: there is an examples.jsonl, where an examples.parquet was expected."]
    if not rows:
        asked = _counted(record.task.queries, "query", "queries")
        return [*again, f"It has no rows: the record counts {asked}, and examples.parquet is empty."]
    made, sizes = metric_results(rows), list(_sizes(record, rows))
    if len(rows) != record.task.queries:
        # Each number of such rows is another one, and the seal is broken: that is one mistake, and not one a number.
        sealed = _sealed_record(record, seal([], record))
        return [*again, *_rows(record, rows), *_follows(record, made), *sealed, *_laws(record)]
    return [
        *again,
        *_rows(record, rows),
        *_metrics(record, made),
        *_sealed(record, rows),
        *_laws(record),
        *sizes,
        # What is made of a size that was changed is no second mistake.
        *([] if sizes else _capacity(record, made)),
    ]


# ---------------------------------------------------------------------------------------------- rows


def _rows(record: RunRecord, rows: Sequence[ExampleRow]) -> Iterator[str]:
    task = record.task
    twice = [name for name, count in Counter(row.example_id for row in rows).items() if count > 1]
    if twice:
        yield f"The example {twice[0]} stands in it {'twice' if len(twice) == 1 else 'twice, as do others'}."
    if len(rows) != task.queries:
        done = "dropped" if len(rows) < task.queries else "added"
        yield (
            f"Rows were {done}: the record counts {_counted(task.queries, 'query', 'queries')}, "
            f"and examples.parquet holds {len(rows):,}."
        )
    contexts = len({row.context_id for row in rows})
    if len(rows) == task.queries and contexts != task.contexts:
        yield f"The record counts {_counted(task.contexts, 'context')}, and the rows are of {contexts:,}."
    wrong = [row.example_id for row in rows if not _scored_right(row, task.normalized_answers)]
    if wrong:
        if len(wrong) == 1:
            yield f"The score of {wrong[0]} is not what its prediction and targets make."
        else:
            yield (
                f"The scores of {len(wrong):,} rows are not what their prediction and targets make, "
                f"that of {wrong[0]} the first."
            )


def _follows(record: RunRecord, made: dict[str, MetricResult]) -> Iterator[str]:
    other = [name for name, one in record.metrics.items() if name not in made or not _same(one.value, made[name].value)]
    if other:
        yield f"So {len(other)} of its {len(record.metrics)} means are not those of its rows: {', '.join(other)}."


def _scored_right(row: ExampleRow, normalize: bool) -> bool:
    shared = f1(row.prediction, row.targets, normalize)
    return row.exact_match == exact_match(row.prediction, row.targets, normalize) and _same(row.f1, shared)


def _metrics(record: RunRecord, made: dict[str, MetricResult]) -> Iterator[str]:
    for name in dict.fromkeys([*record.metrics, *made]):
        stated, again = record.metrics.get(name), made.get(name)
        if stated is None:
            yield f"It has no {name}, which its rows have."
        elif name in METRICS and stated.version != METRICS[name].version:
            yield (
                f"Its {name} is of version {stated.version}, and this gradmem-bench computes version "
                f"{METRICS[name].version}: it cannot be computed again."
            )
        elif again is None:
            yield f"Its {name} cannot be computed again: the rows have no such column."
        elif not _same(stated.value, again.value):
            said, makes = _apart(stated.value, again.value)
            yield f"The mean of {name} was changed: the record says {said}, and its rows make {makes}."
        elif not _same_interval(stated, again):
            yield (
                f"The interval of {name} was changed: the record says {_bounds(stated)}, "
                f"and its rows make {_bounds(again)}."
            )


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=_ROUNDING, abs_tol=_ROUNDING)


def _same_interval(stated: MetricResult, again: MetricResult) -> bool:
    """Whether `stated` can be the interval of its rows; one of a method of before is only asked to hold its mean."""
    if stated.low is None or stated.high is None or again.low is None:
        # Where one method had no interval, another may.
        return stated.low is stated.high is None or stated.method != again.method
    if stated.method != again.method:
        return stated.low <= stated.value <= stated.high
    allowed = _BETTERED * (again.high - again.low)
    return abs(stated.low - again.low) <= allowed and abs(stated.high - again.high) <= allowed


def _apart(stated: float | None, again: float | None) -> tuple[str, str]:
    """Two numbers that differ, with as many digits as that takes."""
    for digits in (6, 9, 12, 17):
        texts = tuple("none" if value is None else f"{value:.{digits}g}" for value in (stated, again))
        if texts[0] != texts[1]:
            break
    return texts


def _bounds(found: MetricResult) -> str:
    return "none" if found.low is None else f"[{found.low:.6g}, {found.high:.6g}] ({found.method})"


def _sealed(record: RunRecord, rows: Sequence[ExampleRow]) -> Iterator[str]:
    if record.seal is None:
        return
    again = seal(rows, record)
    if (again.rows, again.rows_hash) != (record.seal.rows, record.seal.rows_hash):
        yield (
            f"Its rows are not those that it was sealed with: {_counted(record.seal.rows, 'row')} of hash "
            f"{record.seal.rows_hash[:12]} then, {again.rows:,} of {again.rows_hash[:12]} now."
        )
    elif again.data_hash != record.seal.data_hash:
        source = record.task.source
        yield (
            f"Its data were changed: it was sealed with other data than {source.location} with the hash "
            f"{(source.content_hash or source.revision or 'none')[:12]}, which it names now."
        )
    yield from _sealed_record(record, again)


def _sealed_record(record: RunRecord, again: Seal) -> Iterator[str]:
    if record.seal is not None and record.seal.record_hash not in (None, again.record_hash):
        yield (
            f"Its record was changed since it was sealed: it had the hash {record.seal.record_hash[:12]} then, and has "
            f"{again.record_hash[:12]} now; which part was changed a hash does not tell."
        )


# ---------------------------------------------------------------------------------------------- laws


def _laws(record: RunRecord) -> Iterator[str]:
    swap = record.swap_test
    if swap.passed is False:
        yield f"It did not pass the swap test: {swap.outcome.rstrip('.')}."
    elif swap.passed is None and swap.own_score is None:
        yield f"The swap test was not made: {swap.outcome.rstrip('.')}."
    budget, footprint = record.budget or Budget(), record.footprint
    if budget.bytes is not None and footprint.state_bytes.max > budget.bytes:
        yield (
            f"Its state is over its budget: up to {format_bytes(footprint.state_bytes.max)} where "
            f"{format_bytes(budget.bytes)} were allowed."
        )
    if budget.positions is not None and footprint.read_positions.max > budget.positions:
        yield (
            f"Its state is over its budget: up to {footprint.read_positions.max:g} READ positions where "
            f"{budget.positions} were allowed."
        )
    if record.code.dirty:
        yield f"It was made by code that differs from its commit ({(record.code.commit or '')[:10]}): make it again."


def _sizes(record: RunRecord, rows: Sequence[ExampleRow]) -> Iterator[str]:
    contexts = list({row.context_id: row for row in rows}.values())
    if not contexts or len(contexts) != record.task.contexts:
        return
    for name, title in (("state_bytes", "state bytes"), ("read_positions", "READ positions")):
        stated, again = getattr(record.footprint, name), Measured.of([getattr(row, name) for row in contexts])
        if not all(_same(getattr(stated, part), getattr(again, part)) for part in ("mean", "min", "max")):
            yield f"The {title} were changed: the record says {_size(stated)}, and its rows make {_size(again)}."


def _capacity(record: RunRecord, made: dict[str, MetricResult]) -> Iterator[str]:
    stated, exact, known = record.capacity, record.metrics["exact_match"], made.get("exact_match")
    # What is made of an exact match that was changed is no second mistake.
    if stated is None or known is None or not (_same(exact.value, known.value) and _same_interval(exact, known)):
        return
    again = Capacity.of(stated.values, stated.value_bits, exact, record.footprint.state_bytes.mean)
    pairs = {
        "": (stated.recalled_bits, again.recalled_bits),
        " a state byte": (stated.bits_per_state_byte.value, again.bits_per_state_byte.value),
        " as the lower bound": (stated.recalled_bits_low, again.recalled_bits_low),
        " as the upper bound": (stated.recalled_bits_high, again.recalled_bits_high),
    }
    other = {name: _apart(*pair) for name, pair in pairs.items() if not _same(*pair)}
    if other:
        said, makes = (" and ".join(f"{texts[side]}{name}" for name, texts in other.items()) for side in (0, 1))
        yield f"The recalled bits were changed: the record says {said}, and its exact match makes {makes}."


def _counted(count: int, one: str, more: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else more or f'{one}s'}"


def _size(size: Measured) -> str:
    return f"{size.mean:g} ({size.min:g} to {size.max:g})"


def summary(found: Iterable[Checked]) -> str:
    """What `check` found, in a sentence."""
    found = list(found)
    bad = sum(bool(one.problems) for one in found)
    right = f"{_counted(len(found), 'record')} checked, each against its rows"
    return (
        f"{right}: {'it is' if len(found) == 1 else 'all are'} in order."
        if not bad
        else f"{right}: {bad} not in order."
    )

"""What must be said under a table: of the data, the seeds, the tests, and of all that differs beside the method."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradmem_bench.config import Budget, TrainingConfig
from gradmem_bench.reporting.controls import control_lines
from gradmem_bench.reporting.labels import settings_of, short_names
from gradmem_bench.reporting.references import RULE
from gradmem_bench.reporting.rows import Row
from gradmem_bench.results import BackboneRecord, RunRecord, TaskRecord, metric_title

if TYPE_CHECKING:
    from gradmem_bench.reporting.comparison import Section

SWAP_MARK, BUDGET_MARK = "†", "‡"
_NAMED = 4
"""Rows that a sentence names one by one; of more it says how many, or which it is not said of."""


def caption(
    sections: Sequence["Section"],
    floor: Row | None,
    ceiling: Row | None,
    baseline: str | None,
    found: dict[Budget, Row],
    absent: Sequence[str],
    unlike: Mapping[str, Sequence[str]],
) -> Iterable[str]:
    """The lines under a table, whole sentences each.

    Args:
        baseline: what the rows were to be compared with.
        found: the rows that this is, by their bound.
        absent: methods of the other tables that have no row in this one.
        unlike: by the run id of a record here, those of records of the same run that say something else.
    """
    labels = [row.label for section in sections for row in section.rows]
    rows = {
        row.label if labels.count(row.label) == 1 else f"{row.label} {section.heading}": row
        for section in sections
        for row in section.rows
    }
    records = [record for row in rows.values() for record in row.records]
    yield from _what(rows)
    yield from _seen_line(rows)
    if unlike:
        texts = [one if set(others) == {one} else f"{one} (also {', '.join(others)})" for one, others in unlike.items()]
        yield f"Found more than once, with unlike records, of which the last counts: {', '.join(texts)}."
    headings = [section.heading for section in sections if section.heading]
    bounds = {str(row.bound) for row in rows.values() if row.bound != Budget()}
    if headings:
        yield "Methods are compared under the same bound on their state; the floor and the ceiling have none."
    elif bounds:
        yield f"Bounds: {' or '.join(bounds)} for the methods; the floor and the ceiling have none."
    yield from _stored_line(rows)
    yield from _settings_lines(rows)
    yield "READ positions stand before the query; while it is answered, they hold KV in memory, of so many bytes."
    yield from _capacity_line(list(rows.values()))
    yield from control_lines(list(rows.values()))
    yield from _cost_lines(rows)
    yield from _metric_line(records[0].task, next(iter(rows.values())).ranked_by)
    yield _reference_line(list(rows.values()), floor, ceiling)
    yield from _baseline_lines(sections, rows, baseline, found)
    if absent:
        yield f"In other tables, but not run here: {', '.join(absent)}."
    yield from _seed_lines(rows, verdicts=bool(found))
    yield from _training_line(rows)
    yield from _easier_line(rows)
    yield _machine_line(records)
    yield from _unknown_lines(records[0].task, rows)
    if any(size.min < size.max for row in rows.values() for size in sizes(row)):
        yield "~ is a mean over contexts of different sizes."
    cut = {label: max(record.task.truncated_contexts for record in row.records) for label, row in rows.items()}
    if any(cut.values()):
        texts = [f"{label} {count:,}" for label, count in cut.items() if count]
        yield f"Contexts cut to fit the backbone: {', '.join(texts)} of {records[0].task.contexts:,}."
    untold = [
        label
        for label, row in rows.items()
        if row.role == "method" and any(record.swap_test.passed is None for record in row.records)
    ]
    if untold:
        yield f"The swap test has no verdict on {_told(untold, list(rows))}: there was nothing above chance to lose."
    for label, row in rows.items():
        for record in row.records:
            if record.swap_test.passed is False:
                outcome = record.swap_test.outcome.rstrip(".")
                seed = f" with seed {record.training.seed}" if len(row.records) > 1 else ""
                yield f"{SWAP_MARK} {label} did not pass the swap test{seed}: {outcome}."
        for clause in row.over_budget:
            yield f"{BUDGET_MARK} {label} is over its budget: {clause}."


def sizes(row: Row) -> tuple:
    """The three sizes that a table shows of a state, each a Measured."""
    return row.size("state_bytes"), row.size("read_positions"), row.size("read_kv_bytes")


def _what(rows: dict[str, Row]) -> Iterable[str]:
    records = [record for row in rows.values() for record in row.records]
    task, source, backbone = records[0].task, records[0].task.source, shared_backbone(records)
    where = f"{source.location}, hash {(source.content_hash or 'none')[:12]}"
    where += f", revision {source.revision[:12]}" if source.revision else ""
    how = "under SQuAD’s normalisation" if task.normalized_answers else "letter by letter"
    first = "the first " if task.limit == task.contexts else ""
    yield (
        f"{task.name} version {task.version}, {task.split} split: {task.queries:,} queries on {first}{task.contexts:,} "
        f"contexts ({where}); answers compared {how}."
    )
    yield f"Backbone {_described(backbone)}."
    for label, row in rows.items():
        if row.record.method.own_backbone and row.record.backbone != backbone:
            yield f"{label} is a language model itself: {_described(row.record.backbone)}."


def _seen_line(rows: dict[str, Row]) -> Iterable[str]:
    """What of the score may be answered from the weights, and what is left without that."""
    others = {label: found for label, row in rows.items() if (found := row.metric("unseen_exact_match"))}
    if not others:
        return
    one = next(row.record for label, row in rows.items() if label in others)
    left = one.metrics["unseen_exact_match"].n
    scores = [
        f"{label} {_number(found.value)}"
        + (f" [{_number(found.low)}, {_number(found.high)}]" if found.low is not None else "")
        for label, found in others.items()
    ]
    yield (
        f"{one.task.queries - left:,} of the {one.task.queries:,} queries stand in the training data too, with their "
        f"contexts. Exact match of the {left:,} others: {', '.join(scores)}."
    )


def shared_backbone(records: Iterable[RunRecord]) -> BackboneRecord:
    """The backbone of the records that have none of their own, where there are such."""
    return min(records, key=lambda record: record.method.own_backbone).backbone


def _described(backbone: BackboneRecord) -> str:
    return (
        f"{backbone.name}: {backbone.family}, {backbone.parameter_count:,} parameters, weights "
        f"{backbone.weights_hash[:12]}"
    )


def _stored_line(rows: dict[str, Row]) -> Iterable[str]:
    stored: dict[str, list[str]] = {}
    for label, row in rows.items():
        if row.narrowed:
            stored.setdefault(row.state_dtype, []).append(label)
    if stored:
        parts = [f"{dtype}: {', '.join(labels)}" for dtype, labels in stored.items()]
        yield f"States stored as {'; as '.join(parts)}."


def _settings_lines(rows: dict[str, Row]) -> Iterable[str]:
    """What rows of one method under one bound differ in beside what their names tell."""
    groups: dict[tuple[str, Budget], dict[str, dict[str, str]]] = {}
    for label, row in rows.items():
        groups.setdefault((row.record.method.name, row.bound), {})[label] = settings_of(row.record)
    untold: dict[str, list[str]] = {}
    for (method, _), found in groups.items():
        names = dict.fromkeys(name for one in found.values() for name in one)
        for name, short in short_names(names).items():
            values = {one.get(name, "none") for one in found.values()}
            # From the first letter on: "steps" is not told by "inner_steps 5"; with its section it is.
            told = any(f"{before}{one} " in label for label in found for before in ("(", ", ") for one in (short, name))
            if len(values) > 1 and not told and short != "state_dtype":
                untold.setdefault(method, []).append(short)
    if untold:
        texts = (f"{method} in {', '.join(dict.fromkeys(names))}" for method, names in untold.items())
        yield f"Rows differ in more than their names tell (see `settings` in csv and json): {'; '.join(texts)}."


def _unknown_lines(task: TaskRecord, rows: dict[str, Row]) -> Iterable[str]:
    ranked_by = next(iter(rows.values())).ranked_by
    for name in dict.fromkeys([ranked_by, "exact_match"]):
        lacking = ((found, label) for label, row in rows.items() if (found := row.metric(name)) and found.value is None)
        for reason, labels in _grouped(lacking).items():
            yield f"No {metric_title(name, task)} for {', '.join(labels)}: {reason}."
    known = ((row.result, label) for label, row in rows.items() if row.score is not None)
    for reason, labels in _grouped(known).items():
        yield f"No interval for {', '.join(labels)}: {reason}."


def _capacity_line(rows: list[Row]) -> Iterable[str]:
    known = next((row.capacity for row in rows if row.capacity is not None), None)
    if known is not None:
        yield (
            f"A context holds {known.values:,} values of {known.value_bits:.3g} bits each. Recalled bits are the least "
            "that this exact match leaves known of them (Fano’s inequality), here for each byte of the state."
        )


def _cost_lines(rows: dict[str, Row]) -> Iterable[str]:
    mean = "; of several seeds, every cost is their mean" if any(len(row.records) > 1 for row in rows.values()) else ""
    yield f"WRITE is of one context, READ of one query with its answer{mean}."
    ended = [label for label, row in rows.items() if not all(record.costs.whole_answers for record in row.records)]
    if ended:
        yield (
            f"READ of {_told(ended, list(rows))}: older records, of answers that ended where the weights ended them, "
            "maybe at other lengths than in other rows; its milliseconds and FLOPs are not to be compared."
        )
    lacking: dict[str, list[str]] = {}
    for label, row in rows.items():
        for phase in ("write", "read"):
            if row.flops(phase) is None:
                found = next(one for one in row.records if one.costs.flops(phase).value is None)
                lacking.setdefault(found.costs.flops(phase).reason or "", []).append(label)
    for reason, labels in lacking.items():
        which = "any row" if len(set(labels)) == len(rows) else ", ".join(dict.fromkeys(labels))
        yield f"FLOPs of evaluation are not known for {which}: {reason}."


def _metric_line(task: TaskRecord, ranked_by: str) -> Iterable[str]:
    title = metric_title(ranked_by, task)
    if ranked_by == "task_score":
        yield f"Ranked, normalised and compared by {title}, the task’s own metric."
    elif ranked_by == "f1":
        yield "Ranked and normalised by F1, since answers are text of several words; compared by exact match too."


def _reference_line(rows: list[Row], floor: Row | None, ceiling: Row | None) -> str:
    roles = [row.role for row in rows]
    missing = [
        f"{name}{' with a score' if name in roles else ''}"
        for name, row in (("floor", floor), ("ceiling", ceiling))
        if row is None
    ]
    if missing:
        return f"No {' and no '.join(missing)} among these records, so scores are not normalised."
    references = f"floor {floor.label} {_number(floor.score)}, ceiling {ceiling.label} {_number(ceiling.score)}"
    if ceiling.score <= floor.score:
        return f"The ceiling is not above the floor, so scores are not normalised: {references}."
    several = " and ".join(f"{name}s" for name in ("floor", "ceiling") if roles.count(name) > 1)
    chosen = f"; of several {several}, {RULE}" if several else ""
    return f"Normalised: (score − floor) / (ceiling − floor), {references}{chosen}."


def _baseline_lines(
    sections: Sequence["Section"], rows: dict[str, Row], baseline: str | None, found: dict[Budget, Row]
) -> Iterable[str]:
    if baseline is None:
        return
    if not found:
        yield f"No {baseline} among these records to compare with."
        return
    lacking = [section.heading for section in sections if section.heading and not any(r.versus for r in section.rows)]
    if lacking:
        yield f"No comparison {' and '.join(lacking)}: {baseline} has no row there, or the only one."
    if len(found) > 1 and any(row.role != "method" for row in rows.values()):
        yield f"The floor and the ceiling have no bound, and so no one row of {baseline} to stand against."
    tests: dict[str, dict[str, list[str]]] = {}
    for label, row in rows.items():
        for metric, one in row.versus.items():
            if one.difference.test:
                tests.setdefault(metric, {}).setdefault(one.difference.test, []).append(label)
    if tests:
        of = {metric_title(metric, next(iter(rows.values())).record.task): _tests(by) for metric, by in tests.items()}
        same = len(set(of.values())) == 1
        by = next(iter(of.values())) if same else "; ".join(f"{by} for {title}" for title, by in of.items())
        names = [name for row in rows.values() for name in row.versus]
        count = max(names.count(name) for name in names)
        corrected = f"; corrected for the {count} comparisons of this table (Holm)" if count > 1 else ""
        yield (
            f"Differences to {baseline} are on the same queries, with 95 % intervals; p by {by}{corrected}. Tied: "
            "chance alone could have made the difference (p > 0.05), which is not to say that there is none."
        )
        if count > 1:
            yield (
                "Each interval of a difference is by itself, not corrected as p is, so that one that leaves 0 out may "
                "stand beside tied."
            )
    pairs = ((one.difference, label) for label, row in rows.items() for one in row.versus.values())
    for reason, labels in _grouped(pairs).items():
        yield f"No interval for the difference of {_told(labels, list(rows))}: {reason}."


def _tests(labels: Mapping[str, Sequence[str]]) -> str:
    """The test of most rows, and every other one with its rows."""
    compared = [label for those in labels.values() for label in those]
    most, *others = sorted(labels, key=lambda test: -len(labels[test]))
    return ", ".join([most, *(f"of {_told(labels[test], compared)} {test}" for test in others)])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def _told(labels: Iterable[str], among: Sequence[str]) -> str:
    """The rows by name where they are few, else those that are left of `among`, else how many."""
    own = list(dict.fromkeys(labels))
    rest = [label for label in among if label not in own]
    if len(own) <= _NAMED:
        return ", ".join(own)
    if len(rest) <= _NAMED:
        return f"all but {', '.join(rest)}" if rest else "all"
    return f"{len(own)} of {len(among)} rows"


def _grouped(pairs: Iterable[tuple]) -> dict[str, list[str]]:
    """What has a reason, by the reason."""
    groups: dict[str, list[str]] = {}
    for found, label in pairs:
        if found is not None and found.reason:
            groups.setdefault(found.reason, []).append(label)
    return groups


def _seed_lines(rows: dict[str, Row], verdicts: bool) -> Iterable[str]:
    trained = {label: row for label, row in rows.items() if row.seeds}
    several = {label: row for label, row in trained.items() if len(row.seeds) > 1}
    for seeds in dict.fromkeys(row.seeds for row in several.values()):
        alike = {label: row for label, row in several.items() if row.seeds == seeds}
        scores = [f"{label} ({', '.join(map(_number, row.by_seed()))})" for label, row in alike.items()]
        # So many figures would bury the rest of the caption; CSV and JSON have them all.
        named = ", ".join(scores) if len(scores) <= 4 else f"{len(scores)} rows"
        yield f"Over seeds {', '.join(map(str, seeds))}: {named}; the intervals are for other seeds too."
    single = {label: row.seeds[0] for label, row in trained.items() if label not in several}
    if not single:
        return
    values = sorted(set(single.values()))
    named = f" for {', '.join(single)}" if several else ""
    if len(values) == 1:
        line = f"Seeds were not varied{named} (seed {values[0]})"
    else:
        line = f"One seed a row{named} ({', '.join(map(str, values))})"
    yield f"{line}: those intervals{' and verdicts' * verdicts} say nothing of another seed."


def _training_line(rows: dict[str, Row]) -> Iterable[str]:
    trained = {label: row for label, row in rows.items() if row.seeds}
    if not trained:
        yield "Nothing was trained."
        return
    unlike = []
    for name in ("steps", "queries", "tokens", "tuned_trials"):
        values = [getattr(record.training, name) for row in trained.values() for record in row.records]
        if min(values) < max(values):
            unlike.append(f"{name.replace('_', ' ')} {min(values):,} to {max(values):,}")
    unlike += _unlike_settings([record.training.config for row in trained.values() for record in row.records])
    untrained = [label for label in rows if label not in trained]
    unlike += [f"not at all {', '.join(untrained)}"] if untrained else []
    line = [f"Not trained alike: {'; '.join(unlike)}."] if unlike else ["Trained alike."] if len(rows) > 1 else []
    started = [
        label
        for label, row in trained.items()
        if any(record.training is not None and record.training.initial_checkpoint for record in row.records)
    ]
    line += [f"Training went on from a checkpoint: {_told(started, list(trained))}."] if started else []
    yield from [" ".join(line)] if line else []


def _unlike_settings(configs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The settings that trainings differ in, each with its range where it is a number; a record from before a setting
    was there has its default."""
    for key, default in TrainingConfig().model_dump(mode="json").items():
        values = [config.get(key, default) for config in configs]
        if key in ("steps", "tuned_trials") or all(value == values[0] for value in values):
            continue
        numbers = all(type(value) in (int, float) for value in values)
        yield f"{key.replace('_', ' ')}{f' {min(values):g} to {max(values):g}' if numbers else ''}"


def _easier_line(rows: dict[str, Row]) -> Iterable[str]:
    ended: dict[str, list[str]] = {}
    for label, row in rows.items():
        for record in row.records:
            if record.training is not None and (stage := record.training.unfinished_curriculum):
                ended.setdefault(stage, []).append(label)
    for stage, labels in ended.items():
        yield f"Never trained on the task itself, but ended in {stage}: {_told(labels, list(rows))}."
    elsewhere: dict[str, list[str]] = {}
    for label, row in rows.items():
        for task in dict.fromkeys(record.trained_elsewhere for record in row.records):
            elsewhere.setdefault(task, []).append(label)
    for task in filter(None, elsewhere):
        yield f"Not trained on this task, but on {task}: {_told(elsewhere[task], list(rows))}."


def _machine_line(records: Sequence[RunRecord]) -> str:
    machines, codes = {}, {}  # dicts, since sets would lose the order
    for record in records:
        machine, code = record.environment, record.code
        threads = f"{machine.threads} thread{'s' * (machine.threads != 1)}"
        batch = record.costs.batch_size
        shared = record.training.processes if record.training else 1
        trained = f"trained by {shared} processes, " if shared > 1 else ""
        machines[f"{machine.device}, {machine.dtype}, {threads}, {trained}evaluated {batch} at a time"] = None
        commit = f" ({code.commit[:10]}{', changed' if code.dirty else ''})" if code.commit else ""
        codes[f"{code.version}{commit}"] = None
    unlike = " (unlike, so times do not compare)" if len(machines) > 1 else ""
    return f"gradmem-bench {' and '.join(codes)} on {'; '.join(machines)}{unlike}."

"""What example rows add up to: every metric with its interval, and the seal that tells whether they were changed."""

import json
from collections.abc import Iterable, Sequence
from hashlib import sha256

from gradmem_bench.metrics import METRICS
from gradmem_bench.results.schema import ExampleRow, MetricResult, RunRecord, Seal, TaskRecord
from gradmem_bench.statistics import estimate


def metric_results(rows: Sequence[ExampleRow]) -> dict[str, MetricResult]:
    """Every metric over the rows, clustered by context. One that belongs to a context counts once for each.

    That of unseen queries is there where some were seen.
    """
    results = {}
    for name, metric in METRICS.items():
        counted = [row for row in rows if getattr(row, name) is not None]
        if name == "reconstruction_nats_per_token":
            counted = list({row.context_id: row for row in counted}.values())
        if not counted or (name == "unseen_exact_match" and len(counted) == len(rows)):
            continue
        values = [float(getattr(row, name)) for row in counted]
        result = estimate(values, [row.context_id for row in counted], metric.kind)
        results[name] = MetricResult(**result.model_dump(), version=metric.version)
    return results


def primary_metric(records: Iterable[RunRecord]) -> str:
    """The metric that the task of these records is scored with, by which they are ranked, compared and drawn.

    The task's own, where it has one; of text F1, where an accepted answer has several words; else exact match. Records
    that do not say how long answers are have F1 where it differs from exact match.
    """
    records = list(records)
    if any(record.task.own_metric and "task_score" in record.metrics for record in records):
        return "task_score"
    text = [record.metrics for record in records if record.task.normalized_answers]
    told = [record.task.answer_words for record in records if record.task.answer_words is not None]
    if told:
        more = bool(text) and max(told) > 1
    else:
        more = any("f1" in found and found["f1"].value != found["exact_match"].value for found in text)
    return "f1" if more else "exact_match"


def metric_title(name: str, task: TaskRecord) -> str:
    """What a table calls a metric: `exact match`, `F1`, or the name of the task's own."""
    if name == "task_score":
        return task.own_metric or "task score"
    return {"f1": "F1"}.get(name, name.replace("_", " "))


def seal(rows: Sequence[ExampleRow], record: RunRecord) -> Seal:
    """The fingerprints of `rows`, of the data that `record` says they are from, and of all that it says but its seal.

    The order of rows and of keys is of no account, nor is how a number is written (2048, 2048.0).
    """
    task, source = record.task, record.task.source
    where = json.dumps([source.location, source.revision, source.content_hash, source.rows, task.split])
    # A column or a field that a later version adds has a default, and must not break the seals of before.
    lines = sorted(row.model_dump_json(exclude_defaults=True) for row in rows)
    # What was asked, whatever was answered.
    asked = sorted(json.dumps([row.example_id, row.context_id, row.targets]) for row in rows)
    # As it is written, and read again: then it is the same before there is a file and after.
    said = json.loads(record.model_dump_json(exclude={"seal"}, exclude_defaults=True))
    return Seal(
        rows=len(rows),
        rows_hash=_hash(lines),
        data_hash=_hash([where, *asked]),
        record_hash=_hash([json.dumps(said, sort_keys=True)]),
    )


def _hash(lines: Iterable[str]) -> str:
    return sha256("\n".join(lines).encode()).hexdigest()

"""Runs whose record and rows belong together, for the tests of whatever publishes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from records import TASK, TRAINING, example_row, run_record

from gradmem_bench.config import fingerprint
from gradmem_bench.results import (
    ExampleLog,
    ExampleRow,
    Measured,
    MeasuredFootprint,
    RunRecord,
    metric_results,
    read_examples,
    read_record,
    seal,
    write_record,
)

CONTEXTS, QUERIES = 20, 3


def rows_of(right: int, state_bytes: int = 2048, positions: int = 8) -> list[ExampleRow]:
    """So many of 60 answers right, three of each of 20 contexts; what is wrong shares one of two characters."""
    rows = []
    for index in range(CONTEXTS * QUERIES):
        hit = index * 7 % (CONTEXTS * QUERIES) < right  # 7 is prime to 60: the right ones are spread
        rows.append(
            example_row(
                f"test-{index // QUERIES}-{index % QUERIES}",
                prediction="Qz" if hit else "Q-",
                exact_match=hit,
                f1=1.0 if hit else 0.5,
                teacher_forced_exact_match=hit,
                token_accuracy=1.0 if hit else 0.5,
                target_bits_per_token=0.125 if hit else 2.5,
                reconstruction_nats_per_token=1.5 + 0.125 * (index // QUERIES),
                state_bytes=state_bytes,
                read_positions=positions,
            )
        )
    return rows


def write_run(
    folder: Path,
    method: str = "gradmem",
    right: int = 45,
    role: str = "method",
    state_bytes: int = 2048,
    positions: int = 8,
    seed: int = 0,
    sealed: bool = True,
    **changes: Any,
) -> RunRecord:
    """A run's folder as an evaluation leaves it; `changes` replace fields of the record."""
    rows = rows_of(right, state_bytes, positions)
    log = ExampleLog(folder)
    log.append(rows)
    log.finish()
    size = {"contexts": CONTEXTS, "queries": len(rows), "limit": CONTEXTS}
    task = changes.pop("task", TASK).model_copy(update=size)

    def constant(value: float) -> Measured:
        return Measured(mean=value, min=value, max=value)

    values = {
        "run_id": f"{task.name}-{method}-{right}-{state_bytes}-{seed}",
        "config_hash": fingerprint([task.name, method, right, state_bytes, seed]),
        "task": task,
        "metrics": metric_results(rows),
        "footprint": MeasuredFootprint(
            state_bytes=constant(state_bytes),
            read_positions=constant(positions),
            read_kv_bytes=constant(positions * 1024),
            context_tokens=25.0,
            bytes_per_context_token=state_bytes / 25,
        ),
        "training": TRAINING.model_copy(update={"seed": seed}),
    }
    record = run_record(method, role, **(values | changes))
    if sealed:
        record = record.model_copy(update={"seal": seal(rows, record)})
    write_record(record, folder)
    return record


def seal_again(folder: Path) -> None:
    """Seals what `folder` holds now, as if it had been made like that."""
    record = read_record(folder / "run.json")
    write_record(record.model_copy(update={"seal": seal(read_examples(folder), record)}), folder)


def edit(folder: Path, change: Callable[[dict], Any]) -> None:
    """Changes the values in `folder/run.json` by hand."""
    path = folder / "run.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def rewrite(folder: Path, rows: list[ExampleRow]) -> None:
    """Puts other rows into `folder/examples.parquet`."""
    (folder / "examples.parquet").unlink()
    log = ExampleLog(folder)
    log.append(rows)
    log.finish()

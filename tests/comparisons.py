"""Tables of records, for the tests of whatever stands in them."""

import io
import json
from pathlib import Path

import numpy as np
from commands import command
from rich.console import Console

from gradmem_bench.reporting.comparison import comparison
from gradmem_bench.reporting.tables import to_rich
from gradmem_bench.results import find_records, read_examples


def tables(folder: Path, **options):
    records = find_records([folder])
    places = {record.run_id: path.parent for path, record in records.items()}
    return comparison(records.values(), examples=lambda record: read_examples(places[record.run_id]), **options)


def drawn(table, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(to_rich(table, width))
    return console.file.getvalue()


def compared_rows(*arguments) -> dict[str, dict]:
    """What `compare --format json` says of the rows of one table."""
    done = command("compare", *arguments, "--format=json")
    assert (done.code, done.errors) == (0, "")
    [table] = json.loads(done.output)
    return {row["label"]: row for row in table["rows"] if row["exact_match"] is not None}


def answers(score: float, count: int, seed: int, difficulty=None) -> np.ndarray:
    """Right and wrong answers: half of what makes a query hard is in `difficulty`, the same for all methods."""
    noise = np.random.default_rng(seed).normal(size=count)
    hard = noise if difficulty is None else (noise + difficulty) / np.sqrt(2)
    return hard <= np.quantile(hard, score)


def changed(model, **changes):
    return model.model_copy(update=changes)


def caption(table) -> str:
    return "\n".join(table.caption)

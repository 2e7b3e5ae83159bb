"""A small task and memories that were trained on it, for lm-eval."""

from pathlib import Path

import pytest
from commands import TRAINING, command

from gradmem_bench.results import find_records

TASKS = Path(__file__).parents[2] / "tasks"


@pytest.fixture(scope="package")
def pairs(tmp_path_factory) -> Path:
    """Two pairs over eight symbols, declared by including the shipped file."""
    path = tmp_path_factory.mktemp("pairs") / "two_pairs.yaml"
    path.write_text(
        f"include: {TASKS / 'kv_retrieval.yaml'}\ntask: two_pairs\ndataset_kwargs:\n"
        "  {pairs: 2, key_length: 1, value_length: 1, alphabet: 8, test_contexts: 70}\n"
    )
    return path


@pytest.fixture(scope="package")
def runs(pairs, tmp_path_factory) -> dict:
    """Runs of three methods on it, trained a little: method's name -> (record, folder)."""
    output = tmp_path_factory.mktemp("runs")
    done = command(
        "run",
        *(f"--method={name}" for name in ("gradmem", "truncated_text", "full_kv")),
        f"--task={pairs}",
        "--backbone=llama-1x32",
        "--budget=512B",
        *TRAINING,
        f"--output={output}",
    )
    assert (done.code, done.errors) == (0, "")
    return {record.method.name: (record, path.parent) for path, record in find_records([output]).items()}

"""Checkpoints that are published beside their records: loaded, they give the published rows again."""

import json
from pathlib import Path

import pytest
from commands import command

from gradmem_bench.checkpoints import METHOD_FILE
from gradmem_bench.results import find_records, read_examples, read_record

BOARD = Path(__file__).parents[1] / "leaderboards"
FOLDERS = [path.parent for path in sorted(BOARD.rglob(METHOD_FILE), key=lambda path: path.stat().st_size)]


# The smallest: the others are of models that a CPU evaluates in minutes.
@pytest.mark.parametrize("folder", FOLDERS[:1], ids=lambda folder: folder.name)
def test_a_published_checkpoint_gives_its_published_number_again(folder, tmp_path):
    published = read_record(folder / "run.json")
    task = [f"--set=task.{key}={json.dumps(value)}" for key, value in published.task.settings.items()]
    limit = [] if published.task.limit is None else [f"--limit={published.task.limit}"]
    done = command(
        "run", "--method", published.method.name, "--task", published.task.name, "--load", folder, *task, *limit,
        "--seed", "7", "--device", "cpu", "--output", tmp_path,
    )  # fmt: skip
    assert (done.code, done.errors) == (0, "")
    [(path, again)] = find_records([tmp_path]).items()
    assert published.method.parameters.items() <= again.method.parameters.items()
    # What the training cost came with the weights.
    assert again.training == published.training
    rows = {row.example_id: row for row in read_examples(path.parent)}
    wanted = read_examples(folder)
    assert set(rows) == {row.example_id for row in wanted} and len(rows) == published.task.queries
    for row in wanted:
        bits = rows[row.example_id].target_bits_per_token
        assert bits == pytest.approx(row.target_bits_per_token, rel=0.02, abs=0.02)
    # Arithmetic differs from machine to machine in the last digits, which may decide where two answers are as likely.
    others = sum(rows[row.example_id].prediction != row.prediction for row in wanted)
    assert others <= len(wanted) / 200
    for name, metric in published.metrics.items():
        assert again.metrics[name].value == pytest.approx(metric.value, abs=0.005), name


def test_there_is_a_published_checkpoint():
    if not BOARD.is_dir():
        pytest.skip("needs a checkout with its leaderboards/")
    assert FOLDERS

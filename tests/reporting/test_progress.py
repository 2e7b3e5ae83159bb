"""What is said of a run when it is done."""

import io

import pytest
from records import TASK, write_run
from rich.console import Console

from gradmem_bench.reporting.progress import RunDisplay


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ([0.5, 1.5, 0.5, 2.5], "points 1.250 ["),
        ([-0.5, -1.5, -0.5, -2.5], "points −1.250 [−"),
        ([0.5, float("nan"), 0.5, float("inf")], "points – (2 of 4 values are not finite), n = 4 · swap test passed"),
    ],
)
def test_a_score_is_said_as_in_the_tables_and_one_that_is_none_with_its_reason(tmp_path, own, words):
    task = TASK.model_copy(update={"own_metric": "points"})
    record = write_run(tmp_path, [True, False, True, False], own=own, task=task)
    console = Console(file=io.StringIO(), width=200)
    RunDisplay(console).finished(record, tmp_path)
    assert console.file.getvalue().splitlines()[0].strip().startswith(words)

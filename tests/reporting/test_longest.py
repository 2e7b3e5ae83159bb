"""The longest context at which a score is reached, by its mean and by both of its bounds."""

from io import StringIO

import pytest
from records import write_run
from rich.console import Console

from gradmem_bench.paper import PaperFigure, PaperRow
from gradmem_bench.reporting.longest import reached
from gradmem_bench.reporting.reproductions import Line, rows_report
from gradmem_bench.reproduction import Longest

LONGEST = Longest(sizes={"words_8": 8, "words_16": 16, "words_32": 32}, at=[0.95, 0.999])


@pytest.fixture
def table(tmp_path) -> list[Line]:
    """100 of 100, 96 of 100 and 90 of 100 right, for 8, 16 and 32 words."""
    lines = []
    for task, wrong in {"words_8": 0, "words_16": 4, "words_32": 10}.items():
        folder = tmp_path / task
        record = write_run(folder, [index >= wrong for index in range(100)])
        lines.append(Line("GradMem", {"memory_vectors": 1}, [0], {0: (folder / "run.json", record)}, task=task))
        lines[-1].paper_name = "GradMem 1B"
    return lines


def test_a_length_is_reached_by_the_mean_and_by_each_bound(table):
    # 95 % of 96 of 100 begins below 0.95 and ends above it; that of 100 of 100 begins at 0.96.
    row = PaperRow(
        method="GradMem 1B",
        task="words",
        setting={"memory_vectors": 1},
        metric="longest N with exact_match of 0.95 or more",
        value=32,
    )
    first, second = reached(table, "exact_match", LONGEST, PaperFigure(figure="f", rows=(row,)))
    assert (first.size, first.bounds) == (16, (8, 16)) and first.paper == row
    assert first.cells == ["GradMem", "m 1", "0.95", "16 [8, 16]", "32", "-16"]
    # No more than a perfect score reaches 0.999, and what is published of 0.95 is not beside it.
    assert (second.size, second.bounds) == (8, (None, 8)) and second.cells[3:] == ["8 [none, 8]", "–", "–"]


def test_the_longest_that_is_run_may_not_be_the_longest_that_is_reached(table):
    row = {"method": "GradMem 1B", "task": "words", "setting": {"memory_vectors": 1}, "value": 32}
    paper = PaperFigure(figure="f", rows=(PaperRow(**row, metric="longest N with exact_match of 0.95 or more"),))
    first, second = reached(table[:2], "exact_match", LONGEST, paper)
    assert first.cells[3:] == ["≥ 16 [8, ≥ 16]", "32", "–"] and second.cells[3] == "8 [none, 8]"


def test_nothing_is_said_of_lengths_of_which_one_was_not_run(table):
    table[1].records.clear()
    assert [one.cells[3] for one in reached(table, "exact_match", LONGEST, None)] == ["missing", "missing"]
    # A row of a task that has no length is none of them.
    table[1].task = "another"
    assert [one.size for one in reached(table, "exact_match", LONGEST, None)] == [8, 8]


def test_bounds_that_are_not_known_are_no_bounds(table):
    path, record = table[0].records[0]
    unknown = record.metrics["exact_match"].model_copy(update={"low": None, "high": None})
    table[0].records[0] = path, record.model_copy(update={"metrics": record.metrics | {"exact_match": unknown}})
    assert [one.cells[3] for one in reached(table, "exact_match", LONGEST, None)] == ["16 [–, –]", "8 [–, –]"]


def test_rows_of_several_tasks_stand_below_the_name_of_each(table):
    file = StringIO()
    mixed = [table[0], table[2], Line("RMT", {}, [0], {}, task="words_8")]
    Console(file=file, width=80).print(rows_report(mixed, "exact_match", 0.9))
    first = [line.split()[0] for line in file.getvalue().split("each seed")[0].splitlines() if line.strip()]
    assert first[2:6] == ["words_8", "GradMem", "RMT", "words_32"]
    alone = StringIO()
    Console(file=alone, width=80).print(rows_report(table[:1], "exact_match", 0.9))
    assert "words_8" not in alone.getvalue()

"""Ours beside the published: rows, heat maps and the intervals over seeds."""

from io import StringIO

import pytest
from comparisons import changed
from records import write_run
from rich.console import Console

from gradmem_bench.paper import PaperRow
from gradmem_bench.reporting.comparison import comparison
from gradmem_bench.reporting.reproductions import Line, _grid, heat_map, heat_map_report, rows_report
from gradmem_bench.results import read_examples


def test_published_numbers_have_rows_where_there_are_any():
    published = PaperRow(method="a", task="t", metric="exact_match", value=0.25, source="A paper")
    shown = []
    for paper in (published, None):
        table = [Line("a", {"evaluation_inner_steps": steps}, [0], {}) for steps in (1, 2)]
        table[0].paper = paper
        console = Console(file=StringIO(), width=80)
        console.print(heat_map_report(table, "exact_match"), rows_report(table, "exact_match", 0.9))
        shown.append(console.file.getvalue())
    beside, alone = shown
    heat, rows = beside.split("method")[:2]
    assert [line.split() for line in heat.splitlines() if "paper" in line] == [["paper", "0.25", "–"]]
    assert "paper [± sd]" in rows and "0.250" in rows
    assert "paper" not in alone and "difference" not in alone


def test_a_number_stays_in_one_line_beside_a_long_name():
    file = StringIO()
    row = ["A method of rather a long name, cached", "pairs 16, K 30", "0.968 [0.96, 0.98]", "1.000 [1.00, 1.00]", "–"]
    Console(file=file, width=80).print(_grid(["method", "setting", "ours", "paper", "difference"], [row]))
    assert "0.968 [0.96, 0.98]  1.000 [1.00, 1.00]" in file.getvalue()


def test_an_interval_over_seeds_is_that_of_compare(tmp_path):
    line, hits = Line("GradMem", {}, [0, 1, 2], {}), {0: 7, 1: 9, 2: 4}
    for seed, count in hits.items():
        folder = tmp_path / f"gradmem-{seed}"
        record = write_run(folder, [index % 10 < count for index in range(200)], queries=4, seed=seed)
        line.records[seed] = folder / "run.json", record
    records = [record for _, record in line.records.values()]
    (table,) = comparison(records, examples=lambda record: read_examples(tmp_path / record.run_id))
    (row,) = table.rows
    assert row.result.value == pytest.approx(20 / 30)
    assert line.interval("exact_match") == (row.result.low, row.result.high)
    # Three seeds this far apart say little of a fourth: t with 2 degrees of freedom.
    assert row.result.low < 0.4 and row.result.high > 0.9
    alone, exact = Line("GradMem", {}, [0], {0: line.records[0]}), records[0].metrics["exact_match"]
    assert alone.interval("exact_match") == (exact.low, exact.high)
    assert Line("GradMem", {}, [0], {}).interval("exact_match") is None
    # A heat map has the same one, beneath the mean.
    line.setting = {"evaluation_inner_steps": 2}
    file = StringIO()
    Console(file=file, width=80).print(heat_map_report([line], "exact_match"))
    shown = [text.split() for text in file.getvalue().splitlines()]
    assert ["mean", "0.67"] in shown
    assert [
        ["95", "%", side, f"{value:.2f}"] in shown
        for side, value in zip(("low", "high"), line.interval("exact_match"), strict=True)
    ] == [True, True]


def test_the_state_that_write_begins_with_has_a_column_where_every_seed_has_tried_it(tmp_path):
    def shown(*scores: float | None) -> list[list[str]]:
        line = Line("GradMem", {}, [*range(len(scores))], {})
        for seed, score in enumerate(scores):
            record = write_run(tmp_path / str(seed), [True] * 20, seed=seed)
            swap = record.swap_test.model_copy(update={"blank_score": score})
            line.records[seed] = tmp_path / str(seed) / "run.json", changed(record, swap_test=swap)
        file = StringIO()
        Console(file=file, width=80).print(rows_report([line], "exact_match", 0.9))
        return [text.split() for text in file.getvalue().splitlines()]

    both = shown(0.25, 0.5)
    (header,) = (words for words in both if "foreign" in words and "method" in words)
    assert header[-1] == "blank"
    assert [words[-1] for words in both if words[:2] == ["GradMem", "1.00"]] == ["0.38"]
    assert not any("blank" in words for words in shown(None, 0.5))


def test_a_method_without_the_metric_has_a_dash_and_one_that_was_not_run_is_missing(tmp_path):
    record = write_run(tmp_path / "cache", [True] * 40)
    table = [Line("cache", {}, [0], {0: (tmp_path / "cache" / "run.json", record)}), Line("GradMem", {}, [0], {})]
    file = StringIO()
    Console(file=file, width=80).print(rows_report(table, "unseen_exact_match", 0.9))
    shown = [text.split()[:2] for text in file.getvalue().splitlines() if text.startswith(("cache", "GradMem"))]
    assert shown == 2 * [["cache", "–"], ["GradMem", "missing"]]
    assert table[0].interval("unseen_exact_match") is None


def test_the_tasks_of_a_heat_map_stand_apart():
    table = [
        Line("GradMem", {"pairs": 2, "evaluation_inner_steps": steps}, [0], {}, task=task)
        for task in ("a", "b")
        for steps in (1, 2)
    ]
    assert {block: list(steps) for block, steps in heat_map(table).items()} == {
        ("GradMem", "task a, pairs 2"): [1, 2],
        ("GradMem", "task b, pairs 2"): [1, 2],
    }
    assert list(heat_map(table[:2])) == [("GradMem", "pairs 2")]

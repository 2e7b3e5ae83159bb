import csv
import io
import json

import pytest
from records import BACKBONE, PASSED, TASK, TRAINING, demo_records, measured_costs, metric, run_record
from rich.console import Console

from gradmem_bench.config import Budget
from gradmem_bench.errors import UserError
from gradmem_bench.reporting.comparison import comparison
from gradmem_bench.reporting.formats import to_csv, to_json, to_markdown
from gradmem_bench.reporting.tables import to_rich
from gradmem_bench.results import Capacity


def changed(model, **changes):
    return model.model_copy(update=changes)


def drawn(table, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(to_rich(table, width))
    return console.file.getvalue()


def caption(table) -> str:
    return "\n".join(table.caption)


def test_rows_stand_from_ceiling_to_floor_and_are_normalised_between_them():
    [table] = comparison(demo_records())
    assert [row.label for row in table.rows] == ["full_kv", "gradmem", "rmt", "truncated_text", "no_memory"]
    scores = [row.normalized_score for row in table.rows]
    assert scores == pytest.approx([1, (473 - 34) / 477, (391 - 34) / 477, (261 - 34) / 477, 0])
    assert "floor no_memory 0.066, ceiling full_kv 0.998" in caption(table)
    assert "512 queries on 128 contexts (generated, hash 9e8d7c6b5a9e)" in caption(table)
    assert "Seeds were not varied (seed 0): those intervals say nothing of another seed." in table.caption
    assert "Not trained alike: steps 400 to 1,000." in table.caption


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_every_number_is_readable_at_every_width(width):
    [table] = comparison([*demo_records(), run_record("a_method_of_rather_long_name", right=100)])
    text = drawn(table, width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text
    for cell in ("0.924 [0.901, 0.942]", "0.920", "2 KiB", "~25 KiB", "~21 B", "4.1", "1.3", "1,000, 71 s"):
        assert cell in text
    for header in ("[95 % interval]", "norm.", "READ KV", " WRITE ", "steps, time"):
        assert text.count(header) == 1
    assert sum(line.startswith("rmt ") for line in text.splitlines()) == (1 if width >= 120 else 2), text


def test_without_floor_or_ceiling_nothing_is_normalised_and_that_is_said():
    records = demo_records()
    [table] = comparison([record for record in records if record.method.role != "ceiling"])
    assert {row.normalized_score for row in table.rows} == {None}
    assert "No ceiling among these records, so scores are not normalised." in table.caption
    [line] = [line for line in to_markdown([table]).splitlines() if line.startswith("| gradmem ")]
    assert line.split("|")[3].strip() == "–"
    [table] = comparison([record for record in records if record.method.role == "method"])
    assert "No floor and no ceiling among" in caption(table)
    # A ceiling that was hardly trained may lie below the floor.
    [table] = comparison([run_record("no_memory", "floor", 40), run_record("full_kv", "ceiling", 30)])
    assert {row.normalized_score for row in table.rows} == {None}
    assert "The ceiling is not above the floor" in caption(table)


def test_of_several_floors_the_best_counts():
    better = run_record("no_memory", "floor", 60, run_id="better", training=changed(TRAINING, seed=1))
    [table] = comparison([*demo_records(), better])
    by_label = {row.label: row.normalized_score for row in table.rows}
    assert by_label["gradmem"] == pytest.approx((473 - 60) / (511 - 60))
    assert by_label["no_memory (seed 0)"] < 0 == by_label["no_memory (seed 1)"]
    assert "floor no_memory (seed 1) 0.117, ceiling full_kv 0.998, the best of several" in caption(table)
    assert "One seed a row (0, 1): those intervals say nothing of another seed." in table.caption


def test_records_of_one_method_are_told_apart_by_as_little_as_will_do():
    def labels(*records):
        return sorted(row.label for row in comparison(records)[0].rows)

    first, second = run_record(right=400), run_record(right=300, training=changed(TRAINING, seed=1))
    assert labels(first, second) == ["gradmem (seed 0)", "gradmem (seed 1)"]
    steps = [run_record(parameters={"inner_steps": steps, "rate": 2.0}) for steps in (1, 5)]
    assert labels(*steps) == ["gradmem (inner_steps 1)", "gradmem (inner_steps 5)"]
    both = run_record(right=2, parameters={"inner_steps": 5, "rate": 2.0}, training=changed(TRAINING, seed=3))
    assert labels(*steps, both) == [
        "gradmem (inner_steps 1, seed 0)",
        "gradmem (inner_steps 5, seed 0)",
        "gradmem (seed 3)",
    ]
    assert labels(run_record(run_id="one"), run_record(run_id="two")) == ["gradmem (one)", "gradmem (two)"]
    assert labels(first, first.model_copy(deep=True)) == ["gradmem"], "a copy of a record is the same run"
    with pytest.raises(UserError, match="Two different records have the run id one"):
        labels(run_record(run_id="one"), run_record(run_id="one", right=3))


def source(**changes):
    return {"task": changed(TASK, source=changed(TASK.source, **changes))}


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (source(content_hash="ffff"), r"data hash \(9e8d7c6b5a9e… and ffff\)"),
        (source(revision="abc"), r"data revision \(none and abc\)"),
        ({"task": changed(TASK, version="2")}, r"task version \(1 and 2\)"),
        ({"task": changed(TASK, split="validation")}, r"split \(test and validation\)"),
        ({"task": changed(TASK, limit=None)}, r"limit \(128 and none\)"),
        ({"task": changed(TASK, settings={"pairs": 8, "alphabet": 16})}, r"task setting pairs \(4 and 8\)"),
        ({"backbone": changed(BACKBONE, weights_hash="0")}, r"backbone weights \(3fa2c1d4e53f… and 0\)"),
        (
            {"metrics": {"exact_match": changed(metric("exact_match", [0.0] * 512), version=2)}},
            r"version of exact_match \(1 and 2\)",
        ),
    ],
)
def test_what_does_not_compare_is_refused_or_set_apart(changes, difference):
    stranger = run_record("stranger", run_id="stranger-1", **changes)
    records = [*demo_records(), stranger]
    with pytest.raises(UserError, match=difference) as caught:
        comparison(records)
    assert f"{records[0].run_id} (no_memory) and stranger-1 (stranger) of task kv_retrieval" in str(caught.value)
    assert "--by config" in str(caught.value)
    tables = comparison(records, by="config")
    assert [len(table.rows) for table in tables] == [5, 1]


def test_a_method_that_is_a_language_model_itself_stands_beside_the_others():
    own = changed(BACKBONE, name="mamba-2x64", family="mamba", weights_hash="0", tokenizer="another")

    def itself(**changes):
        record = run_record("mamba", **{"right": 300, "backbone": own, **changes})
        return changed(record, method=changed(record.method, own_backbone=True))

    mamba = itself()
    for by in ("task", "config"):
        [table] = comparison([mamba, *demo_records()], by=by)
        assert [row.label for row in table.rows][1:5] == ["gradmem", "rmt", "mamba", "truncated_text"]
        assert table.title == "kv_retrieval · llama-2x64"
        assert "Backbone llama-2x64: llama, 115,008 parameters" in caption(table)
        assert "mamba is a language model itself: mamba-2x64: mamba, 115,008 parameters, weights 0." in caption(table)
    smaller = itself(right=200, backbone=changed(own, name="mamba-1x64", weights_hash="1"))
    [table] = comparison([smaller, mamba])
    assert [row.label for row in table.rows] == ["mamba (backbone mamba-2x64)", "mamba (backbone mamba-1x64)"]
    # Other data set it apart as they do any method.
    with pytest.raises(UserError, match="data hash"):
        comparison([*demo_records(), itself(**source(content_hash="ffff"))])


def test_each_task_has_its_table_and_a_wrong_by_is_named():
    other = run_record(task=changed(TASK, name="babi_qa1"))
    assert [table.title.split()[0] for table in comparison([*demo_records(), other])] == ["babi_qa1", "kv_retrieval"]
    with pytest.raises(UserError, match="--by takes task or config, not 'confg'. Did you mean 'config'"):
        comparison([], by="confg")


def test_a_swap_test_that_did_not_pass_is_marked_and_explained():
    failed = changed(PASSED, passed=False, outcome="0.600 were right with another context's state")
    untried = changed(PASSED, passed=None, outcome="not tried: it takes two contexts")
    [table] = comparison(
        [*demo_records(), run_record("leaky", right=500, swap_test=failed), run_record("single", swap_test=untried)]
    )
    text = drawn(table, 160)
    assert "leaky † " in text and "single † " not in text and "gradmem † " not in text
    assert "† leaky did not pass the swap test: 0.600 were right with another context's state." in table.caption
    assert "The swap test has no verdict on single: there was nothing above chance to lose." in table.caption


def test_a_state_over_its_budget_is_marked_by_its_largest_context():
    within = run_record("within", budget=Budget(bytes=2048, positions=8))
    over = run_record("over", state_bytes=(1000, 3000), positions=(4, 9), budget=Budget(bytes=2048, positions=8))
    [table] = comparison([within, over])
    markdown = to_markdown([table])
    assert "~1.95 KiB ‡" in markdown and "| 2 KiB |" in markdown
    notes = [line for line in table.caption if line.startswith("‡")]
    assert notes == [
        "‡ over is over its budget: up to 2.93 KiB of state where 2 KiB were allowed.",
        "‡ over is over its budget: up to 9 READ positions where 8 were allowed.",
    ]


def test_text_is_ranked_by_f1_where_it_differs():
    text_task = changed(TASK, normalized_answers=True)
    [symbols], [text] = comparison([run_record()]), comparison([run_record(task=text_task)])
    assert "F1" not in drawn(symbols, 160) and "F1" not in to_markdown([symbols])
    f1, exact = (text.rows[0].metrics[name] for name in ("f1", "exact_match"))
    assert f1.value > exact.value and text.rows[0].score == f1.value
    for shown in (drawn(text, 160), to_markdown([text])):
        assert f"{f1.value:.3f} [{f1.low:.3f}, {f1.high:.3f}]" in shown and f"{exact.value:.3f}" in shown
    assert "| F1 [95 % interval] |" in to_markdown([text]) and "| exact match [95 % interval] |" in to_markdown([text])
    assert any(line.startswith("Ranked and normalised by F1") for line in text.caption)
    hits = [1.0, 0.0] * 256
    same = {name: metric(name, hits) for name in ("exact_match", "f1")}
    assert "F1" not in to_markdown(comparison([run_record(task=text_task, metrics=same)]))


def test_what_else_differs_is_said():
    records = demo_records()
    elsewhere = changed(records[0].environment, device="cuda (NVIDIA H200)")
    cut = changed(TASK, truncated_contexts=3)
    records.append(run_record("other", environment=elsewhere, training=None, task=cut))
    records.append(run_record("tuned", training=changed(TRAINING, initial_checkpoint="runs/a", tuned_trials=40)))
    [table] = comparison(records)
    assert "(unlike, so times do not compare)" in caption(table)
    assert "Contexts cut to fit the backbone: other 3 of 128." in table.caption
    assert "tuned trials 3 to 40; not at all other" in caption(table)
    assert "Training went on from a checkpoint: tuned." in caption(table)


def test_a_missing_interval_is_explained_not_drawn_as_zero():
    record = run_record()
    single = changed(record.metrics["exact_match"], low=None, high=None, reason="all values belong to one context")
    [table] = comparison([record.model_copy(update={"metrics": {**record.metrics, "exact_match": single}})])
    assert "| gradmem | 0.781 |" in to_markdown([table])
    assert "No interval for gradmem: all values belong to one context." in table.caption


def test_csv_and_json_carry_the_numbers_unrounded():
    records = demo_records()
    tables = comparison([*records, run_record(task=changed(TASK, name="babi_qa1"), training=None)])
    rows = list(csv.DictReader(io.StringIO(to_csv(tables))))
    assert [(row["task"], row["method"]) for row in rows[:2]] == [("babi_qa1", "gradmem"), ("kv_retrieval", "full_kv")]
    gradmem = rows[2]
    assert float(gradmem["exact_match"]) == 473 / 512
    interval = records[2].metrics["exact_match"]
    assert (float(gradmem["exact_match_low"]), float(gradmem["exact_match_high"])) == (interval.low, interval.high)
    assert (gradmem["state_bytes_mean"], gradmem["train_steps"], gradmem["n_queries"]) == ("2048.0", "1000", "512")
    assert rows[0]["train_steps"] == "" and gradmem["token_accuracy"] == ""
    values = json.loads(to_json(tables), parse_constant=pytest.fail)
    assert values[1]["rows"][1]["exact_match"] == 473 / 512
    assert values[1]["rows"][1]["token_accuracy"] is None
    assert values[1]["caption"] == list(tables[1].caption)


def test_markdown_is_a_grid_of_equal_rows():
    markdown = to_markdown(comparison([*demo_records(), run_record("a|b", right=3)]))
    lines = [line.replace(r"\|", "") for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 6
    assert len({line.count("|") for line in lines}) == 1


def test_costs_and_capacity_have_their_columns_and_what_is_missing_is_shown_as_missing():
    def whole(method: str, right: int, flops: float | None, **more):
        trained = changed(TRAINING, flops=2.5e12)
        record = run_record(method, right=right, costs=measured_costs(flops), training=trained, **more)
        known = Capacity.of(4, 4.0, record.metrics["exact_match"], 2048.0)
        return changed(record, capacity=known)

    records = [whole("gradmem", 512, 3.1e9), whole("rmt", 32, None), run_record("older")]
    [table] = comparison(records)
    text = drawn(table, 80)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    # All four values of four bits, in 2,048 bytes; at 1 of 16 nothing is known of them.
    rows = {row["method"]: row for row in json.loads(to_json([table]))[0]["rows"]}
    assert rows["gradmem"]["recalled_bits"] == 16 and rows["gradmem"]["recalled_bits_per_state_byte"] == 16 / 2048
    assert rows["rmt"]["recalled_bits_per_state_byte"] == 0 and rows["older"]["recalled_bits_per_state_byte"] is None
    assert rows["gradmem"]["write_phase_flops"] == 3.1e9 and rows["gradmem"]["train_flops"] == 2.5e12
    assert (rows["rmt"]["write_phase_flops"], rows["rmt"]["write_phase_flops_reason"]) == (None, "not counted")
    assert rows["older"]["write_phase_flops_reason"] == "the phases were not measured apart"
    lines = to_markdown([table]).splitlines()
    header, gradmem, rmt, older = (
        [cell.strip() for cell in next(line for line in lines if line.startswith(f"| {name} ")).split("|")]
        for name in ("method", "gradmem", "rmt", "older")
    )
    at = {name: header.index(name) for name in ("WRITE FLOPs", "training FLOPs", "recalled bits per state byte")}
    assert [gradmem[place] for place in at.values()] == ["3.1 G", "2.5 T", "0.0078"]
    assert [rmt[place] for place in at.values()] == ["–", "2.5 T", "0"]
    assert [older[place] for place in at.values()] == ["–", "–", "–"]
    assert "3.1 G" in text and "2.5 T" in text and "0.0078" in text
    assert "FLOPs are not known for older: the phases were not measured apart." in table.caption
    assert "FLOPs are not known for rmt: not counted." in table.caption
    assert any(line.startswith("A context holds 4 values of 4 bits each.") for line in table.caption)
    assert "bits/" not in drawn(comparison(demo_records())[0], 80)

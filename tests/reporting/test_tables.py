import csv
import io
import json
from pathlib import Path

import pytest
from comparisons import caption, changed, drawn, tables
from records import ENVIRONMENT, PASSED, TASK, TRAINING, demo_records, measured_costs, metric, run_record, write_run

from gradmem_bench.config import Budget
from gradmem_bench.reporting.comparison import comparison
from gradmem_bench.reporting.formats import to_csv, to_json, to_latex, to_markdown
from gradmem_bench.reporting.rows import recipe
from gradmem_bench.results import Capacity, read_examples


def test_rows_stand_from_ceiling_to_floor_and_are_normalised_between_them():
    [table] = comparison(demo_records())
    assert [row.label for row in table.rows] == ["full_kv", "gradmem", "rmt", "truncated_text", "no_memory"]
    scores = [row.normalized_score for row in table.rows]
    assert scores == pytest.approx([1, (473 - 34) / 477, (391 - 34) / 477, (261 - 34) / 477, 0])
    assert "floor no_memory 0.066, ceiling full_kv 0.998" in caption(table)
    assert "512 queries on the first 128 contexts (generated, hash 9e8d7c6b5a9e)" in caption(table)
    assert "Seeds were not varied (seed 0): those intervals say nothing of another seed." in table.caption
    assert "Not trained alike: steps 400 to 1,000." in table.caption


def test_a_caption_tells_the_whole_split_from_its_first_contexts():
    whole = [changed(record, task=changed(record.task, limit=None)) for record in demo_records()]
    [table] = comparison(whole)
    assert "512 queries on 128 contexts (" in caption(table)


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


def test_what_is_said_of_many_rows_names_those_that_it_is_not_said_of():
    tuned = [run_record(f"m{n}", training=changed(TRAINING, initial_checkpoint="runs/a")) for n in range(5)]
    [table] = comparison([*tuned, run_record("plain")])
    assert "Training went on from a checkpoint: all but plain." in caption(table)
    [table] = comparison([*tuned, *(run_record(f"plain{n}") for n in range(5))])
    assert "Training went on from a checkpoint: 5 of 10 rows." in caption(table)


def test_of_several_tests_each_is_named_with_the_metric_that_it_was_of():
    [table] = tables(Path(__file__).parents[2] / "leaderboards" / "squad", baseline="rmt")
    assert (
        "p by sign flips by context, 20,000 drawn for F1; exact sign flips by context for exact match; "
        "corrected for the 5 comparisons of this table (Holm)."
    ) in caption(table)


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


def test_a_metric_without_a_value_is_shown_as_missing_and_why():
    def without(record, **more):
        exact = changed(record.metrics["exact_match"], value=None, **more)
        known = Capacity.of(4, 4.0, exact, 2048.0)
        return changed(record, metrics=record.metrics | {"exact_match": exact}, capacity=known)

    reason = {"low": None, "high": None, "reason": "there are no values"}
    others = without(run_record("rmt")), without(run_record("mean_pool"), **reason)
    floor = without(run_record("no_memory", "floor"))
    [table] = comparison([run_record(), *others, floor, run_record("full_kv", "ceiling", 511)])
    assert {row.label: row.score for row in table.rows if row.score is None} == {
        "rmt": None, "mean_pool": None, "no_memory": None
    }  # fmt: skip
    assert "No floor with a score among these records, so scores are not normalised." in table.caption
    assert "No exact match for rmt, no_memory: its record has none." in table.caption
    assert "No exact match for mean_pool: there are no values." in table.caption
    assert "| rmt | – | – | 0.781 |" in to_markdown([table])
    assert "rmt & -- & -- &" in to_latex([table]) and "rmt " in drawn(table, 80)
    row = next(row for row in csv.DictReader(io.StringIO(to_csv([table]))) if row["method"] == "rmt")
    assert {row[name] for name in ("exact_match", "exact_match_low", "exact_match_by_seed", "recalled_bits")} == {""}
    assert row["exact_match_interval"] == "its record has none"
    assert json.loads(to_json([table]))[0]["rows"][1]["score_by_seed"] == "0.78125"


def test_what_states_are_stored_as_is_said_where_it_is_not_what_they_were_computed_in():
    def stored(method, dtype, **more):
        record = run_record(method, **more)
        return changed(record, footprint=changed(record.footprint, state_dtype=dtype))

    half = {"environment": changed(ENVIRONMENT, dtype="bfloat16")}
    for records, line in [
        ([stored("mean_pool", "int8")], "States stored as int8: mean_pool."),
        ([stored("a", "int8"), stored("b", "int4"), stored("c", "int8")], "States stored as int8: a, c; as int4: b."),
        ([stored("a", "bfloat16")], "States stored as bfloat16: a."),
        ([stored("a", "float32"), stored("b", "bfloat16", **half)], None),
    ]:
        [table] = comparison(records)
        assert [one for one in table.caption if one.startswith("States stored")] == ([line] if line else [])
        rows = list(csv.DictReader(io.StringIO(to_csv([table]))))
        assert {row["method"]: row["state_dtype"] for row in rows} == {
            one.method.name: one.footprint.state_dtype for one in records
        }
    [table] = comparison([stored("mean_pool", "int8")])
    for text in (drawn(table, 80), to_markdown([table]), to_latex([table]), to_json([table])):
        assert "int8" in text


def test_one_row_was_not_trained_alike():
    assert "Trained alike." in caption(comparison([run_record(), run_record("rmt")])[0])
    assert "rained alike" not in caption(comparison([run_record()])[0])
    [table] = comparison([run_record(training=changed(TRAINING, initial_checkpoint="runs/a"))])
    assert "Training went on from a checkpoint: gradmem." in table.caption
    # What a record does not say was as it is by default: a learning rate of 3e-4.
    other = changed(TRAINING, config={"steps": 1000, "schedule": "cosine"})
    [table] = comparison([run_record(), run_record("rmt", training=other)])
    assert "Not trained alike: learning rate 0.0003 to 0.001; schedule." in table.caption


def test_weights_of_another_task_are_another_recipe_and_said():
    first, second = (run_record(run_id=f"seed {seed}", training=changed(TRAINING, seed=seed)) for seed in (0, 1))
    assert recipe(first, {}) == recipe(second, {}) and "Not trained on" not in caption(comparison([first, second])[0])
    second = second.model_copy(update={"trained_elsewhere": "kv_retrieval (pairs 2)"})
    assert recipe(first, {}) != recipe(second, {})
    assert "Not trained on this task, but on kv_retrieval (pairs 2): " in caption(comparison([first, second])[0])


def test_a_negative_score_has_the_sign_of_a_difference():
    [table] = comparison([*demo_records(), run_record("worse", right=20)])
    assert "| worse | 0.039 [0.026, 0.059] | −0.029 |" in to_markdown([table])
    assert "−0.029" in drawn(table, 80) and "-0.029" not in drawn(table, 80)
    row = next(row for row in csv.DictReader(io.StringIO(to_csv([table]))) if row["method"] == "worse")
    assert float(row["normalized_score"]) == pytest.approx((20 - 34) / 477)


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


def test_a_row_of_several_seeds_tells_where_each_was_run_and_whether_one_was_of_changed_code(tmp_path):
    two = [write_run(tmp_path / f"gradmem-{seed}", [True, False] * 20, queries=4, seed=seed) for seed in (0, 1)]
    two[1] = changed(two[1], environment=changed(ENVIRONMENT, device="cuda"), code=changed(two[1].code, dirty=True))
    made = comparison(two, examples=lambda record: read_examples(tmp_path / record.run_id))
    [row] = csv.DictReader(io.StringIO(to_csv(made)))
    assert (row["n_seeds"], row["device"], row["code_dirty"]) == ("2", f"{ENVIRONMENT.device}; cuda", "True")
    assert row["code_commit"] == two[0].code.commit


def test_markdown_is_a_grid_of_equal_rows():
    markdown = to_markdown(comparison([*demo_records(), run_record("a|b", right=3)]))
    lines = [line.replace(r"\|", "") for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 6
    assert len({line.count("|") for line in lines}) == 1


def test_answers_of_older_records_that_may_differ_in_length_are_said():
    new = run_record("new", costs=changed(measured_costs(1e6), whole_answers=True))
    said = "READ of old: older records, of answers that ended where the weights ended them"
    [table] = comparison([new, run_record("old", right=3)])
    assert said in caption(table)
    [table] = comparison([new])
    assert "older records" not in caption(table)


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
    assert "FLOPs of evaluation are not known for older: the phases were not measured apart." in table.caption
    assert "FLOPs of evaluation are not known for rmt: not counted." in table.caption
    assert any(line.startswith("A context holds 4 values of 4 bits each.") for line in table.caption)
    assert "bits/" not in drawn(comparison(demo_records())[0], 80)


def test_the_controls_stand_beside_the_scores_and_a_missing_one_is_told():
    def swapped(record, **scores):
        return changed(record, swap_test=record.swap_test.model_copy(update=scores))

    steps = {"inner_steps": 2, "evaluation_inner_steps": None}
    both = [run_record(parameters=steps, right=2), run_record("no_memory")]
    records = [swapped(both[0], swapped_score=0.125, random_score=0.5), swapped(both[1], queries=96)]
    [table] = comparison(records)
    header, *_ = lines = [line.split("|") for line in to_markdown([table]).splitlines() if line.startswith("| ")]
    at = [[cell.strip() for cell in header].index(name) for name in ("foreign state", "random state")]
    cells = {line[1].strip(): [line[place].strip() for place in at] for line in lines}
    assert (cells["gradmem"], cells["no_memory"]) == (["0.12", "0.50"], ["0.07", "–"])
    flat = {row["method"]: row for row in json.loads(to_json([table]))[0]["rows"]}
    assert (flat["gradmem"]["foreign_state_score"], flat["gradmem"]["random_state_score"]) == (0.125, 0.5)
    assert any("over the swap test’s 96 to 128 queries." in line for line in table.caption)
    absent = "gradmem without a step of WRITE (K = 0) was not run here"
    assert any(line.startswith(absent) for line in table.caption)

    without = run_record(parameters={**steps, "evaluation_inner_steps": 0}, right=1)
    [table] = comparison([*records, without])
    assert not any(line.startswith(absent) for line in table.caption)
    # Where the swap test tried the state that WRITE begins with, that is told in its place.
    tried = swapped(both[0], swapped_score=0.125, random_score=0.5, blank_score=0.25)
    [table] = comparison([tried, records[1]])
    assert not any(line.startswith(absent) for line in table.caption)
    assert any("and from the one that WRITE begins with (K = 0)" in line for line in table.caption)
    assert "| blank state |" in to_markdown([table])
    flat = {row["method"]: row["blank_state_score"] for row in json.loads(to_json([table]))[0]["rows"]}
    assert flat == {"gradmem": 0.25, "no_memory": None}
    # Of one training it says nothing of another.
    [table] = comparison([*records, without, run_record(parameters={**steps, "inner_steps": 1}, right=3)])
    assert any(line.startswith(f"{absent} in 1 of its 2 settings") for line in table.caption)
    # A record in which nothing was swapped has no control to show.
    [table] = comparison([swapped(run_record("rmt"), swapped_score=None, passed=None)])
    assert "foreign" not in drawn(table, 80) and "Foreign" not in caption(table)


def test_what_rows_differ_in_beside_what_their_names_tell_is_said():
    plain = run_record(parameters={"inner_steps": 2, "rate": 1.0, "optimizer": "sgd"})
    other = run_record(right=2, parameters={"inner_steps": 5, "rate": 0.1, "optimizer": "adam"})
    [table] = comparison([plain, other])
    assert {row.label for row in table.rows} == {"gradmem (inner_steps 2)", "gradmem (inner_steps 5)"}
    said = "Rows differ in more than their names tell (see `settings` in csv and json): gradmem in rate, optimizer."
    assert said in table.caption
    settings = {row["label"]: row["settings"] for row in csv.DictReader(io.StringIO(to_csv([table])))}
    assert "gradmem.rate=0.1 gradmem.optimizer=adam" in settings["gradmem (inner_steps 5)"]
    [alike] = comparison([plain])
    assert "than their names" not in caption(alike)

    # "inner_rate 2" does not tell "rate".
    both = [run_record(right=right, parameters={"inner_rate": right, "rate": right}) for right in (1, 2)]
    [table] = comparison(both)
    assert {row.label for row in table.rows} == {"gradmem (inner_rate 1)", "gradmem (inner_rate 2)"}
    assert "csv and json): gradmem in rate." in caption(table)

    # A name with its section tells the setting too.
    asked = {steps: changed(TRAINING, config={"steps": steps}, steps=steps) for steps in (10, 20)}
    many = [run_record(right=steps, config_hash=str(steps), training=training) for steps, training in asked.items()]
    [table] = comparison(many)
    assert {row.label for row in table.rows} == {"gradmem (training.steps 10)", "gradmem (training.steps 20)"}
    assert "than their names" not in caption(table)

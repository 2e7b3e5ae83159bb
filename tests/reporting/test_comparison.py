import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from commands import command
from comparisons import answers, compared_rows, drawn, tables
from records import TASK, demo_records, run_record, write_run

from gradmem_bench.config import Budget
from gradmem_bench.errors import UserError
from gradmem_bench.reporting.comparison import comparison
from gradmem_bench.reporting.formats import to_csv, to_latex, to_markdown
from gradmem_bench.results import find_records, primary_metric, write_record

PUBLISHED = Path(__file__).parents[2] / "leaderboards" / "kv_small"


# ------------------------------------------------------------------------------------------ verdicts


def test_three_points_on_5000_queries_are_better_and_another_seed_is_tied(tmp_path):
    difficulty = np.random.default_rng(9).normal(size=5000)
    write_run(tmp_path / "rmt-0", answers(0.72, 5000, 0, difficulty), "rmt", parameters={})
    write_run(tmp_path / "gradmem-0", answers(0.75, 5000, 1, difficulty), "gradmem")
    write_run(tmp_path / "gradmem-1", answers(0.78, 5000, 2, difficulty), "gradmem", seed=1)
    rows = compared_rows(tmp_path, "--baseline=rmt", "--each-seed")
    better = rows["gradmem (seed 0)"]
    assert better["exact_match_difference"] == pytest.approx(0.03)
    assert better["exact_match_difference_verdict"] == "better"
    assert better["exact_match_difference_test"] == "exact McNemar"
    assert 0 < better["exact_match_difference_p"] <= better["exact_match_difference_p_holm"] < 0.001
    assert 0.01 < better["exact_match_difference_low"] < 0.03 < better["exact_match_difference_high"] < 0.05

    rows = compared_rows(tmp_path, "--baseline", "gradmem (seed 0)", "--each-seed")
    other = rows["gradmem (seed 1)"]
    assert (other["exact_match_difference"], other["exact_match_difference_verdict"]) == (pytest.approx(0.03), "tied")
    assert other["exact_match_difference_p"] is other["exact_match_difference_low"] is None
    assert other["exact_match_difference_reason"] == "it is the same method, and the difference is its seeds'"
    assert rows["rmt"]["exact_match_difference_verdict"] == "worse"


def test_published_runs_of_one_method_are_tied_and_two_methods_are_not():
    scores = {seed: compared_rows(PUBLISHED, "--each-seed")[f"gradmem (seed {seed})"] for seed in (0, 1, 2)}
    assert max(row["exact_match_low"] for row in scores.values()) > 0.05 + min(
        row["exact_match_high"] for row in scores.values()
    ), "seeds far apart, which a test on the queries alone would tell from each other"
    rows = compared_rows(PUBLISHED, "--each-seed", "--baseline", "gradmem (seed 0)")
    verdicts = {label: row["exact_match_difference_verdict"] for label, row in rows.items()}
    assert {verdicts[f"gradmem (seed {seed})"] for seed in (1, 2)} == {"tied"}
    assert {verdicts[f"rmt (seed {seed})"] for seed in (0, 1, 2)} == {"worse"}
    assert verdicts["full_kv"] == "better" and verdicts["gradmem (seed 0)"] is None


def test_another_k_at_evaluation_is_paired_by_training_and_another_method_is_not():
    folder = PUBLISHED.parent / "small" / "kv_small"
    two, ten = ("1c9f082d", "71d9aa67", "c8a6b174"), ("0d588f6f", "8b5d9799", "5c194495")
    names = [*(f"gradmem-{one}" for one in (*two, *ten)), "rmt-01a2bbc4", "rmt-072e4274", "rmt-86bb78d6"]
    rows = compared_rows(*(folder / name for name in names), "--baseline=gradmem")
    more, other = rows["gradmem (evaluation_inner_steps 10)"], rows["rmt"]
    assert more["exact_match_difference_test"] == "t over seeds and contexts, paired by training"
    assert other["exact_match_difference_test"] == "t over seeds and contexts"
    # Seeds from 0.84 to 1.00, none of which ten steps move by more than 0.011.
    assert more["exact_match_difference_high"] - more["exact_match_difference_low"] < 0.05
    assert other["exact_match_difference_high"] - other["exact_match_difference_low"] > 0.2


def test_seeds_that_went_on_from_checkpoints_are_one_row_though_only_the_last_stage_is_named():
    folder = PUBLISHED.parent / "fig3" / "kv_small"
    five, thirty = ("75c67f0c", "53e18969", "1d264cc5"), ("67a6ca5b", "fa6df2dd", "1924bb6b")
    rows = compared_rows(*(folder / f"gradmem-{one}" for one in (*five, *thirty)), "--baseline=gradmem")
    assert {label: row["n_seeds"] for label, row in rows.items()} == {
        "gradmem": 3,
        "gradmem (evaluation_inner_steps 30)": 3,
    }
    # As leaderboards/fig3/README.md has it from the whole folder.
    found = rows["gradmem (evaluation_inner_steps 30)"]
    gain = [found[f"exact_match_difference{end}"] for end in ("", "_low", "_high", "_p")]
    assert [round(number, 3) for number in gain] == [0.031, 0.009, 0.053, 0.026]


def test_seeds_are_one_row_and_their_spread_is_in_its_interval():
    rows = compared_rows(PUBLISHED, "--baseline=rmt")
    records = {record.run_id: record for record in find_records([PUBLISHED]).values()}
    gradmem = rows["gradmem"]
    scores = [records[run].metrics["exact_match"] for run in gradmem["run_ids"].split()]
    assert (gradmem["seeds"], gradmem["n_seeds"], len(scores)) == ("0 1 2", 3, 3)
    assert gradmem["exact_match"] == pytest.approx(np.mean([score.value for score in scores]))
    assert [float(score) for score in gradmem["exact_match_by_seed"].split()] == [score.value for score in scores]
    # Every seed's own interval is narrower than three hundredths; the seeds lie 8 hundredths apart.
    assert gradmem["exact_match_low"] < min(score.low for score in scores)
    assert gradmem["exact_match_interval"] == "wilson, clustered by context and seed"
    assert gradmem["exact_match_difference_test"] == "t over seeds and contexts"
    assert gradmem["exact_match_difference_verdict"] == "better"
    assert 0.001 < gradmem["exact_match_difference_p"] < 0.01, "three seeds are little evidence, however many queries"
    seconds = [records[run].training.seconds for run in gradmem["run_ids"].split()]
    assert gradmem["train_seconds"] == pytest.approx(np.mean(seconds))
    text = command("compare", PUBLISHED, "--baseline=rmt").output
    seeds = "gradmem (0.944, 0.867, 0.887), mean_pool (0.843, 0.846, 0.843), rmt (0.255, 0.247, 0.247)"
    assert f"Over seeds 0, 1, 2: {seeds}" in " ".join(text.split())


def test_queries_of_one_context_are_flipped_together_and_holm_counts_the_rows(tmp_path):
    # Of 40 contexts with 10 queries, gradmem remembers 25 whole and rmt the 15 others: no McNemar test can see that.
    whole = np.repeat(np.arange(40) < 25, 10)
    write_run(tmp_path / "gradmem", whole, queries=10)
    write_run(tmp_path / "rmt", ~whole, "rmt", queries=10)
    write_run(tmp_path / "other", np.ones(400, dtype=bool), "other", queries=10)
    rows = compared_rows(tmp_path, "--baseline=rmt")
    gradmem, other = rows["gradmem"], rows["other"]
    assert gradmem["exact_match_difference_test"] == "exact sign flips by context"
    assert gradmem["exact_match_difference_verdict"] == "tied" and gradmem["exact_match_difference"] == 0.25
    assert other["exact_match_difference_verdict"] == "better"
    assert gradmem["exact_match_difference_p_holm"] == gradmem["exact_match_difference_p"]
    assert other["exact_match_difference_p_holm"] == pytest.approx(2 * other["exact_match_difference_p"])


def test_intervals_of_differences_are_said_to_be_uncorrected_where_p_is(tmp_path):
    for name, score in (("rmt", 0.4), ("gradmem", 0.6), ("other", 0.5)):
        write_run(tmp_path / name, answers(score, 200, len(name)), name)
    line = (
        "Each interval of a difference is by itself, not corrected as p is, so that one that leaves 0 out may stand "
        "beside tied."
    )
    [table] = tables(tmp_path, baseline="rmt")
    assert line in table.caption
    [table] = tables(tmp_path)
    assert line not in table.caption


def test_own_scores_that_nobody_has_are_no_traceback(tmp_path):
    own = TASK.model_copy(update={"name": "drop", "own_metric": "rouge", "contexts": 50, "queries": 100, "limit": None})
    write_run(tmp_path / "a", [False] * 100, own=[0.5] * 50 + [0.7] * 50, task=own, queries=2)
    record = write_run(tmp_path / "b", [True] * 100, "rmt", own=[0.4] * 50 + [0.5] * 50, task=own, queries=2)
    empty = record.metrics["task_score"].model_copy(update=dict.fromkeys(("value", "low", "high")))
    record = record.model_copy(update={"metrics": record.metrics | {"task_score": empty}})
    write_record(record, tmp_path / "b")
    for words in ([], ["--baseline=rmt"], ["--baseline=gradmem", "--format=markdown"], ["--format=latex"]):
        done = command("compare", tmp_path, *words)
        assert done.code == 0 and "No rouge for rmt: its record has none." in " ".join(done.output.split())
    rows = compared_rows(tmp_path, "--baseline=rmt")
    assert (rows["gradmem"]["task_score_difference"], rows["gradmem"]["task_score_difference_p"]) == (None, None)
    assert rows["gradmem"]["task_score_difference_reason"] == "one of the two has no score"


def test_f1_of_text_is_compared_too(tmp_path):
    task = TASK.model_copy(update={"normalized_answers": True, "contexts": 200, "queries": 400, "limit": None})
    write_run(tmp_path / "rmt", answers(0.4, 400, 0), "rmt", queries=2, task=task)
    write_run(tmp_path / "gradmem", answers(0.8, 400, 1), queries=2, task=task)
    gradmem = compared_rows(tmp_path, "--baseline=rmt")["gradmem"]
    assert gradmem["f1_difference"] == pytest.approx(0.75 * gradmem["exact_match_difference"])
    assert gradmem["f1_difference_test"] == "sign flips by context, 20,000 drawn"
    assert gradmem["f1_difference_p"] == 1 / 20_000 and gradmem["f1_difference_verdict"] == "better"
    [table] = tables(tmp_path, baseline="rmt")
    for text in (drawn(table), to_markdown([table])):
        assert "exact match − rmt" in text and "F1 − rmt" in text


@pytest.mark.parametrize(("words", "metric"), [(1, "exact_match"), (2, "f1"), (None, "f1")])
def test_text_is_ranked_by_what_its_answers_are_and_not_by_what_was_answered(words, metric):
    # A prediction of two words overlaps with an answer of one.
    task = TASK.model_copy(update={"normalized_answers": True, "answer_words": words})
    record = run_record(task=task)
    assert record.metrics["f1"].value > record.metrics["exact_match"].value
    assert primary_metric([record]) == metric
    exact = record.model_copy(update={"metrics": record.metrics | {"f1": record.metrics["exact_match"]}})
    assert primary_metric([exact]) == ("f1" if words == 2 else "exact_match")


def test_a_tasks_own_metric_ranks_and_is_compared(tmp_path):
    # By exact match rmt is the best, and by the task's own metric gradmem; two queries have no such score.
    own = TASK.model_copy(update={"name": "drop", "own_metric": "rouge", "contexts": 50, "queries": 100, "limit": None})
    task = {"task": own, "queries": 2}
    write_run(tmp_path / "gradmem", [False] * 100, own=[None, None] + [0.9, 0.7] * 49, **task)
    write_run(tmp_path / "rmt", [True] * 60 + [False] * 40, "rmt", own=[None, None] + [0.2, 0.4] * 49, **task)
    write_run(tmp_path / "floor", [False] * 100, "no_memory", own=[None, None] + [0.0, 0.1] * 49, role="floor", **task)
    write_run(tmp_path / "full", [True] * 100, "full_kv", own=[None, None] + [1.0, 0.9] * 49, role="ceiling", **task)
    [table] = tables(tmp_path, baseline="rmt")
    assert [row.label for row in table.rows] == ["full_kv", "gradmem", "rmt", "no_memory"]
    gradmem = next(row for row in table.rows if row.label == "gradmem")
    assert gradmem.score == pytest.approx(0.8)
    assert gradmem.normalized_score == pytest.approx((0.8 - 0.05) / (0.95 - 0.05))
    assert set(gradmem.versus) == {"task_score"}
    assert gradmem.versus["task_score"].verdict == "better" and gradmem.versus["task_score"].difference.n == 98
    assert gradmem.versus["task_score"].difference.value == pytest.approx(0.5)
    for text in (drawn(table), to_markdown([table])):
        assert "rouge − rmt" in text and "+0.500" in text and "exact match − rmt" not in text
    assert "Ranked, normalised and compared by rouge, the task’s own metric." in table.caption
    row = next(row for row in csv.DictReader(io.StringIO(to_csv([table]))) if row["method"] == "gradmem")
    assert (row["ranked_by"], row["own_metric"], row["task_score_difference_verdict"]) == (
        "task_score",
        "rouge",
        "better",
    )
    assert row["exact_match"] == "0.0" and row["exact_match_difference"] == ""


# ------------------------------------------------------------------------------------------ refusals


def test_a_baseline_is_one_row_and_is_there(tmp_path):
    write_run(tmp_path / "a", answers(0.5, 50, 0), "rmt", parameters={"passes": 1})
    write_run(tmp_path / "b", answers(0.6, 50, 1), "rmt", parameters={"passes": 2})
    write_run(tmp_path / "c", answers(0.7, 50, 2))
    with pytest.raises(UserError, match=re.escape("name one: 'rmt (passes 1)' or 'rmt (passes 2)'")):
        tables(tmp_path, baseline="rmt")
    with pytest.raises(UserError, match="--baseline gradmen: there is no such method .* Did you mean 'gradmem'"):
        tables(tmp_path, baseline="gradmen")
    [table] = tables(tmp_path, baseline="rmt (passes 2)")
    assert {row.label for row in table.rows if row.versus} == {"rmt (passes 1)", "gradmem"}
    write_run(tmp_path / "d", answers(0.6, 50, 1), task=TASK.model_copy(update={"name": "other", "queries": 50}))
    _, other = tables(tmp_path, baseline="rmt (passes 2)")
    assert "No rmt (passes 2) among these records to compare with." in other.caption
    assert "In other tables, but not run here: rmt." in other.caption
    for passes in range(3, 8):
        write_run(tmp_path / f"rmt{passes}", answers(0.5, 50, passes), "rmt", parameters={"passes": passes})
    named = "stands for 7 rows of kv_retrieval; name one: 'rmt (passes 1)' or "
    with pytest.raises(UserError, match=re.escape(named) + ".*, or one of 3 more in the table"):
        tables(tmp_path, baseline="rmt")


# -------------------------------------------------------------------------------------------- seeds


def test_what_differs_in_more_than_the_seed_is_not_one_row(tmp_path):
    write_run(tmp_path / "a", answers(0.5, 50, 0))
    write_run(tmp_path / "b", answers(0.6, 50, 1), seed=1)
    write_run(tmp_path / "c", answers(0.7, 50, 2), seed=2, parameters={"memory_vectors": 8, "inner_steps": 5})
    [table] = tables(tmp_path)
    assert [(row.label, row.seeds) for row in table.rows] == [
        ("gradmem (inner_steps 5)", (2,)),
        ("gradmem (inner_steps 1)", (0, 1)),
    ]
    write_run(tmp_path / "d", answers(0.6, 50, 1), seed=1)
    [table] = tables(tmp_path)
    assert [row.seeds for row in table.rows] == [(2,), (0, 1)], "a seed that is there twice is no second seed"
    write_run(tmp_path / "e", answers(0.8, 50, 1), seed=1, config_hash="e" * 16)
    [table] = tables(tmp_path)
    assert {len(row.records) for row in table.rows} == {1}, "nor is one whose configuration says that it is another run"


def test_steps_at_evaluation_that_are_those_of_training_make_no_second_row():
    asked = [
        run_record(run_id=str(steps), config_hash=f"{steps}" * 16, right=right, parameters=both)
        for steps, right in ((None, 300), (2, 300), (5, 400))
        for both in [{"inner_steps": 2, "evaluation_inner_steps": steps}]
    ]
    [table] = comparison(asked)
    assert {row.label: row.score for row in table.rows} == {
        "gradmem": 300 / 512,
        "gradmem (evaluation_inner_steps 5)": 400 / 512,
    }
    assert "more than once" not in " ".join(table.caption)
    # Where the two do not agree, that is said.
    [table] = comparison([asked[0], run_record(run_id="2", right=299, parameters=asked[1].method.parameters)])
    assert "Found more than once, with unlike records, of which the last counts: 2 (also None)." in table.caption


def test_a_failed_swap_test_of_one_seed_marks_the_row(tmp_path):
    first = write_run(tmp_path / "a", answers(0.5, 50, 0))
    failed = first.swap_test.model_copy(update={"passed": False, "outcome": "0.6 were right."})
    write_run(tmp_path / "b", answers(0.6, 50, 1), seed=1, swap_test=failed)
    [table] = tables(tmp_path)
    assert "gradmem †" in drawn(table)
    assert "† gradmem did not pass the swap test with seed 1: 0.6 were right." in table.caption
    assert next(csv.DictReader(io.StringIO(to_csv([table]))))["swap_test_passed"] == "False"


def test_seeds_that_went_on_from_checkpoints_of_their_own_are_one_row(tmp_path):
    """As in a curriculum over pairs: four pairs first, then eight from the weights of the same seed."""
    easy, hard = (TASK.model_copy(update={"settings": {"pairs": pairs}, "queries": 50}) for pairs in (4, 8))
    for seed in (0, 1, 2):
        parameters = {"memory_vectors": 4 if seed < 2 else 8}
        first = write_run(
            tmp_path / f"easy-{seed}", answers(0.8, 50, seed), seed=seed, task=easy, config_hash=f"{seed}" * 16,
            parameters=parameters,
        )  # fmt: skip
        begun = f"gradmem-{first.config_hash[:8]}/method.safetensors (weights {seed}, 300 steps)"
        training = first.training.model_copy(update={"initial_checkpoint": begun})
        write_run(tmp_path / f"hard-{seed}", answers(0.5, 50, seed), task=hard, training=training)
    [_, table] = tables(tmp_path, by="config")
    assert table.rows[0].record.task.settings == {"pairs": 8}
    # The third came from another recipe, though its own is the same.
    assert sorted(row.seeds for row in table.rows) == [(0, 1), (2,)]
    [alone] = tables(tmp_path / "hard-0")
    assert alone.rows[0].seeds == (0,)


# ------------------------------------------------------------------------------------------- bounds


def bounded() -> list:
    small, large = Budget(bytes=1024), Budget(bytes=4096)
    return [
        run_record("no_memory", "floor", 34, (0, 0), (0, 0), {}),
        run_record("full_kv", "ceiling", 511, (24_576, 26_624), (24, 26), {}),
        run_record("gradmem", right=473, budget=large, parameters={"memory_vectors": 16}),
        run_record("gradmem", right=300, state_bytes=(1024, 1024), budget=small, parameters={"memory_vectors": 4}),
        run_record("rmt", right=391, budget=large),
        run_record("truncated_text", right=200, state_bytes=(8, 8), budget=Budget(positions=8)),
    ]


def test_methods_stand_under_their_bound_and_what_was_not_run_is_said():
    [table] = comparison(bounded())
    found = [(section.heading, [row.label for row in section.rows], section.missing) for section in table.sections]
    assert found == [
        ("", ["full_kv"], ()),
        ("at most 1 KiB", ["gradmem"], ("rmt", "truncated_text")),
        ("at most 4 KiB", ["gradmem", "rmt"], ("truncated_text",)),
        ("at most 8 positions", ["truncated_text"], ("gradmem", "rmt")),
        ("", ["no_memory"], ()),
    ]
    text = drawn(table)
    assert max(map(len, text.splitlines())) <= 80
    assert len(re.findall(r"^(?:rmt|gradmem|truncated_text) +not run", text, re.MULTILINE)) == 5
    # The scores once more, methods against bounds.
    grid = text[text.index("\nexact match ") :]
    assert re.search(r"^gradmem +0\.586 +0\.924 +–$", grid, re.MULTILINE)
    assert re.search(r"^rmt +– +0\.764 +–$", grid, re.MULTILINE)
    assert "| rmt | 1 KiB | not run | – |" in to_markdown([table])
    rows = list(csv.DictReader(io.StringIO(to_csv([table]))))
    empty = [(row["method"], row["budget_bytes"]) for row in rows if row["exact_match"] == ""]
    assert empty[:2] == [("rmt", "1024"), ("truncated_text", "1024")] and len(rows) == 6 + 5


def test_a_row_is_compared_under_its_own_bound(tmp_path):
    for name, budget, score in [
        ("gradmem-4", Budget(bytes=4096), 0.9),
        ("gradmem-1", Budget(bytes=1024), 0.5),
        ("rmt-4", Budget(bytes=4096), 0.6),
        ("rmt-1", Budget(bytes=1024), 0.5),
        ("other-8", Budget(positions=8), 0.5),
    ]:
        write_run(tmp_path / name, answers(score, 400, len(name)), name.split("-")[0], budget=budget)
    write_run(tmp_path / "floor", answers(0.1, 400, 0), "no_memory", role="floor")
    [table] = tables(tmp_path, baseline="rmt")
    verdicts = {
        (row.label, str(row.bound)): row.versus["exact_match"].verdict if row.versus else None for row in table.rows
    }
    assert verdicts == {
        ("gradmem", "1 KiB"): "tied",
        ("rmt", "1 KiB"): None,
        ("gradmem", "4 KiB"): "better",
        ("rmt", "4 KiB"): None,
        ("other", "8 positions"): None,
        ("no_memory", "none"): None,  # which of the two bounds it should stand against is not to be said
    }
    assert "No comparison at most 8 positions: rmt has no row there, or the only one." in table.caption
    assert "The floor and the ceiling have no bound, and so no one row of rmt to stand against." in table.caption
    # Too narrow for the controls beside it: a part of comparisons alone.
    part = re.search(r"exact match − rmt.*?\n\n", drawn(table, 58), re.DOTALL).group()
    assert "≤ 4 KiB" in part and "≤ 8 positions" not in part and "no_memory" not in part
    [table] = tables(tmp_path, baseline="no_memory")
    assert {row.versus["exact_match"].verdict for row in table.rows if row.role == "method"} == {"better"}


# ------------------------------------------------------------------------------------------ formats


def test_a_comparison_fits_the_terminal():
    [table] = tables(PUBLISHED, baseline="gradmem")
    cells = ("−0.649 [−0.746, −0.553]", "baseline", "worse", "0.005", "59.5 M", "600, 2 min", "2.25 T", "not run")
    parts = {}
    for width in (80, 110, 200):
        text = drawn(table, width)
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width
        parts[width] = text.count("full_kv  ")
        assert [cell for cell in cells if cell not in text] == []
    assert parts == {80: 5, 110: 3, 200: 2}


def test_latex_is_a_tabular_with_every_character_escaped():
    text = to_latex(comparison([*bounded(), run_record("a_b&c%", right=3, budget=Budget(bytes=1024))]))
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")].splitlines()
    lines = [line for line in body if line.endswith(r"\\") and "multicolumn" not in line]
    widths = {len(re.findall(r"(?<!\\)&", line)) for line in lines}
    assert len(lines) == 1 + 7 + 7 and len(widths) == 1
    assert r"a\_b\&c\%" in text and "95 \\%" in text
    assert not re.findall(r"(?<!\\)[%_#]", text.split("\n", 1)[1])
    assert text.count("{") == text.count("}")
    assert not re.findall(r"[^\x00-\x7f]", text)
    done = command("compare", PUBLISHED, "--format=latex", "--baseline=rmt")
    assert done.code == 0 and r"$-$0.061 [$-$0.075, $-$0.048]" in done.output


def test_without_a_baseline_nothing_is_compared():
    [table] = comparison(demo_records())
    assert table.versus == () and not any(row.versus for row in table.rows)
    assert "verdict" not in drawn(table) and "Differences" not in " ".join(table.caption)

import json
import re
from pathlib import Path
from typing import Any

import pytest
from boards import edit, rewrite, rows_of, seal_again, write_run
from commands import command
from records import PASSED

from gradmem_bench.config import Budget
from gradmem_bench.errors import UserError
from gradmem_bench.leaderboard.check import check
from gradmem_bench.results import Capacity, read_record, seal


@pytest.fixture
def board(tmp_path: Path) -> Path:
    write_run(tmp_path / "kv_retrieval" / "rmt-1", "rmt", 30)
    write_run(tmp_path / "kv_retrieval" / "gradmem-1", "gradmem", 45)
    return tmp_path


def told(board: Path) -> dict[str, tuple[str, ...]]:
    return {one.path.parent.name: one.problems for one in check(board)}


def changed(folder: Path) -> str:
    """The sentence on a record that is not as it was sealed."""
    record = read_record(folder / "run.json")
    now = seal([], record).record_hash
    return (
        f"Its record was changed since it was sealed: it had the hash {record.seal.record_hash[:12]} then, and has "
        f"{now[:12]} now; which part was changed a hash does not tell."
    )


def test_every_published_record_is_in_order(published):
    found = check(published)
    assert len(found) >= 14
    assert [(one.path, one.problems) for one in found if one.problems] == []


def test_a_changed_mean_is_caught_and_only_there(board):
    edit(board / "kv_retrieval/gradmem-1", lambda values: values["metrics"]["exact_match"].update(value=0.78))
    assert told(board) == {
        "gradmem-1": (
            "The mean of exact_match was changed: the record says 0.78, and its rows make 0.75.",
            changed(board / "kv_retrieval/gradmem-1"),
        ),
        "rmt-1": (),
    }


def test_a_dropped_row_is_caught_by_its_own_sentence(board):
    rows = rows_of(45)
    wrong = next(index for index, row in enumerate(rows) if not row.exact_match)
    rewrite(board / "kv_retrieval/gradmem-1", rows[:wrong] + rows[wrong + 1 :])
    dropped, means = told(board)["gradmem-1"]
    assert dropped == "Rows were dropped: the record counts 60 queries, and examples.parquet holds 59."
    assert "means are not those of its rows: exact_match, " in means
    rewrite(board / "kv_retrieval/gradmem-1", [])
    assert told(board)["gradmem-1"] == ("It has no rows: the record counts 60 queries, and examples.parquet is empty.",)


def test_rows_without_a_record_are_told_and_a_board_without_any_is_refused(board, tmp_path_factory):
    (board / "kv_retrieval/gradmem-1/run.json").unlink()
    [lone] = told(board)["gradmem-1"]
    assert lone == "It has example rows, but no run.json: its record was removed, or its evaluation has not ended."
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match=f"There are no records below {empty}; file some with"):
        check(empty)


def test_a_row_that_was_dropped_from_the_counts_too_is_told_by_the_seal(board):
    folder = board / "kv_retrieval/gradmem-1"
    write_run(folder, "gradmem", 45)
    old = read_record(folder / "run.json").seal
    rows = rows_of(45)[3:]
    rewrite(folder, rows)
    from gradmem_bench.results import metric_results

    metrics = {name: result.model_dump() for name, result in metric_results(rows).items()}
    edit(folder, lambda values: (values.update(metrics=metrics), values["task"].update(queries=57, contexts=19)))
    new = seal(rows, read_record(folder / "run.json")).rows_hash[:12]
    assert told(board)["gradmem-1"] == (
        f"Its rows are not those that it was sealed with: 60 rows of hash {old.rows_hash[:12]} then, 57 of {new} now.",
        changed(folder),
    )


def test_another_data_hash_is_caught_by_its_own_sentence(board):
    edit(board / "kv_retrieval/rmt-1", lambda values: values["task"]["source"].update(content_hash="ab12" * 16))
    assert told(board)["rmt-1"] == (
        "Its data were changed: it was sealed with other data than generated with the hash ab12ab12ab12, which it "
        "names now.",
        changed(board / "kv_retrieval/rmt-1"),
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda values: values["metrics"]["f1"].update(low=0.5),
            "The interval of f1 was changed: the record says [0.5, ",
        ),
        (lambda values: values["metrics"]["exact_match"].update(version=2), "Its exact_match is of version 2, and"),
        (lambda values: values["metrics"].pop("f1"), "It has no f1, which its rows have."),
        (lambda values: values["task"].update(contexts=21), "The record counts 21 contexts, and the rows are of 20."),
        (
            lambda values: values["footprint"]["state_bytes"].update(mean=1024, min=1024),
            "The state bytes were changed: the record says 1024 (1024 to 2048), and its rows make 2048 (2048 to 2048).",
        ),
        (
            lambda values: values.update(budget={"bytes": 1024}),
            "Its state is over its budget: up to 2 KiB where 1 KiB were allowed.",
        ),
        (
            lambda values: values.update(
                # Of 4 values of 4 bits, 0.75 right leave known 4 * (4 - h(0.75) - 0.25 * log2 15) = 8.848 bits.
                capacity={
                    "values": 4,
                    "value_bits": 4.0,
                    "recalled_bits": 9.0,
                    "recalled_bits_low": None,
                    "recalled_bits_high": None,
                    "bits_per_state_byte": {"value": 9 / 2048},
                }
            ),
            "The recalled bits were changed: the record says 9 and 0.00439453 a state byte and none as the lower "
            "bound and none as the upper bound, and its exact match makes 8.848 and 0.00432031 a state byte and 5.476",
        ),
        (lambda values: values["metrics"].pop("exact_match"), "is refused: it has no metric exact_match"),
        (lambda values: values["swap_test"].update(passed=False), "It did not pass the swap test: 0.070 were"),
        (
            lambda values: values["swap_test"].update(passed=None, own_score=None, outcome="not tried"),
            "The swap test was not made: not tried.",
        ),
        (lambda values: values["code"].update(dirty=True), "It was made by code that differs from its commit"),
        (lambda values: values["task"].update(name="kv_small"), "It is of the task kv_small, but lies in"),
        (lambda values: values.update(seal=None), "It has no seal, which tells whether"),
        (lambda values: values.pop("task"), "lacks the key 'task'."),
        (lambda values: values.update(run_id="kv_retrieval-rmt-30-2048-0"), "is here 2 times"),
    ],
)
def test_what_else_can_be_wrong_is_said(board, change, sentence):
    folder = board / "kv_retrieval/gradmem-1"
    edit(folder, change)
    found = [one for one in told(board)["gradmem-1"] if not one.startswith("Its record was changed since")]
    assert len(found) == 1 and sentence in found[0], found
    # Made like that and not changed afterwards, it is as wrong, and nothing else is.
    if check(board)[0].record is not None and "seal" not in sentence:
        seal_again(folder)
        assert told(board)["gradmem-1"] == tuple(found)


def test_a_score_that_prediction_and_targets_do_not_make_is_caught(board):
    rows = rows_of(45)
    index = next(index for index, row in enumerate(rows) if row.exact_match)
    rows[index] = rows[index].model_copy(update={"prediction": "no"})
    rewrite(board / "kv_retrieval/gradmem-1", rows)
    first, second = told(board)["gradmem-1"]
    assert first == f"The score of {rows[index].example_id} is not what its prediction and targets make."
    assert second.startswith("Its rows are not those that it was sealed with: 60 rows of hash")


def test_records_of_the_same_data_have_asked_the_same(board):
    rows = [row.model_copy(update={"targets": ["Qz", "Zq"]}) for row in rows_of(30)]
    folder = board / "kv_retrieval/rmt-1"
    rewrite(folder, rows)
    seal_again(folder)
    assert told(board)["rmt-1"] == (
        "It names the same data as kv_retrieval-gradmem-45-2048-0, but its rows do not ask the same.",
    )
    # Declared otherwise, a task may ask something else of the same file.
    edit(folder, lambda record: record["task"].update(declaration_hash="0123456789abcdef"))
    seal_again(folder)
    assert told(board)["rmt-1"] == ()


def test_the_command_says_all_and_fails(board):
    assert command("leaderboard", "check", "--board", board).output == (
        "2 records checked, each against its rows: all are in order.\n"
    )
    edit(board / "kv_retrieval/gradmem-1", lambda values: values["metrics"]["exact_match"].update(value=0.78))
    done = command("leaderboard", "check", "--board", board)
    assert done.code == 2
    assert done.output.startswith(f"{board / 'kv_retrieval/gradmem-1'}: The mean of exact_match was changed")
    assert "error: 2 records checked, each against its rows: 1 not in order." in done.errors
    assert "There is no leaderboard at" in command("leaderboard", "check", "--board", board / "nowhere").errors


def test_a_run_is_filed_sealed_and_checks(tmp_path):
    run, board = tmp_path / "runs" / "kv_retrieval" / "gradmem-0", tmp_path / "board"
    record = write_run(run, sealed=False, budget=Budget(positions=8))
    (run / "method.safetensors").write_bytes(b"weights are not published")
    done = command("leaderboard", "add", run, "--board", board)
    folder = board / "kv_retrieval" / f"gradmem-{record.config_hash[:8]}"
    assert (done.code, done.errors) == (0, "") and str(folder) in done.output
    assert sorted(path.name for path in folder.iterdir()) == ["examples.parquet", "run.json"]
    filed = read_record(folder / "run.json")
    assert filed.seal is not None and filed.model_copy(update={"seal": None}) == record
    assert [one.problems for one in check(board)] == [()]
    before = (folder / "run.json").read_bytes()
    assert "was already in" not in done.output
    again = command("leaderboard", "add", run, "--board", board)
    assert again.code == 0 and f"{record.run_id} was already in {folder}" in again.output
    assert (folder / "run.json").read_bytes() == before


def test_what_makes_a_filed_run_say_little_is_said(tmp_path):
    undecided = PASSED.model_copy(update={"passed": None, "outcome": "without a verdict, by chance"})
    write_run(tmp_path / "run", swap_test=undecided)
    done = command("leaderboard", "add", tmp_path / "run", "--board", tmp_path / "board")
    _, limit, swap = done.output.splitlines()
    assert limit.startswith("  It has 20 contexts, by --limit:") and swap == "  Swap test without a verdict, by chance."
    write_run(tmp_path / "whole", sealed=False)
    edit(tmp_path / "whole", lambda values: values["task"].update(limit=None))
    done = command("leaderboard", "add", tmp_path / "whole", "--board", tmp_path / "other")
    assert (done.code, len(done.output.splitlines())) == (0, 1)


def test_a_run_that_is_not_in_order_is_not_filed(tmp_path):
    run, board = tmp_path / "run", tmp_path / "board"
    write_run(run, swap_test=PASSED.model_copy(update={"passed": False, "outcome": "FAILED"}))
    edit(run, lambda values: values["metrics"]["exact_match"].update(value=0.8))
    done = command("leaderboard", "add", run, "--board", board)
    assert done.code == 2 and not board.exists()
    assert "is not filed. The mean of exact_match was changed: the record says 0.8, and" in done.errors
    assert "There are 2 more of this kind." in done.errors


def test_another_run_of_the_same_configuration_is_not_overwritten(tmp_path):
    board = tmp_path / "board"
    write_run(tmp_path / "one")
    write_run(tmp_path / "two", run_id="made-again")
    assert command("leaderboard", "add", tmp_path / "one", "--board", board).code == 0
    done = command("leaderboard", "add", tmp_path / "two", "--board", board)
    assert done.code == 2 and "holds another run of this configuration, kv_retrieval-gradmem-45-2048-0." in done.errors
    assert "Remove that folder" in done.errors and "another --seed" in done.errors


def test_every_run_is_sealed_as_it_is_made(five_runs):
    for path, record in five_runs.items():
        assert record.seal is not None, path
    # The task's folder is the board's layout already; what is made in a changed checkout is told apart, and all else is
    # in order.
    for one in check(next(iter(five_runs)).parents[2]):
        assert [problem for problem in one.problems if "differs from its commit" not in problem] == []


# ------------------------------------------------------------------------------------- the whole record


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["footprint"].update(state_dtype="int4"),
        lambda values: values["costs"].update(write_seconds_per_context=1e-6),
        lambda values: values["training"].update(steps=50_000),
        lambda values: values["training"].update(seed=7),
        lambda values: values["swap_test"].update(swapped_score=0.0),
        lambda values: values["method"].update(name="mine"),
        lambda values: values["method"]["parameters"].update(inner_steps=2),
        lambda values: values.update(command=["gradmem-bench"]),
    ],
)
def test_an_edit_of_what_no_row_tells_is_caught_and_not_filed(board, tmp_path, change):
    folder = board / "kv_retrieval/gradmem-1"
    edit(folder, change)
    assert told(board) == {"gradmem-1": (changed(folder),), "rmt-1": ()}
    done = command("leaderboard", "add", folder, "--board", tmp_path / "other")
    assert done.code == 2 and "is not filed. Its record was changed since it was sealed" in done.errors


def test_a_seal_does_not_mind_how_a_record_is_written(board):
    folder = board / "kv_retrieval/gradmem-1"
    path = folder / "run.json"
    values = json.loads(path.read_text())
    # Other order, other spelling of numbers, and without what says no more than its default.
    assert values["footprint"]["state_bytes"]["mean"] == 2048.0 and values["capacity"] is None
    del values["capacity"], values["costs"]["write"], values["footprint"]["state_dtype"]
    values["footprint"]["state_bytes"]["mean"] = 2048
    text = json.dumps(values, sort_keys=True).replace("0.00412", "4.12e-3")
    assert "4.12e-3" in text
    path.write_text(text)
    assert told(board)["gradmem-1"] == ()


def test_a_seal_of_before_is_told_and_made_whole_by_filing_again(board):
    folder = board / "kv_retrieval/gradmem-1"
    whole = read_record(folder / "run.json")
    edit(folder, lambda values: values["seal"].pop("record_hash"))
    (sentence,) = told(board)["gradmem-1"]
    assert sentence.startswith("Its seal is of its rows and data alone")
    # What is not in order gets none.
    right = whole.metrics["f1"].value
    edit(folder, lambda values: values["metrics"]["f1"].update(value=0.88))
    assert command("leaderboard", "add", folder, "--board", board).code == 2
    edit(folder, lambda values: values["metrics"]["f1"].update(value=right))
    assert f"leaderboard add {folder} --board {board} checks it" in sentence
    assert command("leaderboard", "add", folder, "--board", board).code == 0
    assert told(board) == {"gradmem-1": (), "rmt-1": ()}
    assert read_record(folder / "run.json") == whole


# --------------------------------------------------------------------------------------- rows and means


def test_rows_that_another_program_wrote_are_told_and_checked_too(board):
    pandas = pytest.importorskip("pandas")
    path = board / "kv_retrieval/gradmem-1/examples.parquet"
    table = pandas.read_parquet(path)
    table.to_parquet(path)
    (sentence,) = told(board)["gradmem-1"]
    assert sentence == (
        f"{path} was written again by another program: its metadata have no schema version, which gradmem-bench writes "
        "with the rows; the file that the run left was expected."
    )
    table[table["example_id"] != "test-3-1"].to_parquet(path)
    again, dropped, means = told(board)["gradmem-1"]
    assert again == sentence
    assert dropped == "Rows were dropped: the record counts 60 queries, and examples.parquet holds 59."
    assert means.startswith("So ")
    table.drop(columns="targets").to_parquet(path)
    (sentence,) = told(board)["gradmem-1"]
    assert sentence.endswith("does not hold examples of a run: its metadata have no schema version.")


def with_capacity(folder: Path) -> dict[str, Any]:
    record = read_record(folder / "run.json")
    return Capacity.of(4, 4.0, record.metrics["exact_match"], record.footprint.state_bytes.mean).model_dump()


def test_a_changed_mean_is_not_blamed_on_the_bits_too(board):
    folder = board / "kv_retrieval/gradmem-1"
    capacity = with_capacity(folder)
    edit(folder, lambda values: values.update(capacity=capacity))
    seal_again(folder)
    assert told(board)["gradmem-1"] == ()
    edit(folder, lambda values: values["metrics"]["exact_match"].update(value=0.8))
    mean, sealed = told(board)["gradmem-1"]
    assert mean.startswith("The mean of exact_match was changed") and sealed == changed(folder)


def test_changed_bits_are_told_with_the_digits_that_differ(board):
    folder = board / "kv_retrieval/gradmem-1"
    capacity = with_capacity(folder)
    bits = capacity["recalled_bits"]
    capacity["recalled_bits"] = bits + 2e-7
    edit(folder, lambda values: values.update(capacity=capacity))
    bits_sentence = told(board)["gradmem-1"][-1]
    said, makes = re.findall(r"[0-9]+\.[0-9]+", bits_sentence)
    assert said != makes and (float(said), float(makes)) == pytest.approx((bits + 2e-7, bits), abs=1e-8)
    assert bits_sentence == (
        f"The recalled bits were changed: the record says {said}, and its exact match makes {makes}."
    )


# ------------------------------------------------------------------------------------- folders of runs


def test_a_folder_of_runs_is_filed_and_what_is_wrong_keeps_no_other_from_it(tmp_path):
    runs, board = tmp_path / "runs", tmp_path / "board"
    for seed in (0, 1, 2):
        write_run(runs / "kv_retrieval" / f"gradmem-{seed}", seed=seed)
    assert command("leaderboard", "add", runs, "--board", board).code == 0
    assert [one.problems for one in check(board)] == [(), (), ()]
    edit(runs / "kv_retrieval/gradmem-1", lambda values: values["training"].update(steps=3))
    (runs / "kv_retrieval/gradmem-0/run.json").write_text("{")
    done = command("leaderboard", "add", runs, "--board", tmp_path / "again")
    assert done.code == 2 and len(check(tmp_path / "again")) == 1
    first, second, last = done.errors.splitlines()
    assert first.startswith(f"{runs / 'kv_retrieval/gradmem-0/run.json'} is not JSON")
    assert second.startswith(f"{runs / 'kv_retrieval/gradmem-1'} is not filed. Its record was changed")
    assert last == "error: 2 were not filed, each for the reason above."
    assert done.output.startswith("kv_retrieval-gradmem-45-2048-2 is in")


@pytest.mark.parametrize(
    ("path", "way"),
    [
        ("runs/kv_retrieval/nope", "There are runs in {0}/runs/kv_retrieval/gradmem-0."),
        ("runs/kv_retrieval/gradmem-9", "Did you mean '{0}/runs/kv_retrieval/gradmem-0'?"),
        ("rums", "Did you mean '{0}/runs'?"),
        ("rums/kv_retrieval", "There are runs in {0}/runs."),
        ("empty", "There are runs in {0}/runs."),
    ],
)
def test_where_there_is_no_run_the_nearest_is_named(tmp_path, path, way):
    write_run(tmp_path / "runs/kv_retrieval/gradmem-0")
    (tmp_path / "empty").mkdir()
    done = command("leaderboard", "add", tmp_path / path, "--board", tmp_path / "board")
    assert done.code == 2 and done.output == "" and not (tmp_path / "board").exists()
    assert done.errors == (
        f"error: There is no run at {tmp_path / path}: a run.json, or a folder with some below it, was expected. "
        f"{way.format(tmp_path)}\n"
    )

"""Whole runs: what they leave behind, and what is left when they are killed."""

import _thread
import json
import math
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from commands import METHODS, TASK, TINY, command, files, start
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gradmem_bench.metrics import METRICS
from gradmem_bench.results import find_records, read_examples, read_record

WEIGHTS, CHECKPOINT = "method.safetensors", "training.safetensors"


def only_run(output: Path) -> Path:
    """The folder of the one run below `output`."""
    [folder] = [path for path in output.glob("*/*") if path.is_dir()]
    return folder


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.001)


# ----------------------------------------------------------------------------------- what a run leaves


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_a_complete_record_and_its_rows(five_runs, method):
    [(path, record)] = [(path, record) for path, record in five_runs.items() if record.method.name == method]
    rows = read_examples(path.parent)
    assert {file.name for file in path.parent.iterdir()} == {"run.json", "examples.parquet", WEIGHTS, "tensorboard"}

    assert len(rows) == record.task.queries == record.task.contexts == record.task.limit == 64
    for name in METRICS:
        values = [getattr(row, name) for row in rows if getattr(row, name) is not None]
        if not values:
            assert name not in record.metrics and name in ("reconstruction_nats_per_token", "task_score")
            continue
        found = record.metrics[name]
        assert (found.value, found.n, found.version) == (
            pytest.approx(math.fsum(values) / len(values)),
            len(values),
            METRICS[name].version,
        )
        assert found.low <= found.value <= found.high
    assert record.swap_test.contexts == 64
    assert record.swap_test.passed is not False
    assert record.swap_test.own_score == record.metrics["exact_match"].value

    training = record.training
    assert (training.steps, training.contexts, training.queries, training.seed) == (40, 640, 640, 0)
    assert training.tokens == 640 * (6 + 4 + 2)
    assert training.flops > 0 and training.seconds > 0 and training.initial_checkpoint is None
    assert training.config["learning_rate"] == 3e-3
    assert record.environment.threads == 1 and record.environment.device == "cpu"
    assert record.backbone.parameter_count == 16_992 and record.backbone.family == "llama"
    assert record.task.source.location == "generated" and len(record.task.source.content_hash) == 64
    assert record.command[:3] == ["gradmem-bench", "run", "--method=gradmem"]
    assert record.costs.write_seconds_per_context > 0 and record.costs.batch_size == 32

    vectors = record.method.parameters.get("memory_vectors", 0)  # of width 32 in float32
    state = {"gradmem": vectors * 128, "rmt": vectors * 128, "full_kv": 6 * 256, "truncated_text": 6, "no_memory": 0}
    positions = {"gradmem": vectors, "rmt": vectors, "full_kv": 6, "truncated_text": 6, "no_memory": 0}
    footprint = record.footprint
    assert (footprint.state_bytes.min, footprint.state_bytes.max) == (state[method], state[method])
    assert footprint.read_positions.mean == positions[method]
    assert footprint.read_kv_bytes.mean == positions[method] * 256
    assert footprint.context_tokens == 6
    assert footprint.bytes_per_context_token == pytest.approx(state[method] / 6)


def test_memory_is_worth_something_and_none_is_chance(five_runs):
    scores = {record.method.name: record.metrics["teacher_forced_exact_match"] for record in five_runs.values()}
    assert scores["no_memory"].high < 0.4  # one of eight symbols
    assert scores["full_kv"].value > scores["no_memory"].high
    assert scores["truncated_text"].value > scores["no_memory"].high


def test_the_same_command_again_changes_nothing_and_says_so(tmp_path):
    arguments = ["run", "--method=gradmem", *TINY, "--output", tmp_path]
    first = command(*arguments)
    before = files(tmp_path)
    again = command(*arguments)
    assert (first.code, again.code) == (0, 0)
    assert files(tmp_path) == before
    assert f"done before, in {only_run(tmp_path)}" in again.output.replace("\n", "")
    assert "step " not in again.output
    assert again.output.split("kv_retrieval · llama-1x32\n")[1] == first.output.split("kv_retrieval · llama-1x32\n")[1]


def test_every_method_is_run_on_every_task(tmp_path, local_task, local_model):
    arguments = ["--method=full_kv", "--method=no_memory", "--task=kv_retrieval", "--task", local_task]
    settings = ["--backbone", local_model, "--limit=16", "--set=training.steps=2", "--set=training.batch_size=4"]
    done = command("run", *arguments, *settings, "--output", tmp_path / "runs")
    assert (done.code, done.errors) == (0, "")
    records = find_records([tmp_path / "runs"]).values()
    assert {(record.method.name, record.task.name) for record in records} == {
        (method, task) for method in ("full_kv", "no_memory") for task in ("kv_retrieval", "boxes")
    }
    for record in records:
        assert record.metrics["exact_match"].n == record.task.queries
        assert (record.task.contexts, record.task.queries) == (
            (16, 128) if record.task.name == "kv_retrieval" else (9, 18)
        )
    boxes = next(record for record in records if record.task.name == "boxes")
    assert boxes.task.source.location == "test.jsonl" and boxes.task.normalized_answers
    assert [f"({number}/4)" in done.output for number in (1, 2, 3, 4)] == [True] * 4
    assert "kv_retrieval · " in done.output and "boxes · " in done.output


def test_contexts_that_are_too_long_are_cut_and_counted(tmp_path, local_task, local_model):
    local_task.write_text(local_task.read_text() + "  truncate_contexts: true\n")
    data = local_task.parent / "test.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows += [{"context": "!z:9!" * (40 + row), "query": "?!z:", "target": "9"} for row in range(5)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = command(
        "run", "--method=full_kv", "--task", local_task, "--backbone", local_model, "--output", tmp_path / "r"
    )
    assert (done.code, done.errors) == (0, "")
    record = read_record(only_run(tmp_path / "r") / "run.json")
    assert (record.task.contexts, record.task.truncated_contexts) == (14, 5)
    assert record.footprint.read_positions.max + 4 + 32 <= 128  # the query, the longest answer
    assert "Contexts cut to fit the backbone: full_kv 5 of 14." in done.output


def test_a_budget_is_kept_to(tmp_path):
    done = command("run", "--method=rmt", "--method=truncated_text", *TINY, "--max-positions=3", "--output", tmp_path)
    assert (done.code, done.errors) == (0, "")
    records = {record.method.name: record for record in find_records([tmp_path]).values()}
    assert records["rmt"].footprint.state_bytes.max == 3 * 128
    assert records["rmt"].footprint.read_positions.max == 3
    assert records["truncated_text"].footprint.state_bytes.max == 3
    assert records["truncated_text"].footprint.read_positions.max == 3
    assert {record.budget.positions for record in records.values()} == {3}


def test_several_budgets_are_as_many_runs_of_which_only_the_different_ones_are_trained(tmp_path):
    methods = ["--method=gradmem", "--method=truncated_text", "--method=full_kv", "--method=no_memory"]
    # One vector of width 32 is 128 bytes, 64 and 34; a head's key or value is as wide.
    budgets = ["--max-positions=2", "--max-positions=3", *(f"--state-dtype={name}" for name in ("float32", "int8"))]
    arguments = ["run", *methods, *TINY, *budgets, "--output", tmp_path]
    done = command(*arguments)
    assert (done.code, done.errors) == (0, "")
    records = find_records([tmp_path])
    found = {}
    for path, record in records.items():
        found[record.method.name, str(record.budget)] = (record.footprint.state_bytes.max, path.parent)
        assert record.footprint.state_dtype == (record.budget.state_dtype if record.budget else "float32")
        assert len(read_examples(path.parent)) == 64
    assert {key: size for key, (size, _) in found.items()} == {
        ("gradmem", "2 positions"): 256,
        ("gradmem", "2 positions, int8"): 68,
        ("gradmem", "3 positions"): 384,
        ("gradmem", "3 positions, int8"): 102,
        # Text is no wider or narrower, floor and ceiling have no bounds.
        ("truncated_text", "2 positions"): 2,
        ("truncated_text", "3 positions"): 3,
        ("full_kv", "None"): 6 * 256,
        ("full_kv", "int8"): 6 * 2 * 34,
        ("no_memory", "None"): 0,
    }

    # One plan at the start, one training for each pair of runs that differ in the state's dtype alone.
    plan, first, *_ = done.output.split("───")
    assert plan.count("40 steps") == 6 and plan.count("that of") == 3
    assert "memory_vectors 3" in plan
    assert done.output.count("trained before, in ") == 3 and done.output.count("step     40") == 6
    for name, one, other in (
        ("gradmem", "2 positions", "2 positions, int8"),
        ("gradmem", "3 positions", "3 positions, int8"),
        ("full_kv", "None", "int8"),
    ):
        paths = [found[name, budget][1] for budget in (one, other)]
        assert paths[0] != paths[1]
        weights = [load_file(path / WEIGHTS) for path in paths]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
        full, narrow = (records[path / "run.json"] for path in paths)
        assert full.training == narrow.training
        # What was stored in fewer bytes is not quite the same to the reader.
        bits = [record.metrics["target_bits_per_token"].value for record in (full, narrow)]
        assert bits[0] != bits[1] and bits[1] == pytest.approx(bits[0], rel=0.05)

    again = command(*arguments)
    assert again.output.count("done before, in ") == 9
    assert again.output.split("───")[0].count("done before") == 9

    # A weights file with two names is two files to whoever replaces one of them.
    path = found["full_kv", "int8"][1]
    (path / WEIGHTS).unlink()
    assert (found["full_kv", "None"][1] / WEIGHTS).exists()


def test_a_record_says_what_was_measured(five_runs):
    for record in five_runs.values():
        costs = record.costs
        assert costs.write.batch_size == costs.read.batch_size == 32
        assert costs.write.flops.value > 0 or record.method.name in ("truncated_text", "no_memory")
        assert costs.read.flops.value > 0
        # `!a:5!|`; the answer and the end.
        assert (costs.context_tokens, costs.answer_tokens) == (6, 2)
        assert costs.write_seconds_per_context == costs.write.seconds
        # One value of eight.
        assert (record.capacity.values, record.capacity.value_bits) == (1, 3)
        held, size = record.capacity.recalled_bits, record.footprint.state_bytes.mean
        assert 0 <= record.capacity.recalled_bits_low <= held <= record.capacity.recalled_bits_high <= 3
        assert record.capacity.bits_per_state_byte.value == (held / size if size else None)
    flops = {record.method.name: record.costs.write.flops.value for record in five_runs.values()}
    assert flops["gradmem"] > flops["rmt"] > flops["full_kv"] > flops["no_memory"] == 0


def test_what_belongs_to_the_evaluation_alone_does_not_change_the_training(tmp_path):
    brief = ["--set=training.steps=6", "--set=training.evaluate_every=2", "--limit=8"]
    arguments = ["run", "--method=gradmem", *TINY, *brief, "--output"]
    # Without a step at evaluation, validation would choose among other scores.
    for name, settings in {"with": [], "without": ["--set=evaluation_inner_steps=0"]}.items():
        assert command(*arguments, tmp_path / name, *settings).code == 0
    first, second = (only_run(tmp_path / name) for name in ("with", "without"))
    weights = [load_file(folder / WEIGHTS) for folder in (first, second)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    records = [read_record(folder / "run.json") for folder in (first, second)]
    assert records[0].training.best_validation_score == records[1].training.best_validation_score
    assert records[0].metrics != records[1].metrics
    # Of a checkpoint the evaluation is not a part.
    loaded = command(*arguments, tmp_path / "loaded", "--load", second)
    assert loaded.code == 0
    assert read_record(only_run(tmp_path / "loaded") / "run.json").metrics == records[0].metrics


def test_a_damaged_checkpoint_of_another_run_is_not_shared(tmp_path):
    arguments = ["run", "--method=full_kv", *TINY, "--output", tmp_path]
    assert command(*arguments).code == 0
    [weights] = tmp_path.rglob(WEIGHTS)
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    done = command(*arguments, "--state-dtype=int8")
    assert (done.code, done.errors) == (0, "")
    assert "trained before" not in done.output and "step     40" in done.output


def test_bfloat16_is_the_precision_of_the_computation_alone(tmp_path, five_runs):
    done = command("run", "--method=gradmem", *TINY, "--dtype=bfloat16", "--output", tmp_path)
    assert (done.code, done.errors) == (0, "")
    folder = only_run(tmp_path)
    record = read_record(folder / "run.json")
    assert record.environment.dtype == "bfloat16"
    assert record.footprint.state_bytes.max == record.method.parameters["memory_vectors"] * 32 * 4
    assert {tensor.dtype for tensor in load_file(folder / WEIGHTS).values()} == {torch.float32}
    full = next(record for record in five_runs.values() if record.method.name == "gradmem")
    bits, full_bits = (one.metrics["target_bits_per_token"].value for one in (record, full))
    assert bits == pytest.approx(full_bits, rel=0.2)
    assert bits != full_bits


# ------------------------------------------------------------------------------------------------ loading


def test_a_loaded_run_scores_the_same_without_training(tmp_path, five_runs):
    path, trained = next((path, record) for path, record in five_runs.items() if record.method.name == "gradmem")
    done = command("run", "--method=gradmem", *TINY, "--load", path.parent, "--output", tmp_path)
    assert (done.code, done.errors) == (0, "")
    assert "step " not in done.output
    record = read_record(only_run(tmp_path) / "run.json")
    assert record.metrics == trained.metrics
    # How it was trained belongs to the result, whoever trained it.
    assert record.training == trained.training


def test_a_loaded_run_can_go_on_training(tmp_path, five_runs):
    path, trained = next((path, record) for path, record in five_runs.items() if record.method.name == "gradmem")
    weights = path.parent / WEIGHTS
    arguments = ["--load", weights, "--train", "--set=training.steps=2", "--set=training.learning_rate=1e-6"]
    done = command("run", "--method=gradmem", *TINY, *arguments, "--output", tmp_path)
    assert (done.code, done.errors) == (0, "")
    record = read_record(only_run(tmp_path) / "run.json")
    assert record.training.steps == 2
    assert record.training.initial_checkpoint.startswith(f"{path.parent.name}/{WEIGHTS} (weights ")
    assert record.training.initial_checkpoint.endswith(", 40 steps)")
    before, after = load_file(weights), load_file(only_run(tmp_path) / WEIGHTS)
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 1e-5


def test_a_folder_may_hold_a_checkpoint_of_each_method(tmp_path, five_runs):
    for path, record in five_runs.items():
        if record.method.name in ("rmt", "full_kv"):
            (tmp_path / "zoo").mkdir(exist_ok=True)
            shutil.copy(path.parent / WEIGHTS, tmp_path / "zoo" / f"{record.method.name}.safetensors")
    arguments = [*TINY, "--load", tmp_path / "zoo", "--output", tmp_path / "runs"]
    done = command("run", "--method=rmt", "--method=full_kv", *arguments)
    assert (done.code, done.errors) == (0, "")
    scores = {record.method.name: record.metrics for record in five_runs.values()}
    for record in find_records([tmp_path / "runs"]).values():
        assert record.metrics == scores[record.method.name]
    missing = command("run", "--method=gradmem", *arguments)
    assert missing.code == 2
    assert "holds no checkpoint of 'gradmem', only of full_kv, rmt." in missing.errors


# ------------------------------------------------------------------------------------------------- killed

KILLED = [
    "run",
    "--method=gradmem",
    "--task=kv_retrieval",
    "--backbone=llama-1x32",
    *TASK,
    "--set=task.pairs=2",
    "--set=task.test_contexts=1500",
    "--set=training.curriculum=[{task: {pairs: 1}, until: 0.9, steps: 20}]",
    "--set=training.steps=70",
    "--set=training.evaluate_every=10",
    "--set=training.batch_size=16",
    "--set=training.learning_rate=3e-3",
    "--set=training.validation_contexts=16",
]


def test_a_run_that_is_killed_ends_with_the_numbers_of_one_that_is_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = command(*KILLED, "--output", whole)
    assert (done.code, done.errors) == (0, "")

    # In training, some way behind a checkpoint in the curriculum's last stage.
    process = start(*KILLED, "--output", killed)
    wait_for(lambda: list(killed.rglob(CHECKPOINT)))
    folder = only_run(killed)

    def step() -> int:
        # The file is replaced whole at each checkpoint: it can be read at any time.
        with safe_open(folder / CHECKPOINT, "pt") as file:
            return json.loads(file.metadata()["about"])["progress"]["step"]

    wait_for(lambda: step() >= 30)
    process.kill()
    process.wait()
    assert 30 <= step() < 70
    assert not (folder / WEIGHTS).exists()

    # The same command, and killed again among the examples.
    process = start(*KILLED, "--output", killed)
    log = folder / "examples.jsonl"
    wait_for(lambda: log.exists() and log.stat().st_size > 20_000)
    process.kill()
    process.wait()
    assert (folder / WEIGHTS).exists()
    assert 0 < len(read_examples(folder)) < 3000
    assert not (folder / "run.json").exists()

    # The same command, to its end.
    done = command(*KILLED, "--output", killed)
    assert (done.code, done.errors) == (0, "")
    assert "trained before: 70 steps" in done.output
    assert {path.name for path in folder.iterdir()} == {path.name for path in only_run(whole).iterdir()}
    expected, found = load_file(only_run(whole) / WEIGHTS), load_file(folder / WEIGHTS)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    rows = {row.example_id: row for row in read_examples(folder)}
    assert rows == {row.example_id: row for row in read_examples(only_run(whole))}
    assert len(rows) == 3000
    one, other = (read_record(path / "run.json") for path in (only_run(whole), folder))
    assert one.metrics == other.metrics
    assert one.swap_test == other.swap_test
    same = {"seconds": 0}
    assert one.training.model_copy(update=same) == other.training.model_copy(update=same)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was interrupted with Ctrl-C in its training, and what it printed."""
    output = tmp_path_factory.mktemp("interrupted")

    def press():
        wait_for(lambda: list(output.rglob(CHECKPOINT)))
        _thread.interrupt_main()

    threading.Thread(target=press).start()
    done = command("run", "--method=gradmem", *TINY, "--set=training.steps=120", "--output", output)
    return done, output


def continued(interrupted, tmp_path):
    """The folder of a copy of the interrupted run, and the command that goes on with it."""
    shutil.copytree(interrupted[1], tmp_path / "runs")
    arguments = ["run", "--method=gradmem", *TINY, "--set=training.steps=120", "--output", tmp_path / "runs"]
    return only_run(tmp_path / "runs"), arguments


def test_an_interrupted_run_says_how_to_go_on_and_does(interrupted, tmp_path):
    done = interrupted[0]
    assert done.code == 130
    assert done.errors == "interrupted; the same command goes on from the last checkpoint, where there is one\n"
    folder, arguments = continued(interrupted, tmp_path)
    done = command(*arguments)
    assert (done.code, done.errors) == (0, "")
    assert "goes on from the checkpoint of step 20" in done.output or "of step 40" in done.output
    assert not (folder / CHECKPOINT).exists()
    assert read_record(folder / "run.json").training.steps == 120


def test_a_damaged_checkpoint_of_a_training_is_refused(interrupted, tmp_path):
    folder, arguments = continued(interrupted, tmp_path)
    whole = (folder / CHECKPOINT).read_bytes()
    (folder / CHECKPOINT).write_bytes(whole[: len(whole) // 2])
    before = files(folder)
    done = command(*arguments)
    assert done.code == 2
    assert f"error: The checkpoint {folder / CHECKPOINT} is damaged or no safetensors file" in done.errors
    assert {path: held for path, held in files(folder).items() if path in before} == before


def test_a_training_checkpoint_of_another_schema_is_refused(interrupted, tmp_path):
    folder, arguments = continued(interrupted, tmp_path)
    save_file({"x": torch.zeros(1)}, folder / CHECKPOINT, metadata={"schema_version": "99", "about": "{}"})
    done = command(*arguments)
    assert done.code == 2
    assert f"{folder / CHECKPOINT} has schema 99, but this version reads schema 1." in done.errors


def test_a_damaged_or_foreign_record_is_refused(five_runs, tmp_path):
    path = next(path for path, record in five_runs.items() if record.method.name == "gradmem")
    shutil.copytree(path.parents[2], tmp_path / "runs")
    copy = next((tmp_path / "runs").glob("*/gradmem-*")) / "run.json"
    whole = copy.read_text()
    again = ["run", "--method=gradmem", *TINY, "--output", tmp_path / "runs"]
    for text, words in [
        (whole[:1000], f"{copy} is damaged, it is not JSON"),
        (whole.replace('"schema_version": 1', '"schema_version": 7'), f"{copy} has schema version 7, but"),
        (
            whole.replace('"config_hash"', '"config_hsh"'),
            f"{copy} has no key 'config_hsh'. Did you mean 'config_hash'?",
        ),
    ]:
        copy.write_text(text)
        for arguments in (again, ["compare", tmp_path / "runs"], ["list", "runs", "--output", tmp_path / "runs"]):
            done = command(*arguments)
            assert (done.code, done.errors.count("\n")) == (2, 1)
            assert words in done.errors
            assert copy.read_text() == text


def test_a_training_that_diverges_says_where_and_keeps_its_checkpoint(tmp_path):
    settings = ["--set=training.learning_rate=1e30", "--set=training.evaluate_every=1"]
    done = command("run", "--method=full_kv", *TINY, *settings, "--output", tmp_path)
    assert done.code == 2
    assert done.errors.startswith("error: Training stopped at step 2: the loss is ")
    assert "the checkpoint of step 1 stays" in done.errors
    assert done.errors.count("\n") == 1
    folder = only_run(tmp_path)
    assert {path.name for path in folder.iterdir()} == {CHECKPOINT, "tensorboard"}
    # Not a run: nothing that lists or compares finds it.
    assert "There are no runs yet." in command("list", "runs", "--output", tmp_path).output

"""Whole runs: what they leave behind."""

import json
import math
import re

import pytest
import torch
from commands import METHODS, TINY, UNTRAINED, WEIGHTS, command, files, only_run
from safetensors.torch import load_file

from gradmem_bench.metrics import METRICS
from gradmem_bench.results import find_records, read_examples, read_record


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_a_complete_record_and_its_rows(five_runs, method):
    [(path, record)] = [(path, record) for path, record in five_runs.items() if record.method.name == method]
    rows = read_examples(path.parent)
    assert {file.name for file in path.parent.iterdir()} == {"run.json", "examples.parquet", WEIGHTS, "tensorboard"}

    assert len(rows) == record.task.queries == record.task.contexts == record.task.limit == 64
    for name in METRICS:
        values = [getattr(row, name) for row in rows if getattr(row, name) is not None]
        if not values:
            assert name not in record.metrics
            assert name in ("reconstruction_nats_per_token", "task_score", "unseen_exact_match")
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
    assert record.environment.threads == 1 and record.environment.device.startswith("cpu (")
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
    assert "· loss" not in again.output
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
    assert [f"{number}/4  " in done.output for number in (1, 2, 3, 4)] == [True] * 4
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


def test_a_context_that_is_too_long_to_train_on_is_told_before_the_training(tmp_path, local_task, local_model):
    data = local_task.parent / "train.jsonl"
    long = {"context": "!z:9!" * 40, "query": "?!z:", "target": "9"}
    data.write_text(data.read_text() + json.dumps(long) + "\n")
    # Two steps of four contexts draw a few of 31.
    run = ["--task", local_task, "--backbone", local_model, "--set=training.steps=2", "--output", tmp_path / "r"]
    done = command("run", "--method=full_kv", *run)
    assert done.code == 2
    told = " ".join(done.errors.split())
    assert re.search(r"context of document '\w+' of boxes has 200 tokens, but at most \d+ fit the backbone's 128", told)
    assert "take a backbone with more, or set truncate_contexts: true" in told
    assert not (tmp_path / "r").exists()
    # Where it may be cut there is nothing to tell.
    local_task.write_text(local_task.read_text() + "  truncate_contexts: true\n")
    assert command("run", "--method=full_kv", *run).code == 0


def test_an_answer_to_train_on_that_is_longer_than_those_of_the_test_has_room(tmp_path, local_task, local_model):
    data = local_task.parent / "train.jsonl"
    # Behind a context of 81 tokens a query and this answer do not fit the 128 positions; those of the test do.
    long = [{"context": f"!{row:02}:9!" + "!z:9!" * 15, "query": "?!z:", "target": "9" * 43} for row in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in long))
    run = ["--task", local_task, "--backbone", local_model, "--set=training.steps=2", "--output", tmp_path / "r"]
    done = command("run", "--method=full_kv", *run)
    assert done.code == 2 and "has 81 tokens, but at most 79" in " ".join(done.errors.split())
    local_task.write_text(local_task.read_text() + "  truncate_contexts: true\n")
    done = command("run", "--method=full_kv", *run)
    assert (done.code, done.errors) == (0, "")
    # One that no context fits beside is told before the training too.
    data.write_text("".join(json.dumps({**row, "target": "9" * 124}) + "\n" for row in long))
    done = command("run", "--method=full_kv", *run)
    assert done.code == 2 and "leaves no room for a context" in " ".join(done.errors.split())


def test_a_method_that_runs_no_whole_context_takes_one_longer_than_the_positions(tmp_path, local_task, local_model):
    rows = [{"context": "!z:9!" * 60, "query": "?!z:", "target": "9"}]
    (local_task.parent / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    methods = ["--method=armt", "--set=armt.segment_tokens=64", "--method=no_memory", "--method=truncated_text"]
    run = ["run", *methods, "--max-positions=8", "--task", local_task, "--backbone", local_model, "--no-train"]
    done = command(*run, "--output", tmp_path / "runs")
    assert (done.code, done.errors) == (0, "")
    records = find_records([tmp_path / "runs"]).values()
    assert {record.footprint.context_tokens for record in records} == {300}
    assert {record.task.truncated_contexts for record in records} == {0}


def test_queries_that_were_trained_on_are_counted_and_the_others_scored_apart(tmp_path, local_task, local_model):
    data = {name: (local_task.parent / f"{name}.jsonl").read_text().splitlines() for name in ("train", "test")}
    # Four of the 18 questions, and a fifth with its context that asks something else.
    other = json.loads(data["test"][10]) | {"query": "?other:"}
    rows = [*data["train"], *data["test"][:4], json.dumps(other)]
    (local_task.parent / "train.jsonl").write_text("\n".join(rows) + "\n")
    run = ["run", "--method=full_kv", "--task", local_task, "--backbone", local_model, "--output", tmp_path / "r"]
    done = command(*run, "--set=training.steps=40", "--seed=1")
    assert (done.code, done.errors) == (0, "")
    folder = only_run(tmp_path / "r")
    seen = [row.seen_in_training for row in read_examples(folder)]
    assert seen == [True] * 4 + [False] * 14
    others = [row.exact_match for row in read_examples(folder)[4:]]
    found = read_record(folder / "run.json").metrics["unseen_exact_match"]
    assert (found.value, found.n) == (sum(others) / 14, 14)
    assert f"exact match {found.value:.3f} of the 14 queries that are not in the training data too" in done.output
    told = " ".join(done.output.split())
    assert "4 of the 18 queries stand in the training data too, with their contexts. Exact match of the 14" in told


def test_a_training_that_ended_in_an_easier_stage_is_told(tmp_path):
    run = ["run", "--method=mean_pool", "--task=kv_small", "--limit=8", "--set=training.validation_contexts=8"]
    done = command(*run, "--set=training.steps=2", "--output", tmp_path / "short")
    assert (done.code, done.errors) == (0, "")
    assert read_record(only_run(tmp_path / "short") / "run.json").training.last_stage == 1
    told = " ".join(done.output.split())
    assert "training ended in stage 1 of 2 (pairs 4): the task itself was not trained on" in told
    assert "Never trained on the task itself, but ended in stage 1 of 2 (pairs 4): mean_pool." in told
    stage = "--set=training.curriculum=[{task: {pairs: 4}, until: 0.9, steps: 2}]"
    done = command(
        *run, stage, "--set=training.steps=4", "--set=training.evaluate_every=2", "--output", tmp_path / "long"
    )
    assert (done.code, done.errors) == (0, "")
    assert read_record(only_run(tmp_path / "long") / "run.json").training.last_stage == 2
    assert "ended in" not in done.output


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
    given = [*UNTRAINED, "--limit=8", "--output", tmp_path / "loaded", "--load", second]
    loaded = command("run", "--method=gradmem", *given)
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

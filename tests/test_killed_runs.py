"""Runs that were killed, interrupted or damaged: what is left of them, and how they go on."""

import json
import shutil
import signal
import time

import pytest
import torch
from commands import CHECKPOINT, TASK, TINY, WEIGHTS, command, files, only_run, start
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gradmem_bench.results import read_examples, read_record


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.001)


KILLED = [
    "run",
    "--method=gradmem",
    "--task=kv_retrieval",
    "--backbone=llama-1x32",
    *TASK,
    "--set=task.pairs=2",
    "--set=task.test_contexts=400",
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
    assert 0 < len(read_examples(folder)) < 800
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
    assert len(rows) == 800
    one, other = (read_record(path / "run.json") for path in (only_run(whole), folder))
    assert one.metrics == other.metrics
    assert one.swap_test == other.swap_test
    same = {"seconds": 0}
    assert one.training.model_copy(update=same) == other.training.model_copy(update=same)


LONG = ["run", "--method=gradmem", *TINY, "--set=training.steps=300"]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was interrupted with Ctrl-C in its training: its exit code, what it said, and where it is."""
    output = tmp_path_factory.mktemp("interrupted")
    process = start(*LONG, "--output", output)
    wait_for(lambda: list(output.rglob(CHECKPOINT)))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    return process.returncode, errors, output


def continued(interrupted, tmp_path):
    """The folder of a copy of the interrupted run, and the command that goes on with it."""
    shutil.copytree(interrupted[2], tmp_path / "runs")
    return only_run(tmp_path / "runs"), [*LONG, "--output", tmp_path / "runs"]


def test_an_interrupted_run_says_how_to_go_on_and_does(interrupted, tmp_path):
    code, errors, _ = interrupted
    assert code == 130
    assert errors == "interrupted; the same command goes on from the last checkpoint, where there is one\n"
    folder, arguments = continued(interrupted, tmp_path)
    done = command(*arguments)
    assert (done.code, done.errors) == (0, "")
    step = int(done.output.partition("goes on from the checkpoint of step ")[2].split()[0])
    assert 20 <= step < 300
    assert not (folder / CHECKPOINT).exists()
    assert read_record(folder / "run.json").training.steps == 300


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
        (whole[:1000], f"{copy} is not JSON"),
        (whole.replace('"schema_version": 1', '"schema_version": 7'), f"{copy} has schema version 7, but"),
        (
            whole.replace('"config_hash"', '"config_hsh"'),
            f"{copy} has no key 'config_hsh'. Did you mean 'config_hash'?",
        ),
    ]:
        copy.write_text(text)
        done = command(*again)
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
    assert f"There are no runs in {tmp_path}:" in command("list", "runs", "--output", tmp_path).output

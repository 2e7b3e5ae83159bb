"""Runs that begin with what another one trained."""

import shutil

import pytest
from commands import TINY, UNTRAINED, WEIGHTS, command, only_run
from safetensors.torch import load_file, save_file

from gradmem_bench.results import find_records, read_record


def test_a_loaded_run_scores_the_same_without_training(tmp_path, five_runs):
    path, trained = next((path, record) for path, record in five_runs.items() if record.method.name == "gradmem")
    done = command("run", "--method=gradmem", *UNTRAINED, "--load", path.parent, "--output", tmp_path)
    assert (done.code, done.errors) == (0, "")
    assert "· loss" not in done.output
    record = read_record(only_run(tmp_path) / "run.json")
    assert record.metrics == trained.metrics
    # How it was trained belongs to the result, whoever trained it.
    assert record.training == trained.training


def test_weights_of_another_task_are_said_to_be_and_of_fewer_contexts_are_not(tmp_path, five_runs):
    path = next(path for path, record in five_runs.items() if record.method.name == "gradmem")
    for setting, told in (("pairs=2", "kv_retrieval (pairs 1)"), ("test_contexts=32", "")):
        given = [*UNTRAINED, f"--set=task.{setting}", "--load", path.parent, "--output", tmp_path / setting]
        assert command("run", "--method=gradmem", *given).code == 0
        record = read_record(only_run(tmp_path / setting) / "run.json")
        assert record.trained_elsewhere == told and record.training.task.settings["pairs"] == 1
    assert not read_record(path).trained_elsewhere


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
    arguments = [*UNTRAINED, "--load", tmp_path / "zoo", "--output", tmp_path / "runs"]
    done = command("run", "--method=rmt", "--method=full_kv", *arguments)
    assert (done.code, done.errors) == (0, "")
    scores = {record.method.name: record.metrics for record in five_runs.values()}
    for record in find_records([tmp_path / "runs"]).values():
        assert record.metrics == scores[record.method.name]
    missing = command("run", "--method=gradmem", *arguments)
    assert missing.code == 2
    assert "holds no checkpoint of 'gradmem', only of full_kv, rmt." in missing.errors


@pytest.mark.parametrize("setting", ["training.steps=2", "gradmem.training.steps=2"])
@pytest.mark.parametrize("arguments", ["run --load={run}", "run --no-train", "profile", "profile --load={run}"])
def test_a_setting_of_a_training_that_is_not_made_is_refused(tmp_path, monkeypatch, five_runs, arguments, setting):
    monkeypatch.chdir(tmp_path)
    path = next(path for path, record in five_runs.items() if record.method.name == "gradmem")
    given = [part.replace("{run}", str(path.parent)) for part in arguments.split()]
    task = [part for part in UNTRAINED if given[0] == "run" or not part.startswith("--limit")]
    done = command(*given, "--method=gradmem", *task, f"--set={setting}")
    assert (done.code, done.output, list(tmp_path.iterdir())) == (2, "", [])
    assert done.errors == (
        "error: training.steps is set, but gradmem is not trained here; leave it out, or train with gradmem-bench run "
        "--train.\n"
    )


def test_weights_of_another_backbone_than_was_trained_from_are_refused(tmp_path, local_model, local_task):
    (tmp_path / "lm").mkdir()
    shutil.copytree(local_model, tmp_path / "lm", dirs_exist_ok=True)
    given = ["--method=mean_pool", "--task", local_task, "--backbone", tmp_path / "lm", "--output", tmp_path / "runs"]
    assert command("run", *given).code == 0
    load = ["--load", only_run(tmp_path / "runs")]
    file = tmp_path / "lm" / "model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    done = command("run", *given, *load)
    assert done.code == 2
    assert "was trained from other backbone weights (" in done.errors and "than " in done.errors

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from commands import command
from records import example_row, run_record, write_run

import gradmem_bench
from gradmem_bench.errors import UserError
from gradmem_bench.results import (
    ExampleLog,
    Measured,
    environment,
    find_records,
    read_examples,
    read_record,
    write_record,
)

PACKAGE = Path(gradmem_bench.__file__).parent


def edited(path: Path, edit) -> Path:
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))
    return path


def test_a_record_comes_back_as_it_was_written(tmp_path):
    record = run_record(training=None)
    path = write_record(record, tmp_path / "new" / "folder")
    assert read_record(path) == record
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]
    values = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert values["schema_version"] == 1
    assert values["metrics"]["exact_match"]["n"] == 512


def test_a_write_that_fails_leaves_the_old_record(tmp_path):
    path = write_record(run_record(), tmp_path)
    before = path.read_bytes()
    unserialisable = run_record(parameters={"callback": object()}, run_id="broken")
    with pytest.raises(Exception, match="serialize"):
        write_record(unserialisable, tmp_path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_a_number_that_json_cannot_hold_is_refused_when_the_record_is_made():
    with pytest.raises(ValueError, match="finite"):
        Measured.of([1.0, float("inf")])
    assert Measured.of([2, 4, 9]) == Measured(mean=5, min=2, max=9)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda values: values.update(schema_version=7), "has schema version 7, but .* reads version 1"),
        (lambda values: values.pop("schema_version"), "has no 'schema_version'"),
        (lambda values: values["task"].pop("split"), "'task.split'"),
        (lambda values: values["task"].update(splt="test"), "no key 'task.splt'.* Did you mean 'split'"),
        (lambda values: values["costs"].update(batch_size="many"), "'costs.batch_size' is 'many'"),
        # 400 of 512 right: 0.78125, and an interval around it.
        (
            lambda values: values["metrics"]["exact_match"].update(value=0.9),
            r"the value of exact_match, 0.9, lies outside its own interval, \[0.7\d+, 0.8\d+\]",
        ),
        (
            lambda values: values["metrics"]["target_bits_per_token"].update(value=None),
            "the value of target_bits_per_token, none, lies outside its own interval",
        ),
        (
            lambda values: values["metrics"]["f1"].update(value=1.25, low=None, high=None),
            "f1 is 1.25 in it, and a proportion lies between 0 and 1",
        ),
        (lambda values: values["metrics"]["f1"].update(low=-0.1), "f1 is -0.1 in it, and a proportion"),
        (lambda values: values["metrics"]["f1"].update(low=None), "the interval of f1 has one bound"),
    ],
)
def test_a_record_that_is_not_in_order_is_named_with_what_is_wrong(tmp_path, edit, complaint):
    path = edited(write_record(run_record(), tmp_path), edit)
    with pytest.raises(UserError, match=complaint) as caught:
        read_record(path)
    assert str(caught.value).startswith(str(path))


def test_a_mean_without_bound_may_be_any_number_and_equal_its_bounds(tmp_path):
    path = write_record(run_record(), tmp_path)
    bits = {"value": 12.5, "low": 12.5, "high": 12.5}
    edited(path, lambda values: values["metrics"]["target_bits_per_token"].update(bits))
    assert read_record(path).metrics["target_bits_per_token"].high == 12.5
    edited(path, lambda values: values["metrics"]["f1"].update(value=1.0, low=0.9, high=1.0))
    assert read_record(path).metrics["f1"].value == 1


def test_damaged_json_names_the_file(tmp_path):
    path = write_record(run_record(), tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"run\.json is not JSON"):
        read_record(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"run\.json is not JSON"):
        read_record(path)


def test_records_are_found_below_folders_each_once(tmp_path):
    paths = [write_record(run_record(run_id=name), tmp_path / name) for name in ("b/deep/run", "a", "c")]
    found = find_records([tmp_path / "b", tmp_path, paths[2], tmp_path / "b" / ".." / "c"])
    assert {path.resolve() for path in found} == {path.resolve() for path in paths}
    assert [record.run_id for record in found.values()] == ["b/deep/run", "a", "c"]
    with pytest.raises(UserError, match="no run at .*nowhere"):
        find_records([tmp_path / "nowhere"])


def test_listing_records_loads_nothing_heavy(tmp_path):
    write_record(run_record(), tmp_path)
    program = (
        "import sys; from pathlib import Path; from gradmem_bench.results import find_records;"
        f"assert find_records([Path({str(tmp_path)!r})]);"
        "print({'numpy', 'scipy', 'torch', 'transformers', 'datasets', 'pandas', 'pyarrow'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert answer.stdout.strip() == "set()", answer.stderr


# ------------------------------------------------------------------------------------------ examples


def test_rows_come_back_from_parquet_and_the_log_is_gone(tmp_path):
    rows = [
        example_row("test-0-0", prediction='a\n"b"\u2028é', targets=["x", "y"], exact_match=False, f1=0.5),
        example_row("test-0-1", target_bits_per_token=float("inf"), reconstruction_nats_per_token=None),
    ]
    log = ExampleLog(tmp_path, key="config 1")
    log.append(rows[:1])
    log.append(rows[1:])
    assert read_examples(tmp_path) == rows, "readable while the evaluation runs"
    path = log.finish()
    assert [file.name for file in tmp_path.iterdir()] == ["examples.parquet"]
    assert read_examples(tmp_path) == rows
    table = pyarrow.parquet.read_table(path)
    assert table.schema.metadata[b"schema_version"] == b"1"
    assert table["target_tokens"].to_pylist() == [3, 3]


def test_columns_keep_their_types_when_nothing_is_in_them(tmp_path):
    log = ExampleLog(tmp_path)
    log.append([example_row(reconstruction_nats_per_token=None)])
    assert str(pyarrow.parquet.read_schema(log.finish()).field("reconstruction_nats_per_token").type) == "double"


def test_a_killed_evaluation_goes_on_where_it_stopped(tmp_path):
    program = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from records import example_row
from gradmem_bench.results import ExampleLog
log = ExampleLog(Path({str(tmp_path)!r}), key="config 1")
log.append(example_row(f"test-{{index}}-0") for index in range(3))
with Path({str(tmp_path)!r}, "examples.jsonl").open("a") as file:
    file.write('{{"example_id": "test-3-0", "context')
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent)
    assert killed.returncode == -signal.SIGKILL
    log = ExampleLog(tmp_path, key="config 1")
    assert list(log.rows) == ["test-0-0", "test-1-0", "test-2-0"]
    # Answering a whole context again does not double what was there.
    log.append(example_row(f"test-{index}-0", prediction="new") for index in (2, 3))
    log.finish()
    assert [(row.example_id, row.prediction) for row in read_examples(tmp_path)] == [
        ("test-0-0", "Qz"), ("test-1-0", "Qz"), ("test-2-0", "Qz"), ("test-3-0", "new"),
    ]  # fmt: skip
    # A run killed between its examples and its record has nothing to answer again.
    again = ExampleLog(tmp_path, key="config 1")
    assert len(again.rows) == 4
    again.finish()
    assert len(read_examples(tmp_path)) == 4


@pytest.mark.parametrize("finished", [False, True])
def test_rows_of_another_configuration_are_not_mixed_in(tmp_path, finished):
    log = ExampleLog(tmp_path, key="config 1")
    log.append([example_row()])
    if finished:
        log.finish()
    with pytest.raises(UserError, match="key 'config 1', not 'config 2'"):
        ExampleLog(tmp_path, key="config 2")
    assert len(read_examples(tmp_path)) == 1


def test_damaged_examples_are_named_with_their_line(tmp_path):
    log = ExampleLog(tmp_path)
    log.append([example_row("test-0-0"), example_row("test-0-1")])
    path = tmp_path / "examples.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace('"f1":1.0', '"f1":"high"'), lines[2], ""]))
    with pytest.raises(UserError, match=r"examples\.jsonl, line 2 is damaged: f1"):
        read_examples(tmp_path)
    path.unlink()
    (tmp_path / "examples.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match=r"examples\.parquet is damaged"):
        read_examples(tmp_path)
    (tmp_path / "examples.parquet").unlink()
    with pytest.raises(UserError, match="no examples in"):
        read_examples(tmp_path)


# ---------------------------------------------------------------------------------------- provenance


def test_the_environment_is_this_one():
    found = environment("cpu", "torch.bfloat16")
    model, instructions = re.fullmatch(r"cpu \((.+), ([^,]+)\)", found.device).groups()
    assert (instructions, found.dtype) == (torch.backends.cpu.get_cpu_capability(), "bfloat16")
    if (about := Path("/proc/cpuinfo")).exists():
        assert model in about.read_text()
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.transformers.split(".")[0].isdigit() and found.threads >= 1


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_code_version_is_the_checkouts_own(tmp_path):
    root = tmp_path / "checkout"
    shutil.copytree(PACKAGE, root / "gradmem_bench", ignore=shutil.ignore_patterns("__pycache__"))
    (root / ".gitignore").write_text("__pycache__\n")

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        command = ["git", "-C", str(root), *identity, *arguments]
        return subprocess.run(command, env=clean, capture_output=True, text=True, check=True).stdout.strip()

    def found() -> tuple[str | None, bool | None]:
        # Started elsewhere, and as from within a hook of another repository.
        program = "from gradmem_bench.results import code_version; print(code_version().model_dump_json())"
        environ = {**os.environ, "PYTHONPATH": str(root), "GIT_DIR": str(tmp_path / "other.git")}
        answer = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
        )
        assert answer.stderr == ""
        values = json.loads(answer.stdout)
        return values["commit"], values["dirty"]

    assert found() == (None, None)
    git("init", "-q")
    assert found() == (None, True)
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert found() == (commit, False)
    (root / "leaderboards").mkdir()
    (root / "leaderboards" / "run.json").write_text("{}")
    assert found() == (commit, False), "results do not change the code"
    (root / "methods").mkdir()
    (root / "methods" / "mine.yaml").write_text("name: mine")
    assert found() == (commit, True)


def test_a_damaged_record_is_left_out_with_one_warning_and_named_files_are_not(tmp_path):
    write_run(tmp_path / "gradmem", [True] * 35 + [False] * 15)
    whole = (tmp_path / "gradmem" / "run.json").read_bytes()
    bad = tmp_path / "rmt" / "run.json"
    bad.parent.mkdir()
    for damage, reason in [
        (whole[:500], "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "is not the record of a run"),
        (whole.replace(b'"schema_version": 1', b'"schema_version": 99'), "has schema version 99"),
        (whole.replace(b'"run_id"', b'"run"'), "run_id"),
        (whole.replace(b'"value": 0.7,', b'"value": 0.9,'), "lies outside its own interval"),
    ]:
        bad.write_bytes(damage)
        for words in (["compare", tmp_path], ["list", "runs", "--output", tmp_path]):
            done = command(*words)
            assert done.code == 0 and "gradmem" in done.output and "0.700" in done.output
            [line] = done.errors.splitlines()
            assert line.startswith(f"warning: {bad}") and reason in line and line.endswith("It is left out.")
        done = command("compare", tmp_path, bad)
        assert done.code == 2 and reason in done.errors
        done = command("leaderboard", "check", "--board", tmp_path)
        assert done.code == 2 and f"{bad.parent}: {bad}" in done.output and reason in done.output
    (tmp_path / "gradmem" / "run.json").unlink()
    done = command("compare", tmp_path)
    assert done.code == 2 and "There are no records here" in done.errors

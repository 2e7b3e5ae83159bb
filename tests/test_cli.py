import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import METHODS, TASK, TINY, UNTRAINED, command
from safetensors.torch import save_file

import gradmem_bench
from gradmem_bench.results import ProfileRecord

HEAVY = {"torch", "transformers", "datasets", "pandas", "lm_eval"}
PROGRAM = """
import json, sys
from gradmem_bench.cli import main
try:
    main()
except SystemExit as end:
    code = end.code or 0
print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)
"""


def alone(*arguments: str | Path, cwd: Path) -> tuple[str, set[str]]:
    """A command in a process of its own: what it printed, and the modules it imported."""
    variables = os.environ | {"PYTHONPATH": str(Path(gradmem_bench.__file__).parents[1])}
    line = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(line, env=variables, cwd=cwd, capture_output=True, text=True, timeout=60)
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code == 0
    return done.stdout, set(modules)


# ------------------------------------------------------------------------------------- light and at once


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["run", "compare", "list", "show", "check"]),
        (["run", "--help"], ["--method", "--task", "--budget", "--max-positions", "--dry-run"]),
        (["pretrain", "--help"], ["--preset", "--data", "--output", "--seconds"]),
        (["list", "methods"], (*METHODS, "mamba", "armt")),
        (["list", "tasks"], ["kv_retrieval", "babi_qa1", "squad_removed", "lm_eval:drop"]),
        (["list", "runs"], METHODS),
    ],
    ids=" ".join,
)
def test_help_and_lists_import_nothing_heavy(five_runs, arguments, words):
    output = next(iter(five_runs)).parents[2]
    if "runs" in arguments:
        arguments = [*arguments, "--output", output]
    text, modules = alone(*arguments, cwd=output)
    assert modules & HEAVY == set()
    assert [word for word in words if word not in text] == []


def test_the_help_is_whole_at_eighty_columns():
    for name in (
        *("", "run", "profile", "pretrain", "compare", "plot", "reproduce", "list", "show", "check"),
        *("leaderboard add", "leaderboard build", "leaderboard check"),
    ):
        done = command(*name.split(), "--help")
        assert done.code == 0
        assert "…" not in done.output
        assert max(map(len, done.output.splitlines())) <= 80


def test_a_name_that_does_not_exist_is_said_before_anything_heavy_is_imported(tmp_path):
    program = PROGRAM.replace("end.code or 0", "0 if end.code == 2 else 1")
    line = [sys.executable, "-c", program, "run", "--method=gradmen", "--task=kv_retrieval"]
    variables = os.environ | {"PYTHONPATH": str(Path(gradmem_bench.__file__).parents[1])}
    done = subprocess.run(line, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    sentence, last = done.stderr.splitlines()
    assert sentence.endswith("Did you mean 'gradmem'?")
    code, modules = json.loads(last)
    assert (code, set(modules) & HEAVY) == (0, set())


# ------------------------------------------------------------------------------------------- bad input


@pytest.fixture(scope="module")
def checkpoints(five_runs, tmp_path_factory) -> Path:
    """Files that `--load` should refuse."""
    folder = tmp_path_factory.mktemp("checkpoints")
    source = next(path for path, record in five_runs.items() if record.method.name == "rmt").parent
    weights = (source / "method.safetensors").read_bytes()
    (folder / "rmt.safetensors").write_bytes(weights)
    (folder / "damaged.safetensors").write_bytes(weights[: len(weights) // 2])
    (folder / "pickled.bin").write_bytes(b"\x80\x04}q\x00.")
    header = {"schema_version": "99", "about": "{}"}
    save_file({"weight": torch.zeros(1)}, folder / "future.safetensors", metadata=header)
    save_file({"weight": torch.zeros(1)}, folder / "foreign.safetensors")
    return folder


BAD = [
    # An unknown name.
    ("--method=gradmen", ["no method 'gradmen'", "Did you mean 'gradmem'?"]),
    ("--task=kv_retreival", ["no task 'kv_retreival'", "Did you mean 'kv_retrieval'?"]),
    ("--task=nowhere.yaml", ["no file nowhere.yaml"]),
    ("--backbone=lama-1x32", ["family 'lama'", "Did you mean 'llama'?"]),
    ("--backbone=no/such-model", ["'no/such-model'", "llama-2x64"]),
    ("--include-path=nowhere", ["include path nowhere is no folder"]),
    # An unknown key.
    ("--set=inner_stepz=1", ["method 'gradmem'", "'inner_stepz'", "Did you mean 'inner_steps'?"]),
    ("--set=trainng.steps=1", ["--set trainng.steps", "Did you mean 'training'?"]),
    ("--set=training.stepz=1", ["training of 'gradmem' on kv_retrieval", "'stepz'", "Did you mean 'steps'?"]),
    ("--set=task.pears=2", ["kv_retrieval.yaml", "'pears'", "Did you mean 'pairs'?"]),
    ("--set=backbone.max_position=9", ["backbone", "'max_position'", "Did you mean 'max_positions'?"]),
    ("--set=training.curriculum=[{task: {pears: 1}}]", ["'pears'", "Did you mean 'pairs'?"]),
    # A value of the wrong type, or out of its range.
    ("--set=training.steps=many", ["'steps' is 'many'", "valid integer"]),
    ("--set=inner_steps=-1", ["'inner_steps' is -1", "greater than or equal to 0"]),
    ("--set=training.schedule=cosin", ["'schedule' is 'cosin'", "'cosine'"]),
    ("--set=task.pairs=0", ["'pairs' is 0", "greater than or equal to 1"]),
    ("--set=task.pairs=9", ["9 pairs need as many distinct keys", "are 8"]),
    ("--set=inner_steps", ["--set takes key=value", "'inner_steps'"]),
    ("--set=inner_steps=[1", ["--set inner_steps", "not valid YAML"]),
    ("--set=training=5", ["--set training needs a key of it"]),
    ("--backbone=llama-1x33", ["no even head size", "an even width, such as 34"]),
    # A budget, or a context, that does not fit.
    ("--budget=lots", ["'lots' is not a size in bytes", "4KiB"]),
    ("--budget=100", ["budget of 100 B holds no vector", "128 B"]),
    ("--budget=1KiB --budget=17 --state-dtype=int4", ["budget of 17 B, int4 holds no vector", "in int4 is 18 B"]),
    ("--set=backbone.max_positions=17 --set=task.pairs=4", ["has 21 tokens", "room for 10 in the 17 positions"]),
    # A checkpoint that cannot be used.
    ("--load=nowhere", ["There is no checkpoint nowhere"]),
    ("--load={checkpoints}/damaged.safetensors", ["damaged.safetensors is damaged"]),
    ("--load={checkpoints}/pickled.bin", ["pickled.bin is damaged or no safetensors file"]),
    ("--load={checkpoints}/future.safetensors", ["future.safetensors has schema 99", "reads schema 1"]),
    ("--load={checkpoints}/foreign.safetensors", ["foreign.safetensors has schema none", "reads schema 1"]),
    ("--load={checkpoints}/rmt.safetensors", ["rmt.safetensors is of gradmem_bench.methods.rmt:RMT"]),
    ("--load={checkpoints}", ["holds no checkpoint of 'gradmem'", "rmt"]),
    ("--method=rmt --load={checkpoints}/rmt.safetensors --max-positions=3", ["does not fit", "(8, 32)", "(3, 32)"]),
    ("--method=rmt --load={checkpoints}/rmt.safetensors --backbone=llama-1x64", ["does not fit", "(16, 64)"]),
    # A place that cannot be written to.
    ("--output={checkpoints}/pickled.bin", ["pickled.bin", "--output"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[arguments for arguments, _ in BAD])
def test_bad_input_gets_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, checkpoints, arguments, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    before = sorted(checkpoints.iterdir())
    given = [part.replace("{checkpoints}", str(checkpoints)) for part in arguments.split(" --")]
    given = [given[0], *(f"--{part}" for part in given[1:])]
    method = [] if any(part.startswith("--method") for part in given) else ["--method=gradmem"]
    tiny = UNTRAINED if any("--load" in one for one in given) else TINY
    tiny = [part for part in tiny if not (part.startswith("--task") and any("--task" in one for one in given))]
    done = command("run", *method, *tiny, *given)
    assert done.code == 2
    assert done.errors.startswith("error: ") and done.errors.endswith("\n")
    assert done.errors.count("\n") == 1
    assert [word for word in words if word not in done.errors] == []
    assert "Traceback" not in done.errors + done.output
    assert list(tmp_path.iterdir()) == []
    assert sorted(checkpoints.iterdir()) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_gpu_that_is_not_there_is_said(tmp_path):
    done = command("run", "--method=gradmem", *TINY, "--device=cuda", "--output", tmp_path)
    assert (done.code, done.output) == (2, "")
    assert done.errors == "error: --device cuda: this machine's torch sees no GPU; take --device cpu.\n"
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_does_not_exist_is_named(tmp_path):
    for arguments, name in [(["run", "--methd=x"], "--method"), (["compare", "--format=tabel"], "'table'")]:
        done = command(*arguments)
        assert done.code == 2
        assert name in done.errors
        assert "Traceback" not in done.errors


def test_a_state_dtype_that_does_not_exist_is_named(tmp_path):
    done = command("run", "--method=rmt", *TINY, "--state-dtype=int2", "--output", tmp_path)
    assert done.code == 2 and "'int2' is not one of 'float32', 'bfloat16', 'int8', 'int4'" in unframed(done.errors)


def unframed(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


# --------------------------------------------------------------------------------------------- progress


def test_what_is_shown_of_a_run_in_a_file_is_one_line_a_validation(tmp_path):
    done = command("run", "--method=gradmem", *TINY, "--output", tmp_path / "runs")
    shown = done.output.split("\n\n")[0].splitlines()
    assert shown[0].startswith("1/1  gradmem on kv_retrieval · llama-1x32")
    assert [line.split(" · ")[0].split() for line in shown[1:3]] == [["step", "20"], ["step", "40"]]
    assert all("loss" in line and "validation" in line for line in shown[1:3])
    assert shown[3].strip().startswith("exact match ") and shown[3].endswith("n = 64 · swap test passed")
    assert max(map(len, done.output.splitlines())) <= 80
    assert done.errors == ""


def test_several_runs_begin_with_one_plan(tmp_path):
    methods = ["--method=gradmem", "--method=rmt", "--method=truncated_text", "--method=full_kv", "--method=no_memory"]
    budgets = ["--budget=1KiB", "--budget=16KiB", "--state-dtype=float32", "--state-dtype=int8"]
    done = command("run", *methods, *TINY, *budgets, "--dry-run", "--output", tmp_path / "runs")
    assert (done.code, done.errors) == (0, "")
    assert max(map(len, done.output.splitlines())) <= 80
    table = done.output[done.output.index("fitted to") :].splitlines()[1:]
    rows = [line.split() for line in table if line.strip()]
    # Three methods, two of which have numbers, at two budgets; the ceiling for each dtype, the floor once.
    assert [row[0] for row in rows] == [str(number) for number in range(1, 14)]
    assert [row[1] for row in rows].count("full_kv") == 2 and [row[1] for row in rows].count("no_memory") == 1
    wide = " ".join(rows[10])
    assert wide == "11 truncated_text 16 KiB max_bytes 16384 6 B 6 40 steps"
    assert " ".join(rows[11]) == "12 gradmem 16 KiB, int8 memory_vectors 481 16 KiB 481 40 steps"
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- profile


def test_profile_shows_what_methods_cost_without_training_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    methods = ["--method=gradmem", "--method=full_kv", "--method=no_memory"]
    arguments = ["profile", *methods, "--task=kv_retrieval", "--backbone=llama-1x32", *TASK]
    done = command(*arguments, "--max-positions=2", "--state-dtype=float32", "--state-dtype=int8", "--batch-size=4")
    assert done.code == 0 and list(tmp_path.iterdir()) == []
    assert max(map(len, done.output.splitlines())) <= 80
    sizes, times, pays = (
        [line.split("  ") for line in part.splitlines() if line.startswith("gradmem")]
        for part in done.output.split("\n\n")[:3]
    )
    # Two vectors of 32 numbers: 256 bytes, and 68 with their scales; one layer's KV is 256 bytes a position.
    assert [[cell.strip() for cell in row if cell][1:4] for row in sizes] == [
        ["256 B", "2", "512 B"],
        ["68 B", "2", "512 B"],
    ]
    assert len(times) == len(pays) == 2
    told = r"contexts of 6 tokens, answers of up to 2, 4 at a time; cpu \(.+?\), float32, 1 thread"
    assert re.search(told, unframed(done.output))
    assert "No peak: peak memory is measured on CUDA devices" in done.output
    assert " never: one READ takes " in done.output
    # How far it is goes elsewhere.
    assert "1/5  gradmem on kv_retrieval · llama-1x32 · 2 positions" in done.errors


def test_a_profile_for_programs_has_what_the_table_has_and_where_it_is_from(five_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--task=kv_retrieval", "--backbone=llama-1x32", *TASK, "--format=json"]
    [found] = json.loads(command("profile", "--method=gradmem", *arguments).output)
    profile = ProfileRecord.model_validate(found)
    [(path, record)] = [(path, one) for path, one in five_runs.items() if one.method.name == "gradmem"]
    # Costs in FLOPs and bytes are those of a trained run, since weights make no difference to them.
    assert profile.method == record.method and profile.backbone == record.backbone
    assert (profile.costs.write.flops, profile.costs.read.flops) == (record.costs.write.flops, record.costs.read.flops)
    assert profile.footprint == record.footprint
    assert profile.command[:2] == ["gradmem-bench", "profile"] and profile.environment == record.environment
    [loaded] = json.loads(command("profile", "--method=gradmem", *arguments, "--load", path.parent).output)
    assert loaded["costs"]["write"]["flops"] == found["costs"]["write"]["flops"]
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- compare


def test_compare_writes_the_table_in_four_formats(five_runs):
    output = next(iter(five_runs)).parents[2]
    scores = {record.method.name: record.metrics["exact_match"].value for record in five_runs.values()}
    for words in ([], ["--format=table"]):
        table = command("compare", output, *words)
        assert (table.code, table.errors) == (0, "")
        rows = [line.split() for line in table.output.splitlines() if line.split(" ")[0] in METHODS]
        assert {row[0]: row[1] for row in rows[:5]} == {method: f"{score:.3f}" for method, score in scores.items()}
        assert rows[0][0] == "full_kv" and rows[4][0] == "no_memory"
        assert max(map(len, table.output.splitlines())) <= 80

    markdown = command("compare", output, "--format=markdown")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.output.splitlines() if "|" in line]
    assert {row[0]: row[1].split(" ")[0] for row in cells[2:7]} == {m: f"{score:.3f}" for m, score in scores.items()}

    flat = list(csv.DictReader(io.StringIO(command("compare", output, "--format=csv").output)))
    assert {row["method"]: float(row["exact_match"]) for row in flat} == scores
    assert {row["train_steps"] for row in flat} == {"40"}
    assert "False" not in {row["swap_test_passed"] for row in flat}

    [found] = json.loads(command("compare", output, "--format=json").output)
    assert {row["method"]: row["exact_match"] for row in found["rows"]} == scores
    sizes = {record.method.name: record.footprint.state_bytes.max for record in five_runs.values()}
    assert {row["method"]: row["state_bytes_max"] for row in found["rows"]} == sizes
    assert found["rows"][0]["normalized_score"] == 1 and found["rows"][-1]["normalized_score"] == 0


def test_compare_takes_runs_one_by_one_too(five_runs):
    chosen = {path: record for path, record in five_runs.items() if record.method.name in ("rmt", "full_kv")}
    named = command("compare", *chosen, "--format=json")
    folders = command("compare", *(path.parent for path in chosen), "--format=json")
    assert named.output == folders.output
    assert [row["method"] for row in json.loads(named.output)[0]["rows"]] == ["full_kv", "rmt"]


def test_runs_that_cannot_be_compared_are_not_mixed(five_runs, tmp_path):
    for path, record in five_runs.items():
        if record.method.name in ("full_kv", "no_memory"):
            shutil.copytree(path.parent, tmp_path / path.parent.name)
    other = ["--set=task.pairs=2", "--set=training.steps=0", "--limit=16"]
    assert command("run", "--method=rmt", *TINY, *other, "--output", tmp_path).code == 0
    done = command("compare", tmp_path)
    assert (done.code, done.output) == (2, "")
    assert "do not belong in one table" in done.errors
    assert "task setting pairs (1 and 2)" in done.errors
    tables = json.loads(command("compare", tmp_path, "--by=config", "--format=json").output)
    assert sorted([row["method"] for row in table["rows"]] for table in tables) == [["full_kv", "no_memory"], ["rmt"]]


def test_compare_without_records_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "There is no run at runs" in command("compare").errors
    (tmp_path / "runs").mkdir()
    assert "There are no records here" in command("compare").errors
    assert "There are no runs in runs: gradmem-bench run" in command("list", "runs").output

"""`gradmem-bench lm-eval` and `tasks-dir`: lm-eval's own command line with the model in it."""

import json
from pathlib import Path

import pytest
from commands import command

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install gradmem-bench[lm-eval]")


def test_the_front_reads_the_data_folder(local_model, tmp_path, monkeypatch):
    folder = tmp_path / "data" / "rajpurkar" / "squad"
    folder.mkdir(parents=True)
    rest = {"title": "t", "question": "c", "answers": {"text": ["ab"], "answer_start": [0]}}
    rows = [{"id": f"q{row}", "context": f"ab{row}", **rest} for row in range(3)]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("GRADMEM_BENCH_DATA", str(tmp_path / "data"))
    model_args = f"--model_args=method=full_kv,backbone={local_model}"
    out = ["--device=cpu", "--output_path", tmp_path / "results", "--log_samples"]
    done = command("lm-eval", "--model=gradmem_bench", model_args, "--tasks", "squad_removed", *out)
    assert done.code == 0, done.errors
    (path,) = (tmp_path / "results").rglob("results_*.json")
    found = json.loads(path.read_text())
    assert list(found["results"]) == ["squad_removed"] and not found.get("groups")
    assert found["n-samples"]["squad_removed"] == {"original": 3, "effective": 3}
    assert found["config"]["contexts"] == 3


def test_the_front_runs_lm_eval_with_the_model(runs, pairs, tmp_path):
    record, folder = runs["gradmem"]
    done = command(
        "lm-eval",
        "--model=gradmem_bench",
        f"--model_args=method=gradmem,checkpoint={folder},budget=512B",
        "--tasks",
        "two_pairs",
        "--include_path",
        pairs.parent,
        "--batch_size=32",
        "--device=cpu",
        "--output_path",
        tmp_path,
    )
    assert done.code == 0, done.errors
    (path,) = tmp_path.rglob("results_*.json")
    found = json.loads(path.read_text())
    assert found["results"]["two_pairs"]["exact_match,none"] == pytest.approx(record.metrics["exact_match"].value)
    assert found["config"]["state_bytes"]["max"] == record.footprint.state_bytes.max
    assert found["config"]["budget"]["bytes"] == 512
    assert "exact_match" in done.output


def test_a_mistake_in_the_front_is_one_sentence(pairs):
    done = command(
        "lm-eval", "--model", "gradmem_bench", "--model_args", "method=gradmen", "--tasks", "two_pairs",
        "--include_path", pairs.parent,
    )  # fmt: skip
    assert done.code == 2
    assert "There is no method 'gradmen'" in done.errors and "Traceback" not in done.errors


def test_the_folder_of_tasks_is_that_of_the_built_in_ones():
    folder = Path(command("tasks-dir").output.strip())
    assert (folder / "squad_removed.yaml").is_file()


@pytest.mark.parametrize("where", ["on the command line", "in a file"])
def test_the_front_knows_the_built_in_tasks(tmp_path, where):
    named = ["--tasks", "kv_small"]
    if where == "in a file":
        config = tmp_path / "asked.yaml"
        config.write_text("tasks: [kv_small]\n")
        named = ["--config", config]
    done = command(
        "lm-eval", "--model=gradmem_bench", "--model_args=method=no_memory,backbone=kv_recall", *named, "--limit=4",
        "--device=cpu",
    )  # fmt: skip
    assert done.code == 0, done.errors
    assert "kv_small" in done.output and "exact_match" in done.output

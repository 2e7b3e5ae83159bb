"""What `reproduce` prints of figures that are not rows."""

import json
import re

import pytest
import yaml
from commands import command
from smoke import EXPERIMENT

from gradmem_bench import experiment as experiment_module
from gradmem_bench.reconstruction import PARTS_FILE
from gradmem_bench.registry import recipe_folder
from gradmem_bench.results import find_records


def test_a_figure_without_a_number_of_ours_says_why_once_and_fails(tmp_path):
    experiment = json.loads(json.dumps(EXPERIMENT))
    group = experiment["scales"]["tiny"]["runs"][-1]
    experiment["scales"]["tiny"]["runs"] = [group | {"axes": {"task.pairs": [4, 8]}}]
    path = tmp_path / "nothing.yaml"
    path.write_text(yaml.dump(experiment))
    done = command("reproduce", path, "--output", tmp_path / "runs")
    assert done.code == 1
    progress, _, table = " ".join(done.output.split()).partition("missing (2):")
    assert progress.count("There is no method 'rtm'") == table.count("There is no method 'rtm'") == 1


def test_what_cannot_be_made_is_told_before_anything_is_trained(tmp_path):
    experiment = json.loads(json.dumps(EXPERIMENT))
    [group, *_, wrong] = experiment["scales"]["tiny"]["runs"]
    wrong |= {"method": "rmt", "settings": {"trainning.steps": 5}}
    experiment["scales"]["tiny"]["runs"] = [group | {"axes": {"task.pairs": [4]}, "start": []}, wrong]
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.dump(experiment))
    stale = tmp_path / "runs" / "smoke-tiny.svg"
    stale.parent.mkdir()
    stale.write_text("a picture of an earlier run")
    done = command("reproduce", path, "--output", tmp_path / "runs")
    text = " ".join(done.output.split())
    told = text.index("'trainning.steps': there is no section 'trainning'. Did you mean 'training'?")
    assert done.code == 0 and told < text.index("1/2") < text.index("2/2")
    # Below the table, what its numbers are of; beside it, no picture of what is not in it.
    assert "exact match of 32 queries in 8 contexts a seed, on llama-1x32; 1 of 2 scores missing." in text
    assert "≥ 0.9: how many of the seeds reach it." in text
    assert "earlier" not in stale.read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"evaluate": {"passes": [None, 2]}}, "(RMT ×1, pairs 4, passes 2): 'passes' of RMT ×1 stands under evaluate"),
        ({"settings": {"steps": 5}}, "method 'rmt' has no key 'steps'. Did you mean 'training.steps'?"),
        ({"settings": {"heads": 2}}, "method 'rmt' has no key 'heads'. Did you mean 'backbone.heads'?"),
        ({"settings": {"task.pears": 5}}, "task.pears=5, "),
        (
            {
                "axes": {"memory_vectors": [2, 4]},
                "start": [{"of": {"memory_vectors": 4}, "at": {"memory_vectors": 2}}],
            },
            "1 cannot be made (RMT ×1, memory_vectors 4): RMT ×1 cannot start from RMT ×1: "
            "'memory.vectors' is (2, 32) there and (4, 32) here.",
        ),
    ],
)
def test_what_cannot_be_made_of_a_run_is_told_with_its_row(tmp_path, change, words):
    experiment = json.loads(json.dumps(EXPERIMENT))
    scale = experiment["scales"]["tiny"]
    scale["runs"] = [scale["runs"][-1] | {"method": "rmt"} | change]
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.dump(experiment))
    done = command("reproduce", path, "--output", tmp_path / "runs", "--dry-run")
    assert words in " ".join(done.output.split())
    # In one case the run that the other would have started from can be made.
    assert done.code == (0 if "start" in change or "evaluate" in change else 1)


def test_losses_are_measured_for_each_number_of_steps(tmp_path):
    experiment = json.loads(json.dumps(EXPERIMENT)) | {"report": "losses", "figure": "losses"}
    [group, *_] = experiment["scales"]["tiny"]["runs"]
    group |= {"axes": {"task.pairs": [2]}, "start": [], "evaluate": {"evaluation_inner_steps": [1, 0, 3]}}
    group["settings"]["inner_learning_rate"] = 0.1
    experiment["scales"]["tiny"]["runs"] = [group]
    path = tmp_path / "losses.yaml"
    path.write_text(yaml.dump(experiment))
    done = command("reproduce", path, "--output", tmp_path / "runs")
    assert (done.code, done.errors) == (0, "")
    records = find_records([tmp_path / "runs"])
    totals = {}
    for file, record in records.items():
        parts = json.loads((file.parent / PARTS_FILE).read_text())["nats_per_token"]
        # Two pairs `!k:v!` and `|`: 2 keys, 2 values and 7 marks of 11 tokens make the mean in the record.
        mean = (2 * parts["keys"] + 2 * parts["values"] + 7 * parts["marks"]) / 11
        assert mean == pytest.approx(record.metrics["reconstruction_nats_per_token"].value, rel=1e-4)
        totals[record.method.parameters["evaluation_inner_steps"]] = mean
    # Descent goes down.
    assert totals[0] > totals[1] > totals[3]
    rows = [line.split() for line in done.output.splitlines() if "seed 0" in line and line.startswith("GradMem")]
    assert [row[6] for row in rows] == ["0", "1", "3"]

    # The same evaluations as a heat map; nothing is run for it.
    path.write_text(yaml.dump(experiment | {"report": "heat_map", "figure": "steps"}))
    before = find_records([tmp_path / "runs"])
    done = command("reproduce", path, "--output", tmp_path / "runs")
    assert (done.code, done.errors) == (0, "") and find_records([tmp_path / "runs"]) == before
    by_steps = {
        record.method.parameters["evaluation_inner_steps"]: record.metrics["teacher_forced_exact_match"].value
        for record in records.values()
    }
    shown = {line.split()[0]: line.split()[1:] for line in done.output.splitlines() if line.strip()}
    assert shown["K"] == ["=", "0", "1", "3"]
    assert shown["seed"] == ["0", *(f"{by_steps[steps]:.2f}" for steps in (0, 1, 3))]
    assert len(shown["foreign"]) == len(shown["random"]) == 3
    # Nothing was published at these K: no row of dashes says so.
    assert not {"paper", "difference"} & set(shown)
    assert (tmp_path / "runs" / "steps-tiny.png").exists()


def test_a_hub_that_is_not_there_is_asked_once_and_refuses_no_other_run(tmp_path, monkeypatch):
    asked, load = [], experiment_module.load_backbone

    def counted(config, *given):
        asked.append(config.tokenizer)
        return load(config, *given)

    monkeypatch.setattr(experiment_module, "load_backbone", counted)
    experiment = json.loads(json.dumps(EXPERIMENT))
    scale = experiment["scales"]["tiny"]
    here = {"name": "here", "method": "no_memory", "settings": {"training.steps": 0}}
    elsewhere = here | {"name": "elsewhere", "settings": {"training.steps": 0, "backbone.tokenizer": "github/nowhere"}}
    another = elsewhere | {"name": "another", "method": "mean_pool"}
    scale |= {"runs": [elsewhere, another, here], "seeds": [0, 1]}
    path = tmp_path / "hub.yaml"
    path.write_text(yaml.dump(experiment))
    done = command("reproduce", path, "--output", tmp_path / "runs")
    text = " ".join(done.output.split())
    assert done.code == 0 and "4 of 6 scores missing" in text and asked.count("github/nowhere") == 1
    assert "missing (4 of 6 runs, elsewhere; another): There is no tokenizer at 'github/nowhere'" in text


def test_a_plan_counts_no_time_for_a_training_that_is_there(tmp_path):
    experiment = json.loads(json.dumps(EXPERIMENT))
    [group, *_] = experiment["scales"]["tiny"]["runs"]
    group |= {"axes": {"task.pairs": [2]}, "start": [], "evaluate": {"evaluation_inner_steps": [None]}}
    experiment["scales"]["tiny"]["runs"] = [group]
    path = tmp_path / "smoke.yaml"

    def planned(*flags: str) -> str:
        path.write_text(yaml.dump(experiment))
        return " ".join(command("reproduce", path, "--output", tmp_path / "runs", *flags).output.split())

    assert "1 of 1 runs to make: about 60 s." in planned("--dry-run")
    planned()
    group["evaluate"] = {"evaluation_inner_steps": [None, 0]}
    assert "1 of 2 runs to make." in planned("--dry-run")


def test_a_figure_is_made_at_its_smallest_scale_where_none_is_named(tmp_path):
    told = command("reproduce", "writing_seeds", "--output", tmp_path, "--dry-run")
    assert told.code == 0 and "scale small" in told.output
    told = command("reproduce", "writing_seeds", "--scale", "tiny", "--output", tmp_path, "--dry-run")
    assert told.code == 2 and "writing_seeds has no scale 'tiny', only small." in told.errors


def test_a_plan_tells_which_measurements_are_there(tmp_path):
    calls = [["--pairs", "4", "--steps", "1"], ["--pairs", "8", "--steps", "1"]]
    declared = {"figure": "speed", "title": "Speed", "report": "performance"}
    scales = {"tiny": {"about": "Tiny.", "benchmark": calls}}
    (tmp_path / "speed.yaml").write_text(yaml.safe_dump(declared | {"scales": scales}))
    (tmp_path / "performance").mkdir()
    record = {"command": ["python", "benchmarks/meta_gradient.py", *calls[0], "--device", "cpu"]}
    (tmp_path / "performance" / "meta_gradient-kv-4.json").write_text(json.dumps(record))
    told = command("reproduce", tmp_path / "speed.yaml", "--output", tmp_path, "--dry-run")
    assert told.code == 0 and "runs to make" not in told.output
    text = " ".join(told.output.split())
    assert "--pairs 4 --steps 1 (there) python benchmarks/meta_gradient.py --pairs 8 --steps 1 1 of 2" in text


def test_the_help_names_every_figure():
    told = command("reproduce", "--help").output
    folder = recipe_folder("experiment")
    assert [path.stem for path in folder.glob("*.yaml") if not re.search(rf"\b{path.stem}\b", told)] == []

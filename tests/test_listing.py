from pathlib import Path

from commands import command
from records import TASK, run_record, write_run

import gradmem_bench
from gradmem_bench.config import BackboneConfig, Budget, TrainingConfig
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.gradmem import GradMemParameters
from gradmem_bench.registry import built_in_backbones, recipe_folder
from gradmem_bench.reporting.tables import duration
from gradmem_bench.reproduction import estimated_seconds, expand, experiments


def test_a_list_of_runs_can_be_read_at_eighty_columns(five_runs):
    output = next(iter(five_runs)).parents[2]
    done = command("list", "runs", "--output", output)
    assert done.code == 0
    assert "…" not in done.output
    lines = done.output.splitlines()
    for path, record in five_runs.items():
        facts = lines[lines.index(f"  {path.parent}") - 1]
        score = record.metrics["exact_match"]
        assert facts.split()[0] == record.method.name
        assert f"  {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]  " in facts
        steps = "–" if record.training is None else f"{record.training.steps}"
        seed = "–" if record.training is None else f"{record.training.seed}"
        assert facts.split()[4:] == [str(score.n), *str(record.budget or "none").split(), "float32", seed, steps]
    # A folder is in one piece, however long it is.
    assert max(len(line) for line in lines if not line.startswith("  ")) <= 80


def test_the_figures_are_listed_with_their_scales_and_what_was_measured_of_them():
    done = command("list", "figures")
    rows = {line.split()[0]: line for line in done.output.splitlines()[1:] if line[1:2].strip()}
    assert done.code == 0 and rows.keys() == {path.stem for path in recipe_folder("experiment").glob("*.yaml")}
    assert "group: fig4a, fig4b" in rows["fig4"]
    [experiment] = experiments("writing_seeds")
    seconds, unknown = estimated_seconds(expand(experiment.scales["small"]))
    assert not unknown and f"small {duration(seconds)}" in rows["writing_seeds"]


def test_the_backbones_that_come_with_it_are_listed_with_their_sizes():
    done = command("list", "backbones")
    rows = {line.split()[0]: line.split()[1:] for line in done.output.splitlines()[1:] if line.strip()}
    assert done.code == 0
    for name in built_in_backbones():
        on = load_backbone(BackboneConfig(name=name), None, "cpu", 0)
        parameters = sum(parameter.numel() for parameter in on.model.parameters())
        sizes = (on.layers, on.width, on.vocabulary_size, on.max_positions, parameters)
        assert rows[name] == [on.config.model_type, *(f"{size:,}" for size in sizes)]


def test_a_list_of_no_runs_names_the_folder_and_what_makes_one(tmp_path):
    done = command("list", "runs", "--output", tmp_path / "nothere")
    where = tmp_path / "nothere"
    assert done.code == 0 and done.output == (
        f"There are no runs in {where}: gradmem-bench run --method NAME --task NAME --output {where} makes one.\n"
    )


def test_a_list_tells_runs_of_one_task_apart(tmp_path):
    half = [True, False] * 20
    for seed, dtype, positions in ((0, "float32", 8), (1, "float32", 8), (0, "int8", 16)):
        size = run_record().footprint.model_copy(update={"state_dtype": dtype})
        budget = Budget(positions=positions, state_dtype=dtype)
        write_run(tmp_path / f"{dtype}-{seed}", half, seed=seed, budget=budget, footprint=size)
    other = TASK.model_copy(update={"settings": TASK.settings | {"pairs": 96}, "contexts": 40, "queries": 40})
    write_run(tmp_path / "z", half, task=other)
    first, second = (part.splitlines() for part in command("list", "runs", "--output", tmp_path).output.split("\n\n"))
    assert first[0] == "kv_retrieval, pairs 4, exact match [95 % interval]"
    assert second[0] == "kv_retrieval, pairs 96, exact match [95 % interval]"
    told = [line.split()[4:] for line in first[2::2]]
    assert told == [
        ["40", "8", "positions", "float32", "0", "1,000"],
        ["40", "8", "positions", "float32", "1", "1,000"],
        ["40", "16", "positions", "int8", "0", "1,000"],
    ]


def test_show_fills_in_every_default_and_says_where_it_is_from():
    method, task = command("show", "gradmem"), command("show", "kv_retrieval")
    assert (method.code, task.code) == (0, 0)
    for words in ("methods/gradmem.yaml", "Kuratov et al.", *(f"{key}:" for key in GradMemParameters.model_fields)):
        assert words in method.output
    for words in (
        "tasks/kv_retrieval.yaml",
        "pairs: 8",
        "name: llama-4x128",
        "steps: 20000",
        *(f"{key}:" for key in TrainingConfig.model_fields),
    ):
        assert words in task.output
    wrong = command("show", "gradmen")
    assert (wrong.code, wrong.output) == (2, "")
    told = "There is no method, task or built-in backbone named 'gradmen'. Did you mean 'gradmem'?"
    assert wrong.errors == f"error: {told}\n"


def test_show_says_of_a_backbone_how_it_was_made():
    shown = command("show", "wiki_2m")
    assert shown.code == 0
    assert "backbones/wiki_2m" in shown.output
    page = (Path(gradmem_bench.__file__).parents[1] / "backbones/wiki_2m/README.md").read_text()
    assert shown.output.endswith(page), "whole, with its commands as they can be pasted"
    wrong = command("show", "wiki_3m")
    assert (wrong.code, wrong.output) == (2, "")
    assert "Did you mean 'wiki_2m'" in wrong.errors

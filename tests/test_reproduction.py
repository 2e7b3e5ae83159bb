"""Figures from their experiments: which runs, in which order, from which checkpoint, and what is said of them."""

import json
import re
from pathlib import Path
from shutil import copytree, rmtree

import pytest
import yaml
from commands import command, files
from pydantic import ValidationError
from smoke import EXPERIMENT

from gradmem_bench.archive import Archive, expected_of, missing
from gradmem_bench.config import BackboneConfig
from gradmem_bench.errors import UserError
from gradmem_bench.experiment import Known
from gradmem_bench.loading import load_backbone
from gradmem_bench.paper import paper_figure
from gradmem_bench.registry import recipe_folder
from gradmem_bench.reproduction import (
    SCALES,
    Scale,
    estimated_seconds,
    expand,
    experiments,
)
from gradmem_bench.results import find_records
from gradmem_bench.tasks.declaration import load_task
from gradmem_bench.tasks.identity import declaration_hashes

FIGURES = ("fig3", "fig4a", "fig4b", "fig5", "babi", "squad", "question", "reconstruction")
OWN = (
    "writing", "writing_steps", "writing_ablation", "writing_seeds", "writing_pairs", "eight_vectors", "babi_wiki",
    "squad_wiki", "babi_wiki_14m", "squad_wiki_14m",
)  # fmt: skip
"""Figures that are not in the paper."""


def scale() -> Scale:
    return Scale.model_validate(EXPERIMENT["scales"]["tiny"])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path, str]:
    """The experiment's file, where its runs are, and what was printed."""
    folder = tmp_path_factory.mktemp("reproduce")
    path = folder / "smoke.yaml"
    path.write_text(yaml.dump(EXPERIMENT))
    done = command("reproduce", path, "--output", folder / "runs")
    assert (done.code, done.errors) == (0, "")
    return path, folder / "runs", done.output


# ------------------------------------------------------------------------------------ what is built in


@pytest.mark.parametrize("name", [*FIGURES, *OWN])
def test_every_experiment_names_what_there_is_and_has_numbers_beside_it(name):
    [experiment], known = experiments(name), Known()
    if name in FIGURES:
        paper = paper_figure(experiment.paper or experiment.figure)
        assert paper.figure == name and paper.rows
    for size in experiment.scales.values():
        runs = expand(size)
        assert len({(run.row, run.seed) for run in runs}) == len(runs)
        for position, run in enumerate(runs):
            if run.start is not None:
                assert run.start in runs[:position]
            if not run.evaluation and run.seed == runs[0].seed:
                expected_of(run, known)


def test_groups_stand_for_their_figures():
    assert [one.figure for one in experiments("fig4")] == ["fig4a", "fig4b"]
    assert [one.figure for one in experiments("tables")] == ["babi", "squad", "question", "reconstruction"]
    with pytest.raises(UserError, match="no figure 'fig33' to reproduce. Did you mean 'fig3'"):
        experiments("fig33")


def test_published_numbers_that_are_named_have_to_be_there(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("figure: mine\ntitle: Mine\npaper: fig33\nscales: {tiny: {about: Nothing.}}\n")
    with pytest.raises(UserError, match="nothing is published as 'fig33'; .*fig4a.* Did you mean 'fig3'"):
        experiments(str(file))


def test_fig4_trains_what_fig3_trains():
    for size in SCALES:
        [figure], [steps] = experiments("fig3"), experiments("fig4a")
        trained = {run.training for run in expand(figure.scales[size])}
        assert {run.training for run in expand(steps.scales[size])} & trained, size
    # At tiny nothing of fig4 is trained that fig3 did not.
    assert {run.training for run in expand(steps.scales["tiny"])} <= {
        run.training for run in expand(figure.scales["tiny"])
    }


def test_the_claims_are_seen_on_one_set_of_trainings():
    writing, steps, ablation = (expand(one.scales["tiny"]) for one in experiments("claims"))
    trained = {run.training for run in writing}
    assert {run.training for run in steps} <= trained and {run.training for run in ablation} & trained
    # At one and the same number of bytes: two vectors, whatever the method.
    told = {run.settings.get("memory_vectors") for run in [*writing, *steps, *ablation]}
    assert told == {2, None}
    assert {run.method for run in writing if "memory_vectors" not in run.settings} == {"full_kv", "no_memory"}


# ----------------------------------------------------------------------------------------------- runs


def test_runs_come_after_those_they_start_from_and_share_a_training():
    runs = expand(scale())
    told = [(run.name, run.setting, run.start and run.start.setting) for run in runs]
    assert told == [
        ("GradMem K=1", {"pairs": 2}, None),
        ("GradMem K=1", {"pairs": 4}, {"pairs": 2}),
        ("GradMem K=1", {"pairs": 4, "evaluation_inner_steps": 0}, {"pairs": 2}),
        ("GradMem K=1", {"pairs": 2, "evaluation_inner_steps": 0}, None),
        ("no memory", {"pairs": 4}, None),
        ("RMT ×1", {"pairs": 4}, None),
    ]
    assert runs[0].training == runs[3].training != runs[1].training == runs[2].training
    # Two trainings of a minute each; the times of the others were not measured.
    assert estimated_seconds(runs) == (120, 2)
    told = runs[0].assignments("gradmem")
    assert "gradmem.inner_steps=1" in told and "task.pairs=2" in told


def test_an_axis_may_hold_lists_and_mappings():
    one = json.loads(json.dumps(EXPERIMENT["scales"]["tiny"]))
    betas, stages = [[0.9, 0.99], [0.9, 0.95]], [[], [{"task": {"pairs": 1}}]]
    start = {"of": {"training.betas": betas[1]}, "at": {"training.betas": betas[0]}}
    axes = {"training.betas": betas, "training.curriculum": stages}
    one["runs"] = [{"name": "mean", "method": "mean_pool", "axes": axes, "start": [start]}]
    runs = expand(Scale.model_validate(one))
    assert [(run.setting["betas"], run.setting["curriculum"]) for run in runs] == [
        (first, second) for first in betas for second in stages
    ]
    assert [run.start for run in runs] == [None, None, *runs[:2]]
    assert len({run.row for run in runs}) == len({run.training for run in runs}) == 4
    made = [expected_of(run, Known())["training"] for run in runs]
    assert [training["betas"] for training in made] == [betas[0], betas[0], betas[1], betas[1]]


def test_a_plan_of_several_figures_counts_a_training_once():
    told = " ".join(command("reproduce", "fig4", "--dry-run").output.split())
    [first] = re.findall(r"48 of 48 runs to make: (about [\d.]+ (?:s|min|h))\.", told)
    assert "48 of 48 runs to make; 12 of their trainings are counted above." in told
    assert first != "about 0 s" and f"All figures: {first}." in told


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"figure": "../smoke"}, "'figure' is '../smoke'"),
        ({"figure": "fig3"}, "a name of its own, and 'paper: fig3' for the same"),
        ({"metric": "acuracy"}, "'metric' is 'acuracy'"),
        ({"limit": 0}, "'scales.tiny.limit' is 0"),
        ({"seeds": []}, "'scales.tiny.seeds' is"),
        ({"seeds": 2}, "'scales.tiny.seeds' is 2, but: input should be a list"),
        ({"budget": "2KiB"}, "has no key 'scales.tiny.budget'. Known: about, backbone"),
        ({"settings": {"training": {"steps": 2}}}, "'training' is a section, whose keys are written with a dot"),
    ],
)
def test_a_mistake_in_an_experiment_is_told_before_anything_is_run(tmp_path, wrong, words):
    declared = json.loads(json.dumps(EXPERIMENT))
    for key, value in wrong.items():
        (declared if key in ("figure", "metric") else declared["scales"]["tiny"])[key] = value
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.dump(declared))
    done = command("reproduce", path, "--output", tmp_path / "runs")
    assert (done.code, done.output) == (2, "") and words in done.errors and not (tmp_path / "runs").exists()


def test_two_runs_of_one_name_and_setting_are_refused():
    declared = json.loads(json.dumps(EXPERIMENT["scales"]["tiny"]))
    declared["runs"][2]["name"] = "no memory"
    with pytest.raises(UserError, match="Two runs are called 'no memory'"):
        expand(Scale.model_validate(declared))


def test_what_is_given_twice_in_a_group_is_refused():
    declared = json.loads(json.dumps(EXPERIMENT["scales"]["tiny"]))
    declared["runs"][0]["settings"]["task.pairs"] = 8
    with pytest.raises(ValidationError, match="'task.pairs' of 'GradMem K=1' stands under settings and under axes"):
        Scale.model_validate(declared)


def test_a_start_from_a_name_that_no_run_has_is_told():
    broken = json.loads(json.dumps(EXPERIMENT["scales"]["tiny"]))
    broken["runs"][0]["start"][0]["name"] = "Gradmem K=1"
    with pytest.raises(
        UserError, match="starts from 'Gradmem K=1', which no run is called. Did you mean 'GradMem K=1'"
    ):
        expand(Scale.model_validate(broken))


def test_a_start_that_no_run_has_is_refused():
    broken = json.loads(json.dumps(EXPERIMENT["scales"]["tiny"]))
    broken["runs"][0]["start"][0]["at"]["task.pairs"] = 3
    with pytest.raises(UserError, match="starts from GradMem K=1 at {'task.pairs': 3}, seed 0, which is no run"):
        expand(Scale.model_validate(broken))


def test_a_figure_is_made_run_by_run(made):
    _, output, _ = made
    records = {path: record for path, record in find_records([output]).items()}
    archive, runs = Archive(records), expand(scale())
    assert len(records) == 5 and [run.name for run in missing(runs, archive)] == ["RMT ×1"]
    found = [archive.find(run) for run in runs[:5]]
    first, second, second_without, first_without, _ = (record for _, record in found)
    assert [record.task.settings["pairs"] for record in (first, second)] == [2, 4]
    # The second begins with the weights that the first ended with.
    start = f"gradmem-{first.config_hash[:8]}/"
    assert first.training.initial_checkpoint is None and second.training.initial_checkpoint.startswith(start)
    assert second_without.method.parameters["evaluation_inner_steps"] == 0
    weights = [path.parent / "method.safetensors" for path, _ in found]
    assert weights[0].samefile(weights[3]) and weights[1].samefile(weights[2]) and not weights[0].samefile(weights[1])
    # No step, no context: all memories are the same.
    assert first_without.swap_test.own_score == first_without.swap_test.swapped_score
    assert first.swap_test.random_score is not None


def test_what_is_shown_fits_80_columns_and_says_what_is_missing(made):
    _, output, printed = made
    text = (output / "smoke-tiny.txt").read_text()
    assert text in printed and max(map(len, text.splitlines())) <= 80
    compared = text.split("each seed")[0]
    [row] = [line for line in compared.splitlines() if line.startswith("GradMem K=1  pairs 4")]
    score = next(
        record.metrics["teacher_forced_exact_match"].value
        for record in find_records([output]).values()
        if record.task.settings["pairs"] == 4 and record.method.parameters.get("evaluation_inner_steps", 0) is None
    )
    assert f"{score:.3f} [" in row and "1.000 [1.00, 1.00]" in row and row.endswith(f"{score - 1:+.3f}")
    assert "RMT ×1       pairs 4             missing" in text
    assert "missing (1): There is no method 'rtm'" in text and "'rmt'" in text
    assert (output / "smoke-tiny.png").exists() and (output / "smoke-tiny.svg").exists()


def test_what_is_there_is_not_made_again(made):
    path, output, _ = made
    before = {file: what for file, what in files(output).items() if file.parent != output}
    again = command("reproduce", path, "--output", output)
    assert {file: what for file, what in files(output).items() if file.parent != output} == before
    assert (again.code, "· loss" in again.output) == (0, False)
    told = command("reproduce", path, "--output", output, "--dry-run").output
    told = " ".join(told.split())
    assert "1 of 6 runs to make, of which 0 can be made." in told
    assert "1 cannot be made (RMT ×1, pairs 4): There is no method 'rtm'" in told


def test_what_is_expected_of_a_run_is_what_all_runs_before_it_bring():
    def chain(vectors: int) -> list[dict]:
        names = [f"{place} of {vectors}" for place in ("first", "second", "third")]
        own = [{"memory_vectors": vectors}, {"inner_steps": 1}, {"inner_steps": 1}]
        starts = [[], *([{"name": name}] for name in names)]
        parts = zip(names, own, starts, strict=False)
        return [{"name": name, "method": "gradmem", "settings": one, "start": start} for name, one, start in parts]

    runs = expand(Scale.model_validate({"about": "", "task": "kv_small", "runs": [*chain(2), *chain(3)]}))
    thirds = [run for run in runs if run.name.startswith("third")]
    assert [run.settings for run in thirds] == [{"inner_steps": 1}] * 2
    archive = Archive({})
    # One archive for both: it keeps what it once found.
    assert [archive._of(run)["parameters"]["memory_vectors"] for run in thirds] == [2, 3]


def test_a_record_answers_for_no_other_run(made):
    _, output, _ = made
    archive = Archive(find_records([output]))
    for group, change in {
        0: {"settings": {"inner_steps": 1, "memory_vectors": 3}},
        1: {"settings": {"training.steps": 5}},
    }.items():
        other = json.loads(json.dumps(EXPERIMENT["scales"]["tiny"]))
        other["runs"] = [other["runs"][group] | change]
        assert archive.find(expand(Scale.model_validate(other))[0]) is None
    other = EXPERIMENT["scales"]["tiny"] | {"seeds": [1]}
    assert archive.find(expand(Scale.model_validate(other))[0]) is None
    path, record = archive.find(expand(scale())[0])
    # Nor does one whose states were rounded: an experiment's are as they are written.
    rounded = record.footprint.model_copy(update={"state_dtype": "int8"})
    only = Archive({path: record.model_copy(update={"footprint": rounded})})
    assert only.find(expand(scale())[0]) is None


def test_a_record_answers_for_no_other_shape_of_a_backbone_of_its_name(tmp_path):
    one = EXPERIMENT["scales"]["tiny"] | {"backbone": "mamba-1x32"}
    one["settings"] = one["settings"] | {"training.steps": 1, "task.pairs": 2}
    one["runs"] = [{"name": "Mamba", "method": "mamba", "axes": {"backbone.state_size": [4, 8]}}]
    few, many = expand(Scale.model_validate(one))
    one["runs"][0]["axes"]["backbone.state_size"].pop()
    path = tmp_path / "shapes.yaml"
    path.write_text(yaml.dump(EXPERIMENT | {"scales": {"tiny": one}}))
    assert command("reproduce", path, "--output", tmp_path / "runs").code == 0
    archive = Archive(find_records([tmp_path / "runs"]))
    assert (archive.find(few) is None, archive.find(many) is None) == (False, True)


def test_a_record_answers_for_no_other_weights_of_a_folder_of_its_name(made, tmp_path, local_model, monkeypatch):
    _, output, _ = made
    path, record = Archive(find_records([output])).find(expand(scale())[0])
    folder = copytree(local_model, tmp_path / "lm")
    on = load_backbone(BackboneConfig(name=str(folder)), None, "cpu", 0)
    backbone = record.backbone.model_copy(update={"name": "lm", "weights_hash": on.identity["weights_hash"]})
    records = {path: record.model_copy(update={"backbone": backbone})}

    def answers(name: str) -> bool:
        return Archive(records).find(expand(scale().model_copy(update={"backbone": name}))[0]) is not None

    monkeypatch.chdir(tmp_path)
    assert answers("lm") and answers(str(folder))
    on.model.get_input_embeddings().weight.data += 1
    on.model.save_pretrained(folder)
    assert not answers("lm") and not answers(str(folder))
    (folder / "model.safetensors").write_bytes(b"nothing")
    assert not answers("lm")
    # What is published is shown to whoever has no such folder.
    rmtree(folder)
    assert answers("lm")


def test_a_record_answers_for_no_other_declaration_of_its_task(made, tmp_path):
    _, output, _ = made
    path, record = Archive(find_records([output])).find(expand(scale())[0])
    own = tmp_path / "own.yaml"
    own.write_text(f"include: {recipe_folder('task') / 'kv_retrieval.yaml'}\n")
    [run] = [one for one in expand(scale().model_copy(update={"task": str(own)})) if one.setting == {"pairs": 2}]
    for found, there in (("", False), (declaration_hashes(load_task(own)).whole, True)):
        task = record.task.model_copy(update={"declaration_hash": found or None})
        archive = Archive({path: record.model_copy(update={"task": task})})
        assert (archive.find(run) is not None) == there


def test_a_run_is_missing_where_the_checkpoint_is_that_it_starts_from(made, tmp_path):
    path, output, _ = made
    file, _ = Archive(find_records([output])).find(expand(scale())[0])
    published = tmp_path / "kv_retrieval" / file.parent.name
    published.mkdir(parents=True)
    (published / "run.json").write_bytes(file.read_bytes())
    done = command("reproduce", path, "--output", tmp_path)
    assert (done.code, done.errors) == (0, "")
    shown = " ".join(done.output.split())
    assert "missing (2): GradMem K=1 starts from a checkpoint of GradMem K=1 that is not here" in shown


def test_what_a_user_brings_is_made_and_found_again(tmp_path, local_task, local_model):
    method = tmp_path / "mine.yaml"
    method.write_text("name: mine\nclass: gradmem_bench.methods.mean_pool:MeanPool\nparameters: {memory_vectors: 2}\n")
    size = {
        "about": "For a test.",
        "task": str(local_task),
        "backbone": str(local_model),
        "limit": 2,
        "settings": {"training.evaluate_every": 1, "training.validation_contexts": 2, "training.steps": 1},
        "runs": [
            {
                "name": "mine",
                "method": str(method),
                "settings": {"memory_vectors": 3},
                "axes": {"training.betas": [[0.9, 0.99], [0.9, 0.95]]},
            },
        ],
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"figure": "own", "title": "My own", "scales": {"tiny": size}}))
    done = command("reproduce", path, "--output", tmp_path / "runs")
    assert (done.code, done.errors) == (0, "")
    assert "0 of 2 scores missing" in " ".join(done.output.split()) and "betas [0.9, 0.95]" in done.output
    records = find_records([tmp_path / "runs"]).values()
    assert {(record.method.name, record.method.parameters["memory_vectors"]) for record in records} == {("mine", 3)}
    again = command("reproduce", path, "--output", tmp_path / "runs", "--dry-run").output
    assert "0 of 2 runs to make" in again


def test_what_is_not_trained_is_found_again(tmp_path):
    experiment = json.loads(json.dumps(EXPERIMENT))
    scale = experiment["scales"]["tiny"]
    scale["runs"] = [{"name": "untrained", "method": "mean_pool", "settings": {"memory_vectors": 2}}]
    scale |= {"seeds": [0, 1], "settings": scale["settings"] | {"training.steps": 0}}
    path, runs = tmp_path / "untrained.yaml", tmp_path / "runs"
    path.write_text(yaml.dump(experiment))
    done = command("reproduce", path, "--output", runs)
    assert done.code == 0 and "0 of 2 scores missing" in " ".join(done.output.split())
    assert {(record.training, record.seed) for record in find_records([runs]).values()} == {(None, 0), (None, 1)}
    assert "0 of 2 runs to make" in command("reproduce", path, "--output", runs, "--dry-run").output

    # Neither another seed nor a training is answered by them.
    scale["seeds"] = [0, 2]
    path.write_text(yaml.dump(experiment))
    assert "1 of 2 runs to make" in command("reproduce", path, "--output", runs, "--dry-run").output
    scale["settings"]["training.steps"] = 1
    path.write_text(yaml.dump(experiment))
    assert "2 of 2 runs to make" in command("reproduce", path, "--output", runs, "--dry-run").output

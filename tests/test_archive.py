"""Which run a record answers for, and which no longer."""

from pathlib import Path

import pytest
import yaml
from commands import command
from planned import edit, make_task

from gradmem_bench.archive import Archive, missing
from gradmem_bench.config import BackboneConfig
from gradmem_bench.reproduction import Run, expand, experiments, scale_of
from gradmem_bench.results import RunRecord, find_records

METHOD = """
from gradmem_bench.methods.mean_pool import MeanPool


class Mine(MeanPool):
    pass
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A figure's file beside its runs: a method and a task of files of one's own, and what goes on without training."""
    folder = tmp_path_factory.mktemp("own")
    task = make_task(folder)
    (folder / "mine.py").write_text(METHOD)
    (folder / "mine.yaml").write_text("name: mine\nclass: mine:Mine\nparameters: {memory_vectors: 2}\n")
    trained = {"name": "trained", "method": str(folder / "mine.yaml")}
    loaded = {**trained, "name": "loaded", "start": [{"name": "trained"}], "settings": {"training.steps": 0}}
    other = {**loaded, "name": "fewer", "limit": 4}
    scale = {
        "about": "For a test.", "task": str(task), "backbone": "llama-1x32",
        "settings": {"backbone.tokenizer": "wiki_2m"}, "runs": [trained, loaded, other],
    }  # fmt: skip
    (folder / "figure.yaml").write_text(yaml.dump({"figure": "own", "title": "Own", "scales": {"tiny": scale}}))
    done = command("reproduce", folder / "figure.yaml", "--output", folder / "runs")
    assert (done.code, done.errors) == (0, "")
    return folder


def of(folder: Path) -> tuple[list[Run], Archive]:
    [experiment] = experiments(str(folder / "figure.yaml"))
    return expand(scale_of(experiment, "tiny")), Archive(find_records([folder / "runs"]))


def test_a_run_that_is_loaded_and_not_trained_on_is_there_once_it_is_made(made):
    runs, archive = of(made)
    assert missing(runs, archive) == []
    trained, loaded, fewer = (archive.find(run)[1] for run in runs)
    # Evaluated alike, what was loaded is what was trained; on fewer contexts it is a run of its own.
    assert loaded == trained and fewer.run_id != trained.run_id
    assert fewer.training == trained.training and fewer.task.contexts == 4


def test_a_record_of_another_body_or_of_other_data_no_longer_answers(made):
    body, query = ("    pass", "    # Changed.\n    pass"), ('"?3"', '"?33"')
    for name, change in (("mine.py", body), ("test.jsonl", query), ("train.jsonl", query)):
        kept = (made / name).read_text()
        edit(made / name, *change)
        # What starts from a training that is missing is missing too.
        assert missing(*of(made)) == of(made)[0], name
        (made / name).write_text(kept)
    assert missing(*of(made)) == []


def changed(record: RunRecord, part: str, **values) -> RunRecord:
    return record.model_copy(update={part: getattr(record, part).model_copy(update=values)})


def test_a_record_of_another_version_or_of_a_training_on_another_task_does_not_answer(made):
    runs, archive = of(made)
    path, record = archive.find(runs[0])
    for other in (
        changed(record, "task", version="0.9"),
        record.model_copy(update={"trained_elsewhere": "another"}),
        changed(record, "training", task=record.training.task.model_copy(update={"training_hash": "0"})),
    ):
        archive.records = {path: other}
        assert archive.find(runs[0]) is None
    # A record from before it was kept is taken for one of its own task.
    archive.records = {path: changed(record, "training", task=None)}
    assert archive.find(runs[0]) is not None


def test_a_revision_that_is_named_is_the_one_of_the_record(made):
    runs, archive = of(made)
    _, record = archive.find(runs[0])
    task = archive._of(runs[0])["task"]
    found = changed(record, "backbone", name="someone/lm", revision="a1b2", weights_hash="c3d4")
    for revision in (None, "a1b2"):
        assert archive._alike(found, BackboneConfig(name="someone/lm", revision=revision), task)
    # What a branch stands for is not known of a model that no hub has.
    assert not archive._alike(found, BackboneConfig(name="someone/lm", revision="main"), task)

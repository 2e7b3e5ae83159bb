"""The records that are there already, and which run each of them answers for."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradmem_bench.config import BackboneConfig, TrainingConfig, merge, validated
from gradmem_bench.errors import UserError
from gradmem_bench.experiment import Known, choose
from gradmem_bench.hashing import class_hash
from gradmem_bench.loading import load_backbone, own_folder, recorded_name
from gradmem_bench.plan import Options
from gradmem_bench.registry import located
from gradmem_bench.reproduction import Run
from gradmem_bench.results import RunRecord, TrainingRecord
from gradmem_bench.tasks.base import Split, Task
from gradmem_bench.tasks.identity import declaration_hashes, task_version


class Archive:
    """Records by what they answer for.

    A record answers for a run when all that the run sets, and the defaults of the rest, are in it; a setting that the
    record is too old to know has to be at its default.
    """

    def __init__(self, records: Mapping[Path, RunRecord]) -> None:
        self.records = dict(records)
        self.known = Known()
        """Tasks and backbones' shapes, for whoever makes what is missing as well."""
        self._expected: dict[tuple[Any, ...], dict[str, Any] | None] = {}
        self._weights: dict[Path, str | None] = {}

    def find(self, run: Run) -> tuple[Path, RunRecord] | None:
        """The record of a run and the file it is in."""
        return next(self._found(run), None)

    def _found(self, run: Run) -> Iterator[tuple[Path, RunRecord]]:
        expected = self._of(run)
        if expected is None:
            return
        begun = None if run.start is None else [record for _, record in self._found(run.start)]
        for path, record in self.records.items():
            if record.task.name == expected["task"].name and self._answers(record, run, expected):
                if any(_trained_alike(record, expected, before) for before in ([None] if begun is None else begun)):
                    yield path, record

    def _answers(self, record: RunRecord, run: Run, expected: dict[str, Any]) -> bool:
        training = record.training
        seed = record.seed if training is None else training.seed
        if seed != run.seed or record.task.limit != run.limit:
            return False
        task, backbone = expected["task"], expected["backbone"]
        return (
            record.method.implementation == expected["class"]
            and record.method.source_hash == expected["source"]
            and _agree(record.method.parameters, expected["parameters"], expected["parameter_defaults"])
            and record.task.version == expected["version"]
            and record.task.settings == task.declared_settings
            and record.task.declaration_hash == expected["declaration"]
            and record.environment.dtype == run.dtype
            and record.footprint.state_dtype == "float32"
            and _of_these_data(record.task.source.content_hash, task, record.task.split)
            and self._alike(record, backbone, task)
        )

    def _alike(self, record: RunRecord, backbone: BackboneConfig, task: Task) -> bool:
        folder, found = own_folder(backbone.name), record.backbone
        if found.name != recorded_name(backbone.name):
            return False
        if backbone.revision is not None and found.revision != backbone.revision:
            # A branch or a tag; what it stands for, the hub knows.
            return found.revision == self._identity(backbone, task).get("revision")
        # Two random models of one name may have other shapes, and a folder other weights than it had; where there is no
        # folder, and of what is built in or on the hub, weights are what their name says.
        if found.weights_hash.startswith("random-"):
            return found.weights_hash == self._identity(backbone, task).get("weights_hash")
        return folder is None or found.weights_hash == self._weights_in(folder, backbone, task)

    def _identity(self, backbone: BackboneConfig, task: Task) -> dict[str, Any]:
        try:
            return self.known.shape(backbone, task).identity
        except UserError:
            # Nothing answers for a run that cannot be made; making it says why.
            return {}

    def _weights_in(self, folder: Path, backbone: BackboneConfig, task: Task) -> str | None:
        if folder not in self._weights:
            try:
                loaded = load_backbone(backbone, task.tokenizer(), "cpu", 0)
                self._weights[folder] = loaded.identity["weights_hash"]
            except UserError:
                # Nothing answers for a run that cannot be made.
                self._weights[folder] = None
        return self._weights[folder]

    def _of(self, run: Run) -> dict[str, Any] | None:
        # Whatever the seed.
        key = (run.method, run.task, run.backbone, repr(run.settings), run.inherited(run.method))
        if key not in self._expected:
            try:
                self._expected[key] = expected_of(run, self.known)
            except UserError:
                # Nothing answers for a run that cannot be made; making it says why.
                self._expected[key] = None
        return self._expected[key]


def _of_these_data(recorded: str | None, task: Task, split: Split) -> bool:
    """Whether a file of the task's that lies here is the one of the record; a hub is not asked for its own."""
    try:
        here = task.content_hash(split)
    except UserError:
        # There are other splits here; the run itself says which is missing.
        return True
    return here is None or recorded in (None, here)


def _trained_alike(record: RunRecord, expected: Mapping[str, Any], before: RunRecord | None) -> bool:
    """Whether a record's weights were trained as expected, from the checkpoint of `before` where there is one."""
    training: TrainingRecord | None = record.training
    if expected["training"]["steps"] == 0:
        # What is loaded and not trained on has the training that it was loaded with.
        return training == (before and before.training)
    if training is None or record.trained_elsewhere:
        return False
    data = training.task
    if data is not None and not (
        _of_these_data(data.training_hash, expected["task"], "train")
        and _of_these_data(data.validation_hash, expected["task"], "validation")
    ):
        return False
    begun, start = training.initial_checkpoint, before and f"{before.method.name}-{before.config_hash[:8]}/"
    if (start is None) != (begun is None) or (start is not None and not begun.startswith(start)):
        return False
    return _agree(training.config, expected["training"], expected["training_defaults"])


def _agree(found: Mapping[str, Any], expected: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    return all(found.get(key, defaults.get(key)) == value for key, value in expected.items())


def expected_of(run: Run, known: Known) -> dict[str, Any]:
    """What a record of this run says of itself; raises UserError for a name or a setting that is wrong."""
    entry = known.entry("method", run.method)
    settings = (*run.inherited(entry.name), *run.assignments(entry.name))
    chosen = choose(entry, Options(backbone=run.backbone, settings=settings))
    task = known.task(Path(located(known.entry("task", run.task)).target), chosen.sections["task"])
    training = merge(task.metadata.get("training", {}), merge(chosen.recipe.training, chosen.sections["training"]))
    unnamed = f"The task {task.name} names no backbone of its own; give '{run.name}' one."
    backbone = chosen.backbone(task.metadata.get("backbone", {}), unnamed)
    declaration = declaration_hashes(task)
    return {
        "class": chosen.recipe.implementation,
        "source": class_hash(chosen.method_class),
        "parameters": chosen.parameters.model_dump(mode="json"),
        # One that has no default is in every record.
        "parameter_defaults": chosen.method_class.Parameters.model_construct().model_dump(mode="json"),
        "training": validated(TrainingConfig, training, f"'{run.name}'").model_dump(mode="json"),
        "training_defaults": TrainingConfig().model_dump(mode="json"),
        "task": task,
        "version": task_version(task),
        "declaration": declaration and declaration.whole,
        "backbone": backbone,
    }


def missing(runs: Sequence[Run], archive: Archive) -> list[Run]:
    """The runs that no record answers for."""
    return [run for run in runs if archive.find(run) is None]

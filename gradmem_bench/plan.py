"""One run as it will be made, and by what it is known from any other."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gradmem_bench import __version__, checkpoints
from gradmem_bench.backbone import Backbone
from gradmem_bench.config import BackboneConfig, Budget, MethodRecipe, StrictModel, TrainingConfig, fingerprint
from gradmem_bench.hashing import class_hash
from gradmem_bench.loading import contents
from gradmem_bench.methods.base import Footprint, MemoryMethod
from gradmem_bench.tasks.base import Split, Task
from gradmem_bench.tasks.identity import DeclarationHashes, declaration_hashes, task_version


@dataclass(frozen=True)
class Options:
    """What the command line asks of every run."""

    backbone: str | None = None
    budget: Budget = Budget()
    settings: tuple[str, ...] = ()
    """`key=value` assignments: a method's parameter, or `backbone.`, `task.`, `training.` or `METHOD.` and a key."""
    methods: tuple[str, ...] = ()
    """All methods of the command, whose names may begin a setting's key."""
    load: Path | None = None
    train: bool = True
    limit: int | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"


@dataclass(frozen=True)
class Plan:
    """A run as it will be made; everything in it was checked, and no weights were loaded for it."""

    recipe: MethodRecipe
    package: str
    """The package that the method is from, with its version; empty for what is built in or a file of the user's."""
    method_class: type[MemoryMethod]
    parameters: StrictModel
    task: Task
    backbone: BackboneConfig
    shape: Backbone
    """The backbone without weights (on the meta device)."""
    training: TrainingConfig | None
    """`None` when nothing is trained."""
    options: Options
    checkpoint: Path | None
    context_tokens: tuple[float, int]
    """Mean and longest of a sample of the reported split's contexts."""
    footprint: Footprint
    """Declared, for the longest of them, as stored."""
    budget: Budget
    """What of the budget is asked of this method: floor and ceiling have no bounds, and text no dtype."""
    fitted: dict[str, Any]
    """The parameters that were changed to fill the budget."""
    max_context_tokens: int
    parameter_count: int
    """Of backbone and method."""

    @property
    def split(self) -> Split:
        return "test"

    def configuration(self) -> dict[str, Any]:
        """All that the result depends on, JSON-able; its fingerprint names the run's folder.

        Of what is built in, be it method, task or backbone, the versions tell, and it has no hash.
        """
        reported, trained = self._data_hash(self.split), self.training and self._data_hash("train")
        # Of a task that is built in, what is selected on is a part of the others, unless a file of its own lies here.
        selected = self._data_hash if self.task_hashes else self.task.content_hash
        validation = selected("validation") if self.training else None
        if self.task_hashes is None and validation in (reported, trained):
            validation = None
        return {
            "version": __version__,
            "method": {
                "class": self.recipe.implementation,
                "parameters": self.parameters.model_dump(mode="json"),
                **_present(source=self.source_hash),
            },
            "task": {
                "name": self.task.name,
                "version": task_version(self.task),
                "settings": self.task.declared_settings,
                "split": self.split,
                "hash": reported,
                "training_hash": trained,
                **_present(declaration=self.task_hashes and self.task_hashes.whole, validation_hash=validation),
            },
            "backbone": {**self.backbone.model_dump(mode="json"), **_present(contents=self.backbone_contents)},
            "training": self.training and self.training.model_dump(mode="json"),
            "budget": self.budget.model_dump(mode="json"),
            "load": self.checkpoint and checkpoints.read_about(self.checkpoint)["hash"],
            "limit": self.options.limit,
            "seed": self.options.seed,
            "dtype": self.options.dtype,
        }

    @property
    def trained_parameters(self) -> StrictModel:
        """`parameters` as training sees them: those of the evaluation alone are at their defaults."""
        fields = type(self.parameters).model_fields
        own = self.method_class.evaluation_parameters
        return self.parameters.model_copy(update={name: fields[name].get_default() for name in own})

    @property
    def training_hash(self) -> str:
        """Fingerprint of all that the trained weights depend on: runs that share it are trained once."""
        configuration = self.configuration()
        configuration["method"]["parameters"] = self.trained_parameters.model_dump(mode="json")
        task = {key: value for key, value in configuration["task"].items() if key not in ("split", "hash")}
        task |= _present(declaration=self.task_hashes and self.task_hashes.trained)
        rest = {key: value for key, value in configuration.items() if key not in ("budget", "limit")}
        return fingerprint(rest | {"task": task})

    # Cached: a file that is edited while a run goes on is not what runs.
    @cached_property
    def source_hash(self) -> str | None:
        """SHA-256 of the file of a method that is not built in, 16 digits: with another body it is another method."""
        return class_hash(self.method_class)

    @cached_property
    def task_hashes(self) -> DeclarationHashes | None:
        """Of a task that is not built in."""
        return declaration_hashes(self.task)

    @cached_property
    def backbone_contents(self) -> str | None:
        """What stands behind the backbone's name (see `gradmem_bench.loading.contents`)."""
        return contents(self.backbone, self.shape)

    def _data_hash(self, split: Split) -> str | None:
        return self.task.source(split).identity

    @property
    def config_hash(self) -> str:
        return fingerprint(self.configuration())

    def folder(self, output: Path) -> Path:
        """Where this run, and no other, keeps its files."""
        return output / self.task.name / f"{self.recipe.name}-{self.config_hash[:8]}"


def _present(**hashes: str | None) -> dict[str, str]:
    return {name: value for name, value in hashes.items() if value is not None}

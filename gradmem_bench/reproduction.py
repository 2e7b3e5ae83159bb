"""A paper's figures and tables: its experiments as lists of runs, and the runs that are missing.

An experiment (`experiments/NAME.yaml`) says, for each scale, which methods run with which settings; what an axis lists
is run for every value. A run that a record already answers for is not made again, one that differs in the evaluation
alone is not trained again, and one that starts from another's checkpoint waits for it.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from gradmem_bench.config import StrictModel, load_yaml, validated
from gradmem_bench.errors import UserError, did_you_mean
from gradmem_bench.metrics import METRICS
from gradmem_bench.registry import recipe_folder

SCALES = ("tiny", "small", "paper")
SECTIONS = ("task", "training", "backbone")
Settings = dict[str, Any]
"""Dotted keys as `--set` takes them: a parameter of the method, or `task.`, `training.` or `backbone.` and a key."""

# ---------------------------------------------------------------------------------------- experiments


def _dotted(settings: dict[str, Any]) -> dict[str, Any]:
    for key in settings:
        if key in SECTIONS:
            raise ValueError(f"'{key}' is a section, whose keys are written with a dot: {key}.KEY")
    return settings


Dotted = Annotated[dict[str, Any], AfterValidator(_dotted)]


class Start(StrictModel):
    """Which runs of a group start from which checkpoint."""

    of: Settings = {}
    """Values of the axes; a run with all of them starts from the checkpoint."""
    name: str | None = None
    """The group that the checkpoint is of; `None` is the run's own."""
    at: Settings = {}
    """Values of that group's axes; for the others the run's own are taken, and its seed."""


class Group(StrictModel):
    """Runs of one method."""

    name: str
    """The row in the table; the published row of this method and setting stands beside it."""
    method: str
    """As `--method` takes it."""
    task: str | None = None
    """As `--task` takes it, in place of the scale's."""
    paper_name: str | None = None
    """The published row's name, where what is run here has another."""
    paper_task: str | None = None
    """The task of the published row, where the scale runs another in its place."""
    backbone: str | None = None
    settings: Dotted = {}
    axes: Annotated[dict[str, list[Any]], AfterValidator(_dotted)] = {}
    """Dotted keys, each with the values it takes; every combination is trained."""
    evaluate: dict[str, list[Any]] = {}
    """The same for parameters of the evaluation alone; `null` is as trained. They share one training."""
    seeds: tuple[int, ...] | None = Field(default=None, min_length=1)
    limit: int | None = Field(default=None, ge=1)
    start: list[Start] = []
    seconds: float | None = None
    """What one training with its evaluations took where the scale says; `None` was not measured."""

    @model_validator(mode="after")
    def _once(self) -> "Group":
        for one, other in combinations(("settings", "axes", "evaluate"), 2):
            if twice := getattr(self, one).keys() & getattr(self, other).keys():
                raise ValueError(f"'{min(twice)}' of '{self.name}' stands under {one} and under {other}")
        return self


class Scale(StrictModel):
    """An experiment at one size."""

    about: str
    """What differs from the paper, and where the seconds were measured."""
    task: str = ""
    paper_task: str | None = None
    backbone: str | None = None
    dtype: Literal["float32", "tf32", "bfloat16"] = "float32"
    limit: int | None = Field(default=None, ge=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    solved_at: float = 0.9
    """The score from which on a seed counts as a success."""
    settings: Dotted = {}
    """Of every run; a group's own come over them."""
    runs: list[Group] = []
    benchmark: list[list[str]] = []
    """Arguments of benchmarks/meta_gradient.py, one list a call."""


class Longest(StrictModel):
    """The longest context at which a score is reached, which a paper may publish in the place of the scores."""

    sizes: dict[str, int] = Field(min_length=1)
    """How long the contexts of a task are."""
    at: list[float] = Field(min_length=1)
    """The scores."""


class Experiment(StrictModel):
    """How a figure is made."""

    figure: str = Field(pattern=r"^[\w-]+$")
    """Its name, and that of its files."""
    title: str
    paper: str | None = None
    """Name of the published numbers; `None` is the figure's own."""
    metric: Literal[tuple(METRICS)] = "teacher_forced_exact_match"
    report: Literal["rows", "heat_map", "losses", "performance"] = "rows"
    longest: Longest | None = None
    notes: list[str] = []
    """What was put right beside the published comparison, and what to read with care."""
    scales: dict[Literal["tiny", "small", "paper"], Scale] = Field(min_length=1)


class FigureGroup(StrictModel):
    """Several figures under one name."""

    group: str
    figures: list[str]


def experiments(name: str) -> list[Experiment]:
    """The experiments that a name, or the path of a YAML file, stands for: one, or a group's.

    Raises:
        UserError: there is none of this name, its file is broken, or it has the name of another.
    """
    folder = recipe_folder("experiment")
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else folder / f"{name}.yaml"
    if path.parent == folder and name not in known:
        raise UserError(f"There is no figure '{name}' to reproduce.{did_you_mean(name, known)}")
    values = load_yaml(path)
    if "group" in values:
        return [one for figure in validated(FigureGroup, values, str(path)).figures for one in experiments(figure)]
    experiment = validated(Experiment, values, str(path))
    published = sorted(one.stem for one in recipe_folder("paper").glob("*.yaml"))
    if experiment.paper is not None and experiment.paper not in published:
        raise UserError(
            f"{path}: nothing is published as '{experiment.paper}'; leaderboards/paper/ has files for "
            f"{', '.join(published)}.{did_you_mean(experiment.paper, published)}"
        )
    if experiment.figure in known and path.resolve().parent != folder.resolve():
        raise UserError(
            f"{path}: '{experiment.figure}' is a figure that is built in, whose files it would replace; give it a name "
            f"of its own, and 'paper: {experiment.paper or experiment.figure}' for the same published numbers."
        )
    return [experiment]


def scale_of(experiment: Experiment, name: str) -> Scale:
    if name not in experiment.scales:
        raise UserError(f"{experiment.figure} has no scale '{name}', only {', '.join(experiment.scales)}.")
    return experiment.scales[name]


# ----------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Run:
    """One training and evaluation, or another evaluation of that training."""

    name: str
    method: str
    task: str
    paper_name: str
    paper_task: str
    backbone: str | None
    dtype: str
    limit: int | None
    seed: int
    settings: Settings
    """The group's axes and evaluation included."""
    setting: Settings
    """What tells it from others of its name: axes and evaluation, without the name of their section."""
    evaluation: Settings
    start: "Run | None"
    seconds: float | None

    @property
    def row(self) -> tuple[Any, ...]:
        """What runs that differ in nothing but the seed have in common, hashable."""
        return self.name, self.task, _hashable(tuple(self.setting.items()))

    @property
    def training(self) -> tuple[Any, ...]:
        """What runs of one training have in common."""
        key = [self.task, self.method, self.backbone, self.dtype, self.limit, self.seed]
        trained = {name: value for name, value in self.settings.items() if name not in self.evaluation}
        return (*key, repr(sorted(trained.items())), self.start and self.start.training)

    def assignments(self, method: str) -> tuple[str, ...]:
        """The settings as `--set` takes them, a parameter under the name that the method's recipe has."""
        sections = tuple(f"{section}." for section in SECTIONS)
        return tuple(
            f"{key if key.startswith(sections) else f'{method}.{key}'}={json.dumps(value)}"
            for key, value in self.settings.items()
        )

    def inherited(self, method: str) -> tuple[str, ...]:
        """What the checkpoint that it starts from brings: the parameters of its method, and nothing else."""
        if self.start is None:
            return ()
        own = (one for one in self.start.assignments(method) if one.startswith(f"{method}."))
        return (*self.start.inherited(method), *own)


def expand(scale: Scale) -> list[Run]:
    """All runs of a scale, each after the one that it starts from.

    Raises:
        UserError: a run starts from one that the scale does not have, or two have one name, task, setting and seed.
    """
    listed: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for group in scale.runs:
        for key in _combinations(group, scale):
            named = (group.name, group.task or scale.task, *map(_hashable, key))
            if named in listed:
                raise UserError(f"Two runs are called '{group.name}', and would be one row; give one another name.")
            listed[named] = (group, *key)
    made: dict[tuple[Any, ...], Run] = {}
    names = {group.name for group in scale.runs}

    def make(key: tuple[Any, ...]) -> Run:
        if key in made:
            return made[key]
        group, axes, evaluation, seed = listed[key]
        start = None
        for rule in group.start:
            if rule.of.items() <= dict(axes).items():
                other = rule.name or group.name
                if other not in names:
                    raise UserError(
                        f"{group.name} starts from '{other}', which no run is called.{did_you_mean(other, names)}"
                    )
                start_axes = tuple((name, rule.at.get(name, dict(axes).get(name))) for name in _axes(other, scale))
                wanted = (other, group.task or scale.task, _hashable(start_axes), (), seed)
                if wanted not in listed:
                    raise UserError(
                        f"{group.name} at {dict(axes)} starts from {other} at {dict(start_axes)}, seed {seed}, which "
                        "is no run of this scale."
                    )
                start = make(wanted)
        task = group.task or scale.task
        told = dict(axes) | dict(evaluation)
        made[key] = Run(
            name=group.name,
            method=group.method,
            task=task,
            paper_name=group.paper_name or group.name,
            paper_task=group.paper_task or scale.paper_task or task,
            backbone=group.backbone or scale.backbone,
            dtype=scale.dtype,
            limit=group.limit or scale.limit,
            seed=seed,
            settings=scale.settings | group.settings | told,
            setting={name.rpartition(".")[2]: value for name, value in told.items()},
            evaluation=dict(evaluation),
            start=start,
            seconds=group.seconds,
        )
        return made[key]

    for key in listed:
        make(key)
    return list(made.values())


def _combinations(group: Group, scale: Scale) -> Iterator[tuple[Any, ...]]:
    for seed in group.seeds or scale.seeds:
        for values in product(*group.axes.values()):
            for asked in product(*group.evaluate.values()):
                evaluation = zip(group.evaluate, asked, strict=True)
                yield (
                    tuple(zip(group.axes, values, strict=True)),
                    tuple((name, value) for name, value in evaluation if value is not None),
                    seed,
                )


def _axes(name: str, scale: Scale) -> Iterable[str]:
    return next((group.axes for group in scale.runs if group.name == name), ())


def _hashable(value: Any) -> Any:
    """`value` with its lists as tuples and its mappings as tuples of pairs; what was equal stays so."""
    if isinstance(value, dict):
        return tuple((name, _hashable(one)) for name, one in sorted(value.items()))
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def estimated_seconds(runs: Sequence[Run]) -> tuple[float, int]:
    """What the trainings of `runs` will take by the experiment's own measurements, and how many were not measured."""
    trainings = {run.training: run.seconds for run in runs}
    known = [seconds for seconds in trainings.values() if seconds is not None]
    return sum(known), len(trainings) - len(known)

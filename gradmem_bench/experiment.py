"""What a command asks, resolved into plans before any weights are touched."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gradmem_bench import checkpoints
from gradmem_bench.backbone import Backbone
from gradmem_bench.config import (
    BackboneConfig,
    Budget,
    MethodRecipe,
    StrictModel,
    TrainingConfig,
    fingerprint,
    format_bytes,
    merge,
    parse_assignments,
    validated,
)
from gradmem_bench.errors import Unreachable, UserError, did_you_mean
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.base import MemoryMethod
from gradmem_bench.plan import Options, Plan
from gradmem_bench.registry import Entry, Kind, built_in_backbones, load_object, located, method_recipe
from gradmem_bench.registry import resolve as find
from gradmem_bench.tasks.base import Document, Split, Task
from gradmem_bench.tasks.declaration import load_task
from gradmem_bench.tasks.lengths import Lengths, asked_tokens, context_lengths, most_asked_tokens

_SECTIONS = ("backbone", "task", "training")
_LONGEST = 2**31
"""Context tokens; no context has more."""


class Known:
    """What several plans have in common and is read but once: where names are from, tasks with their documents and how
    long those are, and backbones' shapes."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def entry(self, kind: Kind, name: str) -> Entry:
        # To look one name up is to read every file and every package that may own it.
        return self._once(["entry", kind, name], lambda: find(kind, name))

    def task(self, path: Path, settings: dict[str, Any]) -> Task:
        return self._once([str(path), settings], lambda: load_task(path, settings))

    def documents(self, task: Task, split: Split) -> Sequence[Document]:
        return self._once(["documents", str(task.path), task.declared_settings, split], lambda: task.documents(split))

    def shape(self, config: BackboneConfig, task: Task) -> Backbone:
        """On the meta device, where no seed makes a difference."""
        return self._once(self._pair(config, task), lambda: load_backbone(config, task.tokenizer(), "meta", 0))

    def lengths(self, config: BackboneConfig, task: Task, limit: int | None) -> Lengths:
        key = ["lengths", *self._pair(config, task), limit]
        return self._once(key, lambda: context_lengths(task, self.shape(config, task), limit))

    def asked(self, config: BackboneConfig, task: Task) -> int:
        return self._once(["asked", *self._pair(config, task)], lambda: asked_tokens(task, self.shape(config, task)))

    @staticmethod
    def _pair(config: BackboneConfig, task: Task) -> list[Any]:
        return [config.model_dump(), str(task.path), task.declared_settings]

    def _once(self, key: list[Any], make: Callable[[], Any]) -> Any:
        name = fingerprint(key)
        if name not in self._made:
            try:
                self._made[name] = make()
            except Unreachable as error:
                # A hub that does not answer is asked once, and not for every run.
                self._made[name] = error
        if isinstance(self._made[name], Unreachable):
            raise self._made[name]
        return self._made[name]


@dataclass(frozen=True)
class Chosen:
    """A method as a command names it, before any task."""

    recipe: MethodRecipe
    method_class: type[MemoryMethod]
    parameters: StrictModel
    """Those of the recipe, under the checkpoint's, under what was set."""
    sections: dict[str, dict[str, Any]]
    """What was set of backbone, task and training."""
    checkpoint: Path | None
    about: dict[str, Any]
    """What the checkpoint says of itself; empty without one."""

    def backbone(self, default: dict[str, Any], unnamed: str) -> BackboneConfig:
        """What was set, over the backbone of the checkpoint, else the recipe's, else `default`.

        A name that is not theirs brings nothing of their shape. Raises UserError, with the sentence `unnamed` where
        there is no name.
        """
        values, given = self.about.get("backbone") or self.recipe.backbone or default, self.sections["backbone"]
        if given.get("name") not in (None, values.get("name")):
            values = {}
        values = merge(values, given)
        if "name" not in values:
            raise UserError(unnamed)
        return validated(BackboneConfig, values, "backbone")


def choose(method: Entry, options: Options) -> Chosen:
    """The method that `options` make of `method`; raises UserError, and reads no weights."""
    method = located(method)
    recipe = method_recipe(method)
    method_class = load_object(recipe.implementation, method)
    if not (isinstance(method_class, type) and issubclass(method_class, MemoryMethod)):
        raise UserError(f"{recipe.implementation} is no MemoryMethod (see gradmem_bench/methods/base.py).")
    if absent := sorted(method_class.__abstractmethods__):
        raise UserError(f"{recipe.implementation} has no {' and no '.join(absent)}, which a method needs.")
    sections, given = _settings(options, recipe.name)
    parameters = method_class.Parameters.model_fields
    for name, part in given.items():
        if isinstance(part, dict) and name not in parameters:
            section = did_you_mean(name, {*_SECTIONS, *parameters})
            raise UserError(f"'{name}.{next(iter(part), '')}': there is no section '{name}'.{section}")
    for section, model in (("training", TrainingConfig), ("backbone", BackboneConfig)):
        if misplaced := [name for name in given if name in model.model_fields and name not in parameters]:
            key = misplaced[0]
            raise UserError(f"method '{recipe.name}' has no key '{key}'. Did you mean '{section}.{key}'?")
    if options.backbone is not None:
        sections["backbone"] = {"name": options.backbone} | sections["backbone"]
    checkpoint, about = None, {}
    if options.load is not None:
        checkpoint = checkpoints.method_file(_checkpoint_of(options.load, recipe.name))
        about = checkpoints.read_about(checkpoint)
        if about.get("class") != recipe.implementation:
            found = about.get("class", "a training that did not end")
            raise UserError(f"The checkpoint {checkpoint} is of {found}, not of {recipe.implementation}.")
    parameters = validated(
        method_class.Parameters,
        merge(merge(recipe.parameters, about.get("parameters", {})), given),
        f"method '{recipe.name}'",
    )
    return Chosen(recipe, method_class, parameters, sections, checkpoint, about)


def resolve(method: Entry, task: Entry, options: Options, known: Known | None = None) -> Plan:
    """Checks everything that can be checked without weights.

    Args:
        known: what was read for the other plans of the same command.
    Raises:
        UserError: a name, key or value is wrong, a training is set and none is made, no configuration fits the budget,
            or contexts do not fit the backbone.
    """
    task, chosen = located(task), choose(method, options)
    recipe, method_class, parameters = chosen.recipe, chosen.method_class, chosen.parameters
    sections, checkpoint = chosen.sections, chosen.checkpoint
    if sections["training"] and not options.train:
        key = next(iter(sections["training"]))
        raise UserError(
            f"training.{key} is set, but {recipe.name} is not trained here; leave it out, or train with "
            "gradmem-bench run --train."
        )
    known = known or Known()
    loaded_task = known.task(Path(task.target), sections["task"])
    unnamed = (
        f"The task {loaded_task.name} names no backbone of its own; give one with --backbone: a hub id, a folder, or "
        f"what is built in ({', '.join(built_in_backbones())})."
    )
    backbone = chosen.backbone(loaded_task.metadata.get("backbone", {}), unnamed)
    shape = known.shape(backbone, loaded_task)
    method_class.check(shape)
    budget, requested = method_class.asked_of(options.budget), parameters
    if budget != Budget():
        try:
            parameters = method_class.fit(requested, budget, shape)
        except UserError as error:
            raise UserError(f"{recipe.name} does not fit: {error}") from None
    training = None
    if options.train:
        values = merge(loaded_task.metadata.get("training", {}), merge(recipe.training, sections["training"]))
        training = validated(TrainingConfig, values, f"the training of '{recipe.name}' on {loaded_task.name}")
        if (training.stop_at or 0) > 1:
            raise UserError(
                f"training.stop_at is {training.stop_at:g}: a memory is validated by a share of answers, up to 1."
            )
        training = training if training.steps else None
    if training is not None:
        curriculum_tasks(loaded_task, training)
        for split in ("train", "validation"):
            known.documents(loaded_task, split)
    with torch.device("meta"):
        skeleton = method_class(shape, parameters)
    if checkpoint is not None:
        checkpoints.check_shapes(skeleton, checkpoint)
    limit = longest_context(method_class, parameters, shape, known.asked(backbone, loaded_task))
    if limit < 1:
        raise UserError(
            f"{shape.max_positions} positions of {backbone.name} leave no room for a context beside memory and answer; "
            "ask for a smaller memory (--max-positions, --budget), or take a backbone with more positions."
        )
    lengths = known.lengths(backbone, loaded_task, options.limit)
    if lengths.longest > limit and not loaded_task.truncate_contexts:
        raise UserError(
            f"A context of {loaded_task.name} has {lengths.longest} tokens, but {recipe.name} has room for {limit} in "
            f"the {shape.max_positions} positions of {backbone.name}; take a backbone with more, or set "
            "truncate_contexts: true in the task's metadata."
        )
    longest = min(lengths.longest, limit)
    footprint = method_class.footprint(parameters, shape, longest, lengths.bytes)
    if footprint.vectors == ():
        budget = budget.model_copy(update={"state_dtype": "float32"})
    footprint = footprint.stored(budget.state_dtype)
    if budget.bytes is not None and footprint.state_bytes > budget.bytes:
        raise UserError(
            f"{recipe.name} does not fit: by its footprint a state takes up to {format_bytes(footprint.state_bytes)}, "
            f"over the budget of {format_bytes(budget.bytes)} that its fit was given."
        )
    before = requested.model_dump()
    return Plan(
        recipe=recipe,
        package=method.package,
        method_class=method_class,
        parameters=parameters,
        task=loaded_task,
        backbone=backbone,
        shape=shape,
        training=training,
        options=options,
        checkpoint=checkpoint,
        context_tokens=(lengths.mean, longest),
        footprint=footprint,
        budget=budget,
        fitted={key: value for key, value in parameters.model_dump().items() if value != before[key]},
        max_context_tokens=limit,
        parameter_count=sum(parameter.numel() for parameter in skeleton.parameters()),
    )


def _settings(options: Options, method: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What `--set` says of backbone, task and training, and of the method: by its name, or of every method."""
    given = parse_assignments(list(options.settings))
    for name, part in given.items():
        known = {*_SECTIONS, *options.methods, method}
        if isinstance(part, dict) and name not in known:
            raise UserError(
                f"--set {name}.{next(iter(part), '')}: there is no section '{name}'.{did_you_mean(name, known)}"
            )
        if not isinstance(part, dict) and name in known:
            raise UserError(f"--set {name} needs a key of it, for example --set {name}.KEY=VALUE.")
    sections = {name: given.get(name, {}) for name in _SECTIONS}
    own = dict(given.get(method, {}))
    for name in ("training", "backbone"):
        sections[name] = merge(sections[name], own.pop(name, {}))
    return sections, merge({key: value for key, value in given.items() if not isinstance(value, dict)}, own)


def _checkpoint_of(load: Path, method: str) -> Path:
    """`load` itself, or the method's own in a folder of several checkpoints or runs."""
    runs = sorted(load.glob(f"{method}-????????/{checkpoints.METHOD_FILE}"))
    if len(runs) == 1:
        return runs[0]
    if runs:
        names = ", ".join(run.parent.name for run in runs)
        raise UserError(f"{load} holds several runs of '{method}' ({names}); name the folder of one.")
    for candidate in (load / method, load / f"{method}.safetensors"):
        if candidate.exists():
            return candidate
    if load.is_dir() and not (load / checkpoints.METHOD_FILE).exists():
        held = sorted(path.stem for path in load.glob("*.safetensors"))
        raise UserError(
            f"{load} holds no checkpoint of '{method}'"
            + (f", only of {', '.join(held)}." if held else " or of any method.")
        )
    return load


def curriculum_tasks(task: Task, training: TrainingConfig) -> list[Task]:
    """The easier tasks of the curriculum; raises UserError for a setting that the task does not have."""
    return [load_task(task.path, merge(task.declared_settings, stage.task)) for stage in training.curriculum]


def longest_context(method_class: type[MemoryMethod], parameters: StrictModel, backbone: Backbone, asked: int) -> int:
    """The most context tokens for which WRITE, and READ with `asked` tokens behind it, fit the backbone's positions.

    A method that runs no sequence as long as its context, by its footprint, has room for `_LONGEST`.
    """

    def exceeds(tokens: int) -> bool:
        cost = method_class.footprint(parameters, backbone, tokens, tokens)
        return max(cost.write_positions, cost.read_positions + asked) > backbone.max_positions

    return bisect_right(range(1, _LONGEST + 1), False, key=exceeds)


def room_beside(
    method_class: type[MemoryMethod],
    parameters: StrictModel,
    backbone: Backbone,
    task: Task,
    documents: Iterable[Document],
) -> int:
    """The most context tokens beside which every query of `documents` has room for its answer.

    Raises UserError where there is none.
    """
    asked = most_asked_tokens(documents, task, backbone)
    if room := longest_context(method_class, parameters, backbone, asked):
        return room
    raise UserError(
        f"A query of {task.name} and its answer take up to {asked} tokens, which leaves no room for a context in the "
        f"{backbone.max_positions} positions of the backbone; take one with more."
    )

"""What tells a task from another of its name: all that its file declares, the code that it names, and its data."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gradmem_bench.config import fingerprint
from gradmem_bench.errors import UserError
from gradmem_bench.hashing import source_hashes
from gradmem_bench.registry import recipe_folder
from gradmem_bench.tasks.base import Task

_RECORDED_ELSEWHERE = ("description", "citation", "training", "backbone")
"""Keys of `metadata:` that change no row, or that a run has resolved beside its task."""


class DeclarationHashes(NamedTuple):
    """Fingerprints of a declaration, each with the files of code that it names."""

    whole: str
    """Of all of it but the settings, which a run has beside it."""
    trained: str
    """Of what training sees: not where an answer ends (`until`), nor how it is normalised."""


def declaration_hashes(task: Task) -> DeclarationHashes | None:
    """The fingerprints of a task that is not built in; `None` for one that is, of which its version tells.

    Raises:
        UserError: the task cannot be loaded as far as it takes to know its code.
    """
    if task.path is not None and task.path.resolve().parent == recipe_folder("task").resolve():
        return None
    declared = task.declared
    metadata = _without(declared.get("metadata"), *_RECORDED_ELSEWHERE)
    whole = {**declared, "metadata": metadata}
    trained = {
        **declared,
        "metadata": _without(metadata, "normalize_answers"),
        "generation_kwargs": _without(declared.get("generation_kwargs"), "until"),
    }
    code = source_hashes(task.code_files())
    return DeclarationHashes(fingerprint([whole, code]), fingerprint([trained, code]))


def task_version(task: Task) -> str:
    return str(task.metadata.get("version", "1.0"))


def trained_on(task: Task) -> dict[str, Any]:
    """What a record says of the task that weights were trained on."""
    return {
        "name": task.name,
        "version": task_version(task),
        "settings": task.declared_settings,
        "training_hash": task.source("train").identity,
        "validation_hash": task.source("validation").identity,
    }


def elsewhere(trained: Mapping[str, Any], task: Task) -> str:
    """What `trained`, as much of what `trained_on` has as is known, is that `task` is not; empty where weights saw what
    it trains on itself.

    What training does not see, such as how many contexts are reported, makes no difference, nor what is not known.
    """
    if trained["name"] != task.name:
        return trained["name"]
    version, known = trained.get("version"), trained.get("training_hash")
    if version not in (None, task_version(task)):
        return f"{task.name} (version {version})"
    try:
        if known in (None, task.source("train").identity):
            return ""
    except UserError:
        # There is nothing to train on here.
        return ""
    theirs, ours = trained.get("settings") or {}, task.declared_settings
    unlike = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    told = ", ".join(f"{key} {theirs.get(key, 'as by default')}" for key in unlike)
    return f"{task.name} ({told or 'other data'})"


def _without(values: dict | None, *keys: str) -> dict:
    return {key: value for key, value in (values or {}).items() if key not in keys}

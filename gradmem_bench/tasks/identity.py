"""What tells a task from another of its name: all that its file declares, and the code that it names."""

from typing import NamedTuple

from gradmem_bench.config import fingerprint
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


def _without(values: dict | None, *keys: str) -> dict:
    return {key: value for key, value in (values or {}).items() if key not in keys}

"""Names of methods and tasks: where each comes from, and what stands behind it.

One mechanism serves what is built in, a user's `--include-path` folder and an installed package's entry
points. Looking a name up reads YAML and package metadata, and imports nothing that was named there.
"""

import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from gradmem_bench.config import MethodRecipe, PretrainingRecipe, load_yaml, validated
from gradmem_bench.errors import Notice, UserError, did_you_mean
from gradmem_bench.lm_eval_names import PREFIX, task_file

Kind = Literal["method", "task"]

_BUILT_IN = "gradmem-bench"
_INSTALLED = "distribution "


@dataclass(frozen=True)
class Entry:
    """A name that `--method` or `--task` takes."""

    kind: Kind
    name: str
    target: str
    """The path of a YAML file, or `module:object` (an entry point; `located` says what stands behind it)."""
    origin: str
    """Where it comes from, for people: `built in`, a folder, or `distribution NAME VERSION`."""
    distribution: str = ""
    """The package that owns it, so that `DISTRIBUTION:NAME` names it alone; empty for a file of the user's."""
    description: str = ""
    members: tuple[str, ...] = ()
    """The names of a task group's tasks; empty for anything else."""

    @property
    def package(self) -> str:
        """`NAME VERSION` of the installed package it is from; empty for what is built in and for a user's file."""
        return self.origin.removeprefix(_INSTALLED) if self.origin.startswith(_INSTALLED) else ""


def recipe_folder(kind: Kind | Literal["backbone", "experiment", "paper"]) -> Path:
    """Where what is built in stands: package data of a wheel, or the folders of a checkout.

    Those are `methods/`, `tasks/`, `backbones/` and `experiments/`; a paper's numbers are in `leaderboards/paper/`.
    """
    package, name = Path(__file__).parent, "leaderboards/paper" if kind == "paper" else f"{kind}s"
    installed = package / "recipes" / name
    return installed if installed.is_dir() else package.parent / name


def entries(kind: Kind, include_paths: Sequence[Path] = ()) -> list[Entry]:
    """Everything of this kind that has a name, sorted by it.

    An include path's entry replaces a built-in or earlier one of its name, as in lm-eval. Of two packages
    that own one name both are listed. A YAML file, or a package's entry point, that cannot be read is warned of
    (Notice), and left out.

    Args:
        include_paths: folders; the YAML files of each and of its `methods/` or `tasks/` are read, except
            those whose name starts with `_` (fragments to include).

    Raises:
        UserError: an include path is no folder.
    """
    found = []
    for claim in chain.from_iterable(_claims(kind, include_paths).values()):
        if isinstance(claim, UserError):
            warnings.warn(f"Left out: {claim}", Notice, stacklevel=2)
        else:
            found.append(claim)
    return sorted(found, key=lambda entry: entry.name)


def resolve(kind: Kind, name: str, include_paths: Sequence[Path] = ()) -> Entry:
    """The entry that `name` stands for: a name, `DISTRIBUTION:NAME`, or the path of a YAML file.

    Of tasks also `lm_eval:NAME` and `lm_eval:PATH`, one of lm-eval's own.

    Raises:
        UserError: there is none, its file is broken, or several own the name.
    """
    if kind == "task" and name.startswith(PREFIX):
        return Entry(kind, name, f"{PREFIX}{task_file(name.removeprefix(PREFIX))}", "lm-eval")
    if Path(name).suffix in (".yaml", ".yml"):
        return _read(kind, Path(name), load_yaml(Path(name)), origin=str(Path(name).parent))
    claims = _claims(kind, include_paths)
    found = [claim for claim in chain.from_iterable(claims.values()) if isinstance(claim, Entry)]
    owners = [entry for entry in found if name in (entry.name, f"{entry.distribution}:{entry.name}")]
    if len(owners) == 1:
        return owners[0]
    if owners:
        raise UserError(
            f"The {kind} '{name}' has several owners, {' and '.join(_owner(entry) for entry in owners)}; write "
            f"{' or '.join(repr(f'{e.distribution}:{e.name}' if e.distribution else e.target) for e in owners)}."
        )
    for broken in claims.get(name, []) or claims.get(name.rpartition(":")[2], []):
        if isinstance(broken, UserError):
            raise broken
    known = [f"{entry.distribution}:{entry.name}" for entry in found] if ":" in name else claims
    raise UserError(f"There is no {kind} '{name}' (see `gradmem-bench list {kind}s`).{did_you_mean(name, known)}")


def located(entry: Entry) -> Entry:
    """`entry` with what its entry point names: a task's YAML file; a method's class, or its YAML file.

    An entry point of a task, and of a method that has a recipe, names a `pathlib.Path` to the file in the package.
    This imports the package; an entry that is a file already is returned as it is.

    Raises:
        UserError: the import fails, the object is of another kind, or the file declares another name.
    """
    if _is_file(entry):
        return entry
    found = load_object(entry.target, entry)
    if not isinstance(found, Path):
        if entry.kind == "method":
            return entry
        raise UserError(
            f"The task '{entry.name}' ({entry.origin}) is {entry.target}, which is {found!r}, but the pathlib.Path of "
            "a task's YAML file was expected."
        )
    declared = _read(entry.kind, found, load_yaml(found), entry.origin, entry.distribution)
    if declared.name != entry.name:
        raise UserError(
            f"The {entry.kind} '{entry.name}' ({entry.origin}) is declared in {found} by another name, "
            f"'{declared.name}'; make them one."
        )
    return declared


def method_recipe(entry: Entry) -> MethodRecipe:
    """The recipe of a `located` method: its YAML, or, for an entry point's class, nothing but defaults.

    Raises:
        UserError: the YAML has an unknown key or a value of the wrong kind, or the target is no `module:Class`.
    """
    if _is_file(entry):
        return validated(MethodRecipe, load_yaml(Path(entry.target)), entry.target)
    return validated(MethodRecipe, {"name": entry.name, "class": entry.target}, entry.origin)


def pretraining_recipe(name: str) -> PretrainingRecipe:
    """The preset of that name, or in that YAML file; raises UserError where there is none, or it is broken."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        known = {file.stem: file for file in recipe_folder("backbone").glob("*.yaml")}
        if name not in known:
            raise UserError(f"There is no preset '{name}'.{did_you_mean(name, known)}")
        path = known[name]
    return validated(PretrainingRecipe, load_yaml(path), str(path))


def load_object(target: str, entry: Entry) -> Any:
    """The object `module:name`, imported for `entry`.

    The module may also stand beside the user's own YAML file, or beside the `methods/` or `tasks/` folder
    that holds it: one file and one YAML make a method.

    Raises:
        UserError: the import fails, for whatever reason, or the module has no such name.
    """
    module_name, _, attribute = target.partition(":")
    try:
        module = _imported(module_name, entry)
    except Exception as error:
        raise UserError(
            f"The {entry.kind} '{entry.name}' ({_owner(entry)}) cannot be loaded: importing {module_name} raised "
            f"{type(error).__name__}: {error}."
        ) from error
    if not hasattr(module, attribute):
        raise UserError(
            f"The {entry.kind} '{entry.name}' ({_owner(entry)}) cannot be loaded: {module_name} has no '{attribute}'."
            f"{did_you_mean(attribute, (name for name in vars(module) if not name.startswith('_')))}"
        )
    return getattr(module, attribute)


def _imported(name: str, entry: Entry) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0] or not _is_file(entry) or entry.distribution:
            raise
    folder = Path(entry.target).resolve().parent
    # Last in the path: a user's file must not stand in for an installed module.
    sys.path += [str(path) for path in (folder, folder.parent) if str(path) not in sys.path]
    return import_module(name)


def _is_file(entry: Entry) -> bool:
    return Path(entry.target).suffix in (".yaml", ".yml")


def _owner(entry: Entry) -> str:
    return entry.target if _is_file(entry) else entry.origin


def _claims(kind: Kind, include_paths: Sequence[Path]) -> dict[str, list[Entry | UserError]]:
    """Who owns each name; a file that cannot be read claims its file name, with the reason."""
    claims = _read_folder(kind, recipe_folder(kind), origin="built in", distribution=_BUILT_IN)
    points = [(point.name, _plugin(kind, point)) for point in entry_points(group=f"gradmem_bench.{kind}s")]
    # By the packages' names: the file system has any order.
    for name, claim in sorted(points, key=lambda point: getattr(point[1], "distribution", "")):
        claims.setdefault(name, []).append(claim)
    for folder in map(Path, include_paths):
        if not folder.is_dir():
            raise UserError(f"The include path {folder} is no folder.")
        claims |= _read_folder(kind, folder, origin=str(folder), mixed=True)
        claims |= _read_folder(kind, folder / f"{kind}s", origin=str(folder))
    return claims


def _plugin(kind: Kind, point: EntryPoint) -> Entry | UserError:
    """What an entry point of an installed package claims; nothing of the package is imported."""
    try:
        package = point.dist.metadata["Name"]
    except Exception:
        # What importlib.metadata raises, if anything, for an installation that is not whole depends on its version.
        package = None
    if not package:
        where = getattr(point.dist, "_path", "an installed package")
        return UserError(f"The {kind} '{point.name}' of {where}: this installation has no metadata; install it anew.")
    origin = f"{_INSTALLED}{package} {point.dist.version}"
    if re.fullmatch(r"[\w.]+:\w+", point.value):
        return Entry(kind, point.name, point.value, origin, package)
    return UserError(
        f"The {kind} '{point.name}' of {origin} is '{point.value}', but: expected module:object, for example "
        "my_package.methods:MyMethod."
    )


def _read_folder(
    kind: Kind, folder: Path, origin: str, distribution: str = "", mixed: bool = False
) -> dict[str, list[Entry | UserError]]:
    """The folder's claims by name; a `mixed` folder holds methods and tasks side by side, told apart by their keys."""
    claims: dict[str, list[Entry | UserError]] = {}
    for path in sorted(folder.glob("*.yaml")):
        if path.name.startswith(("_", ".")):
            continue
        try:
            values = load_yaml(path)
            is_task = "task" in values or "group" in values
            if mixed and kind != ("task" if is_task else "method") and (is_task or "class" in values):
                continue
            entry = _read(kind, path, values, origin, distribution)
            claims.setdefault(entry.name, []).append(entry)
        except UserError as error:
            claims.setdefault(path.stem, []).append(error)
    return claims


def _read(kind: Kind, path: Path, values: dict[str, Any], origin: str, distribution: str = "") -> Entry:
    if kind == "method":
        recipe = validated(MethodRecipe, values, str(path))
        return Entry(kind, recipe.name, str(path), origin, distribution, " ".join(recipe.description.split()))
    key = "group" if "group" in values else "task"
    name, members = values.get(key), values.get("task") if key == "group" else []
    if not isinstance(name, str):
        raise UserError(f"{path} declares no task: the key '{key}' is {name!r}, but a name was expected.")
    if not (isinstance(members, list) and all(isinstance(member, str) for member in members)):
        raise UserError(f"{path}: 'task' is {members!r}, but a group takes a list of task names.")
    return Entry(kind, name, str(path), origin, distribution, task_description(values, name), tuple(members))


def task_description(values: dict[str, Any], name: str) -> str:
    """What a task's file says of it in `metadata.description`: one line, or one for each task that includes the file.

    Not the key `description`: in lm-eval's format that is text put before every prompt.
    """
    metadata = values.get("metadata")
    description = metadata.get("description", "") if isinstance(metadata, dict) else ""
    return " ".join(str(description.get(name, "") if isinstance(description, dict) else description).split())


def built_in_backbones() -> list[str]:
    """The pretrained ones that come with the package, by name."""
    return sorted(path.parent.name for path in recipe_folder("backbone").glob("*/config.json"))

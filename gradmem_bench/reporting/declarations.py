"""Methods and tasks for people: what `show` prints, YAML that says of every key what it is and may be."""

import json
import textwrap
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel
from rich.syntax import Syntax
from rich.text import Text

from gradmem_bench.config import BackboneConfig, FunctionReference, MethodRecipe, TrainingConfig, load_yaml, validated
from gradmem_bench.errors import UserError, did_you_mean
from gradmem_bench.lm_eval_names import KNOWN, PREFIX
from gradmem_bench.registry import Entry, Kind, built_in_backbones, entries, located, recipe_folder, resolve

_WIDTH = 79
Models = dict[tuple[str, ...], type[BaseModel]]
"""What declares the keys of a section, by the keys that lead to it."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """A line break is written as in the files, `\\n`."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


def _list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.SequenceNode:
    flat = not any(isinstance(item, list | dict) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flat)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)
_Dumper.add_representer(tuple, _list)
_Dumper.add_representer(FunctionReference, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def to_yaml(values: dict[str, Any]) -> str:
    """`values` as YAML for people: no anchors, short lists on one line, lm-eval's `!function` as it was."""
    # A line is broken at the first space behind the width.
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=60)


def highlighted(text: str) -> Text:
    """YAML in colours."""
    coloured = Syntax("", "yaml", background_color="default").highlight(text)
    coloured.rstrip()
    # A hash of 64 digits behind its key is longer than a line of 80.
    coloured.no_wrap, coloured.overflow = False, "fold"
    return coloured


def declaration(name: str, include_paths: list[Path]) -> Text:
    """A method's or a task's YAML with every default filled in and every key explained, and where it comes from; of a
    built-in backbone, the page that says how it was made.

    Raises:
        UserError: nothing has this name, or a key or a value in its file is wrong.
    """
    kind = _kind(name, include_paths)
    if kind == "backbone":
        folder = recipe_folder("backbone") / name
        page = (folder / "README.md").read_text(encoding="utf-8")
        return Text(f"backbone {name} · built in\n{folder}\n\n{page}".rstrip())
    entry = located(resolve(kind, name, include_paths))
    if entry.target.startswith(PREFIX):
        return highlighted("\n".join(_lm_eval(entry)))
    if entry.members:
        values, models = {"group": entry.name, "task": list(entry.members)}, {}
    else:
        values, models = _method(entry) if entry.kind == "method" else _task(entry)
    lines = [f"# {entry.kind} {entry.name} · {entry.origin}", f"# {entry.target}", *_lines(values, models)]
    return highlighted("\n".join(lines))


def _kind(name: str, include_paths: list[Path]) -> Kind | Literal["backbone"]:
    if name.startswith(PREFIX):
        return "task"
    if Path(name).is_file():
        return "method" if "class" in load_yaml(Path(name)) else "task"
    known: dict[str, Kind] = {}
    for kind in ("method", "task"):
        for entry in entries(kind, include_paths):
            known |= {entry.name: kind, f"{entry.distribution}:{entry.name}": kind}
    backbones = built_in_backbones()
    if name not in known and name not in backbones:
        plain = [other for other in known if ":" not in other] + backbones
        raise UserError(f"There is no method, task or built-in backbone named '{name}'.{did_you_mean(name, plain)}")
    return known.get(name, "backbone")


def _method(entry: Entry) -> tuple[dict[str, Any], Models]:
    from gradmem_bench.experiment import choose
    from gradmem_bench.plan import Options

    chosen = choose(entry, Options())
    recipe, declared = chosen.recipe, chosen.method_class.Parameters
    validated(TrainingConfig, recipe.training, f"the training of '{recipe.name}'")
    if recipe.backbone:
        validated(BackboneConfig, recipe.backbone, f"the backbone of '{recipe.name}'")
    values = recipe.model_dump(by_alias=True) | {"parameters": chosen.parameters.model_dump(mode="json")}
    models = {(): MethodRecipe, ("parameters",): declared, ("training",): TrainingConfig}
    return {key: value for key, value in values.items() if value not in ("", {}) or key == "training"}, models


def _task(entry: Entry) -> tuple[dict[str, Any], Models]:
    from gradmem_bench.tasks.declaration import GenerationConfig, TaskDeclaration, TaskMetadata, load_task

    task = load_task(Path(entry.target))
    training = TrainingConfig(**task.metadata.get("training", {})).model_dump(mode="json")
    values = {**task.declaration, "metadata": {**task.metadata, "training": training}}
    models = {
        (): TaskDeclaration,
        ("generation_kwargs",): GenerationConfig,
        ("metadata",): TaskMetadata,
        ("metadata", "training"): TrainingConfig,
    }
    settings = getattr(task, "settings", None)
    if isinstance(settings, BaseModel):
        given = values.get(task.settings_key, {})
        # What is empty unless it is set says nothing, and lm-eval passes it on.
        filled = {key: value for key, value in settings.model_dump(mode="json").items() if value or key in given}
        values[task.settings_key] = filled
        models[task.settings_key,] = type(settings)
    return {key: value for key, value in values.items() if value != {}}, models


def _lm_eval(entry: Entry) -> Iterator[str]:
    """A task of lm-eval's: what this package adds to it, then its own declaration, which is not read any further."""
    from gradmem_bench.tasks.lm_eval_task import LmEvalSettings, LmEvalTask

    file = Path(entry.target.removeprefix(PREFIX))
    own = load_yaml(file)
    yield f"# task {PREFIX}{own.get('task')} · lm-eval {version('lm_eval')}"
    if own.get("task") in KNOWN:
        task = LmEvalTask(Path(entry.target))
        values = {"task": task.name, task.settings_key: dict(task.declaration[task.settings_key])}
        yield from _lines(values, {(task.settings_key,): LmEvalSettings})
        yield from _comment(f"`--set task.KEY=VALUE` sets what stands below {task.settings_key}.")
    else:
        yield from _comment(
            "Nothing says which part of its prompts is the context: a run needs --set task.context=COLUMN, or a "
            "template."
        )
    yield "---"
    yield f"# {file}"
    yield from _comment(
        "lm-eval's own declaration. Reported is test_split, or validation_split where there is none; models are then "
        "selected on a part of training_split that they are not trained on."
    )
    yield from to_yaml(own).splitlines()


def _lines(values: dict[str, Any], models: Models, path: tuple[str, ...] = ()) -> Iterator[str]:
    """`values` as lines of YAML; below each key, as a comment, what its model says of it."""
    indent = "  " * len(path)
    fields = models[path].model_json_schema()["properties"] if path in models else {}
    for key, value in values.items():
        inner, field = (*path, key), fields.get(key, {})
        deeper = isinstance(value, dict) and value and any(inner == known[: len(inner)] for known in models)
        first, *rest = [f"{key}:"] if deeper else to_yaml({key: value}).splitlines()
        allowed = "" if rest or isinstance(value, dict | list | tuple) else _allowed(field)
        # Of a text one sees that it is one.
        allowed = "" if isinstance(value, str) and allowed.startswith("text") else allowed
        line = f"{indent}{first}  # {allowed}" if allowed else f"{indent}{first}"
        about = _comment(field.get("description", "").replace("`None`", "`null`"), f"{indent}    ")
        yield from [line] if len(line) <= _WIDTH else [f"{indent}{first}", f"{indent}    # {allowed}"]
        # Inside a text that goes on there is no room for a comment.
        rest = [indent + one for one in rest]
        yield from [*rest, *about] if isinstance(value, str) else [*about, *rest]
        if deeper:
            yield from _lines(value, models, inner)


def _comment(text: str, indent: str = "") -> list[str]:
    prefix = f"{indent}# "
    return textwrap.wrap(
        " ".join(text.split()), _WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_on_hyphens=False
    )


_KINDS = {"integer": "integer", "number": "number", "boolean": "true or false", "string": "text"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _allowed(field: dict[str, Any]) -> str:
    """What a key may be, from its JSON schema: `integer ≥ 1, or null`."""
    if "anyOf" in field:
        parts = [_allowed(one) for one in field["anyOf"] if one.get("type") != "null"]
        null = [", or null"] if len(parts) < len(field["anyOf"]) else []
        return " or ".join(filter(None, parts)) + "".join(null)
    if "const" in field or "enum" in field:
        *others, last = map(json.dumps, field.get("enum", [field.get("const")]))
        return (f"{', '.join(others)} or {last}" if others else f"only {last}").replace('"', "")
    bounds = [f"{words} {field[key]:g}" for key, words in _BOUNDS.items() if key in field]
    return f"{_KINDS.get(field.get('type', ''), '')} {', '.join(bounds)}".strip()

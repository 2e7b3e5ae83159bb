"""Plans and recipes for people: what `--dry-run` and `show` print."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Group
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from gradmem_bench.config import Budget, TrainingConfig, format_bytes, load_yaml, merge
from gradmem_bench.errors import UserError, did_you_mean
from gradmem_bench.registry import Entry, Kind, entries, load_object, located, method_recipe, resolve

if TYPE_CHECKING:
    from gradmem_bench.experiment import Plan


def describe(plan: "Plan", output: Path, in_full: bool) -> Group:
    """What a run would do and what its state would cost, from the declared footprint.

    Args:
        in_full: whether the resolved configuration follows.
    """
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    mean, longest = plan.context_tokens
    footprint = plan.footprint
    positions = footprint.read_positions
    facts.add_row("backbone", f"{plan.backbone.name}, {plan.options.dtype} on {plan.options.device}")
    facts.add_row("budget", _budget(plan))
    facts.add_row("state", f"{format_bytes(footprint.state_bytes)} for a context of {longest} tokens (mean {mean:.0f})")
    facts.add_row(
        "READ positions", f"{positions}, holding {format_bytes(positions * plan.shape.kv_bytes_per_position)} of KV"
    )
    facts.add_row("parameters", f"{plan.parameter_count:,}")
    facts.add_row(
        "steps",
        f"{plan.training.steps:,} of {plan.training.batch_size} contexts"
        if plan.training
        else "none: nothing is trained",
    )
    facts.add_row("folder", str(plan.folder(output)))
    configuration = {"method": plan.recipe.name, **plan.configuration()}
    title = Text(f"{plan.recipe.name} on {plan.task.name}", style="bold")
    return Group(title, facts, _yaml(configuration) if in_full else "")


def _budget(plan: "Plan") -> str:
    asked, given = plan.options.budget, plan.budget
    if asked == given:
        return str(given)
    other = "text" if plan.method_class.role == "method" else f"the {plan.method_class.role}"
    return f"{given} (of {asked}; the rest is not for {other})"


def overview(plans: Sequence["Plan"], output: Path) -> Table:
    """Several runs before they are made, one a line, and which of them need no training of their own."""
    table = Table("", "method", "budget", "fitted to", box=None, header_style="bold", padding=(0, 1, 0, 0))
    for header in ("state", "READ\npos."):
        table.add_column(header, justify="right")
    table.add_column("training")
    several = len({plan.task.name for plan in plans}) > 1
    trained: dict[str, int] = {}
    for number, plan in enumerate(plans, start=1):
        if several and (number == 1 or plans[number - 2].task.name != plan.task.name):
            table.add_row("", f"[italic]{escape(plan.task.name)}[/]")
        if (plan.folder(output) / "run.json").exists():
            training = "done before"
        elif plan.training is None:
            training = "none"
        elif plan.training_hash in trained:
            training = f"that of {trained[plan.training_hash]}"
        else:
            training = f"{plan.training.steps:,} steps"
        if plan.training is not None:
            trained.setdefault(plan.training_hash, number)
        table.add_row(
            str(number),
            escape(plan.recipe.name),
            str(plan.budget) if plan.budget != Budget() else "–",
            ", ".join(f"{key} {value}" for key, value in plan.fitted.items()) or "–",
            format_bytes(plan.footprint.state_bytes),
            str(plan.footprint.read_positions),
            training,
        )
    return table


def resolved_yaml(name: str, include_paths: list[Path]) -> Group:
    """A method's or a task's YAML with every default filled in, and where it comes from.

    Raises:
        UserError: no method and no task has this name.
    """
    known: dict[str, Kind] = {}
    for kind in ("method", "task"):
        for entry in entries(kind, include_paths):
            known |= {entry.name: kind, f"{entry.distribution}:{entry.name}": kind}
    if Path(name).is_file():
        known[name] = "method" if "class" in load_yaml(Path(name)) else "task"
    if name not in known:
        plain = [other for other in known if ":" not in other]
        raise UserError(f"There is no method and no task named '{name}'.{did_you_mean(name, plain)}")
    entry = located(resolve(known[name], name, include_paths))
    source = Text(f"{entry.kind} {entry.name} · {entry.origin} · {entry.target}", style="dim")
    return Group(source, _yaml(_method(entry) if entry.kind == "method" else _task(entry)))


def _method(entry: Entry) -> dict[str, Any]:
    recipe = method_recipe(entry)
    parameters = load_object(recipe.implementation, entry).Parameters(**recipe.parameters)
    training = TrainingConfig(**recipe.training).model_dump(mode="json")
    resolved = recipe.model_dump(by_alias=True)
    return {**resolved, "parameters": parameters.model_dump(mode="json"), "training": training}


def _task(entry: Entry) -> dict[str, Any]:
    from gradmem_bench.tasks.declaration import load_task

    if entry.members:
        return {"group": entry.name, "task": list(entry.members)}
    task = load_task(Path(entry.target))
    training = TrainingConfig(**task.metadata.get("training", {})).model_dump(mode="json")
    return merge(dict(task.declaration), {"metadata": {"training": training}})


def _yaml(values: dict[str, Any]) -> Syntax:
    plain = yaml.dump(_plain(values), sort_keys=False, allow_unicode=True, width=100)
    return Syntax(plain, "yaml", background_color="default", word_wrap=True)


def _plain(value: Any) -> Any:
    """Lists for tuples and strings for subclasses of str, which YAML would tag."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value

"""Plans for people: what `--dry-run` prints."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gradmem_bench.config import Budget, format_bytes
from gradmem_bench.reporting.declarations import highlighted, to_yaml

if TYPE_CHECKING:
    from gradmem_bench.plan import Plan


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
    facts.add_row(
        "state", f"at most {format_bytes(footprint.state_bytes)} for a context of {longest} tokens (mean {mean:.0f})"
    )
    facts.add_row(
        "READ positions",
        f"at most {positions}, holding {format_bytes(positions * plan.shape.kv_bytes_per_position)} of KV",
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
    return Group(title, facts, highlighted(to_yaml(configuration)) if in_full else "")


def _budget(plan: "Plan") -> str:
    asked, given = plan.options.budget, plan.budget
    if asked == given:
        return str(given)
    other = "text" if plan.method_class.role == "method" else f"the {plan.method_class.role}"
    if given == Budget():
        return f"none (no budget bounds {other})"
    return f"{given} (of {asked}; the rest does not bound {other})"


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

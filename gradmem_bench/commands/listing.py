"""`gradmem-bench list` and `show`: what there is, and what is in it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gradmem_bench.commands.options import IncludePath


class Listed(StrEnum):
    methods = "methods"
    tasks = "tasks"
    runs = "runs"


def list_entries(
    what: Annotated[Listed, typer.Argument(help="What to list.")],
    include_path: IncludePath = None,
    output: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
) -> None:
    """List methods, tasks or runs, and where each comes from."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if what == Listed.runs:
        from gradmem_bench.results import find_records, metric_title, primary_metric

        table = Table("method", "task", "score", "of", box=None, header_style="bold")
        # A folder's name is of use only whole.
        table.add_column("folder", overflow="fold")
        for path, record in find_records([output] if output.exists() else []).items():
            ranked_by = primary_metric([record])
            score = record.metrics[ranked_by].value
            shown = "–" if score is None else f"{score:.3f}"
            title = metric_title(ranked_by, record.task)
            table.add_row(*map(escape, (record.method.name, record.task.name, shown, title, str(path.parent))))
    else:
        from gradmem_bench.registry import entries

        table = Table(box=None, header_style="bold")
        # A name is of use only whole; so is a folder.
        table.add_column("name", no_wrap=True)
        table.add_column("what it is", overflow="fold")
        table.add_column("from", overflow="fold")
        for entry in entries("method" if what == Listed.methods else "task", include_path or []):
            # What a plugin is, beside its class, is known when it is imported.
            group = f"group: {', '.join(entry.members)}" if entry.members else ""
            about = entry.description or group or entry.target
            table.add_row(entry.name, escape(about), escape(entry.package or entry.origin))
    Console().print(table if table.row_count else f"There are no {what.value} yet.")
    if what == Listed.tasks:
        from gradmem_bench.lm_eval_names import KNOWN, PREFIX

        names = ", ".join(PREFIX + name for name in KNOWN)
        Console().print(f"\nof lm-eval, with the context removed: {names}", highlight=False)


def show(
    name: Annotated[str, typer.Argument(help="A method's or a task's name.")],
    include_path: IncludePath = None,
) -> None:
    """Show a method or a task in full: every key with its default, what it is and may be, the file, and the paper.

    [dim]gradmem-bench show gradmem > mine.yaml[/]
    """
    from rich.console import Console

    from gradmem_bench.reporting.declarations import declaration

    # Not wrapped: what is printed is YAML, also in a file.
    Console().print(declaration(name, include_path or []), soft_wrap=True)

"""`gradmem-bench list` and `show`: what there is, and what is in it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gradmem_bench.commands.options import IncludePath


class Listed(StrEnum):
    methods = "methods"
    tasks = "tasks"
    backbones = "backbones"
    figures = "figures"
    runs = "runs"


def list_entries(
    what: Annotated[Listed, typer.Argument(help="What to list.")],
    include_path: IncludePath = None,
    output: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
) -> None:
    """List methods, tasks, the backbones that come with the package, the figures that reproduce makes, or runs."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if what == Listed.runs:
        _list_runs(output)
    elif what == Listed.backbones:
        _list_backbones()
    elif what == Listed.figures:
        _list_figures()
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
        Console().print(table)
    if what == Listed.tasks:
        from gradmem_bench.lm_eval_names import KNOWN, PREFIX

        names = ", ".join(PREFIX + name for name in KNOWN)
        Console().print(f"\nof lm-eval, with the context removed: {names}", highlight=False)


def _list_backbones() -> None:
    """The pretrained ones that come with the package; torch, which would take seconds, is not asked."""
    import json
    from math import prod

    from rich.console import Console
    from rich.table import Table
    from safetensors import safe_open

    from gradmem_bench.registry import built_in_backbones, recipe_folder

    table = Table(box=None, header_style="bold")
    for header in ("name", "model", "layers", "width", "vocabulary", "positions", "parameters"):
        table.add_column(header, justify="left" if header in ("name", "model") else "right", no_wrap=True)
    for name in built_in_backbones():
        folder = recipe_folder("backbone") / name
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with safe_open(folder / "model.safetensors", "np") as weights:
            parameters = sum(prod(weights.get_slice(key).get_shape()) for key in weights.keys())
        keys = ("num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings")
        table.add_row(name, config["model_type"], *(f"{config[key]:,}" for key in keys), f"{parameters:,}")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "\nAlso for --backbone: a hub id, a local folder with safetensors weights, or the shape of a small random "
        "model, such as llama-2x64, gpt2-12x768, neox-4x256 and mamba-4x128."
    )


def _list_figures() -> None:
    """What `reproduce` makes: the scales of each figure, with what their trainings take where that was measured."""
    from rich.console import Console
    from rich.table import Table

    from gradmem_bench.registry import recipe_folder
    from gradmem_bench.reporting.tables import duration
    from gradmem_bench.reproduction import estimated_seconds, expand, experiments

    table = Table(box=None, header_style="bold")
    for header in ("name", "what it is", "scales, and what they take"):
        table.add_column(header, no_wrap=header == "name", overflow="fold")
    for path in sorted(recipe_folder("experiment").glob("*.yaml")):
        found = experiments(path.stem)
        if [one.figure for one in found] != [path.stem]:
            table.add_row(path.stem, f"group: {', '.join(one.figure for one in found)}", "")
            continue
        told = []
        for name, scale in found[0].scales.items():
            seconds, unknown = estimated_seconds(expand(scale))
            told.append(name if unknown or not seconds else f"{name} {duration(seconds)}")
        table.add_row(path.stem, found[0].title, ", ".join(told))
    Console(highlight=False).print(table)


def _list_runs(output: Path) -> None:
    """The runs below `output` by task: a line of what tells one from another, and below it the folder."""
    from rich.console import Console

    from gradmem_bench.config import Budget
    from gradmem_bench.results import find_records, metric_title, primary_metric

    console = Console(highlight=False)
    records = find_records([output] if output.exists() else [])
    asked: dict[str, dict[str, set[str]]] = {}
    for record in records.values():
        for key, value in record.task.settings.items():
            asked.setdefault(record.task.name, {}).setdefault(key, set()).add(str(value))
    groups: dict[str, list[tuple[list[str], str]]] = {}
    for path, record in records.items():
        ranked_by = primary_metric([record])
        score, training = record.metrics[ranked_by], record.training
        shown = "–" if score.value is None else f"{score.value:.3f}"
        interval = "" if score.low is None else f" [{score.low:.3f}, {score.high:.3f}]"
        bound = (record.budget or Budget()).bound
        # One task in two settings is two: their scores do not belong below each other.
        settings = [
            f"{key} {record.task.settings.get(key)}"
            for key, seen in asked.get(record.task.name, {}).items()
            if len(seen) > 1
        ]
        title = ", ".join([record.task.name, *settings, f"{metric_title(ranked_by, record.task)} [95 % interval]"])
        facts = [
            record.method.name,
            f"{shown}{interval}",
            f"{score.n:,}",
            str(bound),
            record.footprint.state_dtype,
            "–" if training is None else str(training.seed),
            "–" if training is None else f"{training.steps:,}",
        ]
        groups.setdefault(title, []).append((facts, str(path.parent)))
    if not groups:
        console.print(
            f"There are no runs in {output}: gradmem-bench run --method NAME --task NAME --output {output} makes one.",
            markup=False,
            soft_wrap=True,
        )
    heads = ["method", "score", "n", "bound", "state", "seed", "steps"]
    for index, (title, runs) in enumerate(groups.items()):
        widths = [max(map(len, column)) for column in zip(heads, *(facts for facts, _ in runs), strict=True)]
        console.print(*[""] * bool(index), title, sep="\n", style="bold", markup=False)
        for facts, folder in [(heads, ""), *runs]:
            cells = [
                text.rjust(width) if head in ("n", "seed", "steps") else text.ljust(width)
                for head, text, width in zip(heads, facts, widths, strict=True)
            ]
            console.print(
                "  ".join(cells).rstrip(), style="bold" if facts is heads else "", markup=False, soft_wrap=True
            )
            if folder:
                # A folder is of use only whole, and in one piece.
                console.print(f"  {folder}", style="dim", markup=False, soft_wrap=True)


def show(
    name: Annotated[
        str,
        typer.Argument(
            help="The name of a method, a task (also lm_eval:NAME) or a built-in backbone, or the path of a YAML."
        ),
    ],
    include_path: IncludePath = None,
) -> None:
    """Show a method or a task in full: every key with its default, what it is and may be, the file, and the paper. Of a
    backbone, how it was made and what it can do.

    [dim]gradmem-bench show gradmem > mine.yaml[/]
    """
    from rich.console import Console

    from gradmem_bench.reporting.declarations import declaration

    # Not wrapped: what is printed is YAML or a page with commands, also in a file.
    Console().print(declaration(name, include_path or []), soft_wrap=True)

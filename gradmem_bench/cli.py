"""The command line. Nothing heavy is imported before a command needs it: `--help` and `list` answer at once."""

import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradmem_bench import __version__
from gradmem_bench.config import Budget, parse_bytes
from gradmem_bench.errors import LeftOut, UserError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="gradmem-bench",
    help="Which memory for language models is worth its bytes?",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)

IncludePath = Annotated[
    list[Path] | None,
    typer.Option("--include-path", help="A folder of your own method and task YAML files. May be repeated."),
]


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class Format(StrEnum):
    table = "table"
    markdown = "markdown"
    csv = "csv"
    json = "json"


class Listed(StrEnum):
    methods = "methods"
    tasks = "tasks"
    runs = "runs"


@app.command()
def run(
    method: Annotated[list[str], typer.Option(help="A method's name, or the path of its YAML. May be repeated.")],
    task: Annotated[
        list[str],
        typer.Option(
            help="A task's name, a group of tasks, or the path of a YAML. May be repeated; every pair is run."
        ),
    ],
    backbone: Annotated[
        str | None,
        typer.Option(
            help="A hub id, a local folder, or a random model's shape such as llama-2x64 or gpt2-12x768. "
            "The task names a default."
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="The most state bytes per context, for example 4KiB; methods are fitted to it.")
    ] = None,
    max_positions: Annotated[
        int | None, typer.Option(min=1, help="The most positions that may stand before the query at READ.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A parameter of every method (memory_vectors=4) or of one (rmt.passes=2), or a setting of the "
            "training, the task or the backbone (training.steps=500, task.pairs=4, backbone.heads=2). May be repeated.",
        ),
    ] = None,
    load: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint, a run's folder, or a folder of METHOD.safetensors; nothing is trained without --train."
        ),
    ] = None,
    train: Annotated[
        bool | None,
        typer.Option("--train/--no-train", help="Whether to train; by default yes, unless --load is given."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate so many contexts only.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of new weights and of the order of the data.")] = 0,
    device: Annotated[Device, typer.Option(help="Where to run.")] = Device.auto,
    dtype: Annotated[
        Dtype, typer.Option(help="Precision of the computation; weights, memory and inner steps stay float32.")
    ] = Dtype.float32,
    output: Annotated[
        Path,
        typer.Option(help="Where runs are kept; one that was killed goes on when the same command is given again."),
    ] = Path("runs"),
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would be run and what its state would cost; touches no weights."),
    ] = False,
    include_path: IncludePath = None,
) -> None:
    """Train (or load) methods, evaluate them, record the results and show the table.

    [dim]gradmem-bench run --method gradmem --method rmt --task kv_retrieval --budget 4KiB[/]
    """
    from gradmem_bench.registry import resolve as find

    # Names first: torch takes seconds to import.
    include = include_path or []
    methods = [find("method", name, include) for name in dict.fromkeys(method)]
    tasks = _tasks(task, include)
    import torch

    from gradmem_bench.experiment import Options, resolve

    console = _console()
    if device == Device.cuda and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine's torch sees no GPU; take --device cpu.")
    options = Options(
        backbone=backbone,
        budget=Budget(bytes=None if budget is None else parse_bytes(budget), positions=max_positions),
        settings=tuple(settings or ()),
        methods=tuple(one.name for one in methods),
        load=load,
        train=load is None if train is None else train,
        limit=limit,
        seed=seed,
        device="cuda" if device != Device.cpu and torch.cuda.is_available() else "cpu",
        dtype=dtype.value,
    )
    plans = [resolve(one, other, options) for other in tasks for one in methods]
    if dry_run:
        from gradmem_bench.reporting.plans import describe

        for plan in plans:
            console.print(describe(plan, output, in_full=len(plans) == 1))
        return

    from gradmem_bench.reporting.comparison import comparison
    from gradmem_bench.reporting.progress import RunDisplay
    from gradmem_bench.reporting.tables import to_rich
    from gradmem_bench.running import perform

    display = RunDisplay(console)
    records = []
    for number, plan in enumerate(plans, start=1):
        display.begin(plan, number, len(plans))
        records.append(perform(plan, output, display))
    console.print()
    for table in comparison(records):
        console.print(to_rich(table, console.width))


@app.command()
def compare(
    runs: Annotated[list[Path] | None, typer.Argument(help="Records, or folders of them; by default ./runs.")] = None,
    by: Annotated[
        str,
        typer.Option(
            help="task: one table a task, refusing records that cannot be compared; config: one for each configuration."
        ),
    ] = "task",
    format: Annotated[Format, typer.Option("--format", help="How the table is written.")] = Format.table,
) -> None:
    """Show the table that records make: who answers best from how many bytes.

    [dim]gradmem-bench compare runs leaderboards --format markdown[/]
    """
    from gradmem_bench.reporting.comparison import comparison
    from gradmem_bench.reporting.tables import to_csv, to_json, to_markdown, to_rich
    from gradmem_bench.results import find_records

    records = find_records(runs or [Path("runs")])
    if not records:
        raise UserError("There are no records here; make some with gradmem-bench run, or name a folder that has them.")
    tables = comparison(records.values(), by)
    if format == Format.table:
        console = _console()
        for table in tables:
            console.print(to_rich(table, console.width))
    else:
        sys.stdout.write({Format.markdown: to_markdown, Format.csv: to_csv, Format.json: to_json}[format](tables))


@app.command("list")
def list_(
    what: Annotated[Listed, typer.Argument(help="What to list.")],
    include_path: IncludePath = None,
    output: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
) -> None:
    """List methods, tasks or runs, and where each comes from."""
    from rich.table import Table

    console = _console()
    if what == Listed.runs:
        from gradmem_bench.results import find_records

        table = Table("method", "task", "exact match", box=None, header_style="bold")
        # A folder's name is of use only whole.
        table.add_column("folder", overflow="fold")
        for path, record in find_records([output] if output.exists() else []).items():
            score = record.metrics["exact_match"].value
            table.add_row(
                record.method.name,
                record.task.name,
                "–" if score is None else f"{score:.3f}",
                str(path.parent),
            )
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
            table.add_row(entry.name, _escaped(about), _escaped(entry.package or entry.origin))
    console.print(table if table.row_count else f"There are no {what.value} yet.")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A method's or a task's name.")],
    include_path: IncludePath = None,
) -> None:
    """Show a method or a task in full: every default, the file it comes from, and the paper."""
    from gradmem_bench.reporting.plans import resolved_yaml

    _console().print(resolved_yaml(name, include_path or []))


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A method's name, or the path of its YAML.")],
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            help="A hub id, a local folder, or a random model's shape; by default a small random GPT-2, GPT-NeoX and "
            "Llama. May be repeated."
        ),
    ] = None,
    include_path: IncludePath = None,
) -> None:
    """Try the laws on a method: what it stores, depends on, leaves behind and costs. Exit code 1 when it breaks one.

    [dim]gradmem-bench check gradmem[/]
    """
    from gradmem_bench.registry import resolve as find

    # Names first: torch takes seconds to import.
    find("method", name, include_path or [])
    from gradmem_bench.reporting.laws import laws_progress, laws_table
    from gradmem_bench.testing import BACKBONES, findings

    console = _console()
    backbones = backbone or [config.name for config in BACKBONES]
    with laws_progress(console, len(backbones)) as report:
        found = findings(name, None, backbones, include_path or [], report)
    console.print(laws_table(found))
    laws = {finding.law.name for finding in found}
    broken = {finding.law.name for finding in found if finding.outcome == "FAIL"}
    untried = {finding.law.name for finding in found if finding.outcome == "skipped"} - broken
    console.print()
    if broken:
        console.print(f"{_escaped(name)} breaks {len(broken)} of {len(laws)} laws.")
        raise typer.Exit(1)
    rest = f"; {len(untried)} could not be tried on every backbone" if untried else ""
    console.print(f"{_escaped(name)} keeps {len(laws - untried)} of {len(laws)} laws{rest}.")


def _tasks(names: list[str], include: list[Path]) -> list:
    """The entries that task names and group names stand for, each once."""
    from gradmem_bench.registry import located
    from gradmem_bench.registry import resolve as find

    found = {}
    # Names first: a plugin that has to be imported may be slow.
    for entry in [find("task", name, include) for name in names]:
        entry = located(entry)
        for one in [find("task", member, include) for member in entry.members] or [entry]:
            found[one.target] = one
    return list(found.values())


def _console() -> "Console":
    from rich.console import Console

    return Console()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """gradmem-bench."""


def main() -> None:
    """The entry point: a user's mistake is one sentence and exit code 2, never a traceback."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warned
            app()
    except UserError as error:
        from rich.console import Console

        Console(stderr=True).print(f"[bold red]error:[/] {_escaped(str(error))}", soft_wrap=True, highlight=False)
        raise SystemExit(2) from None
    except SystemExit as end:
        # Typer makes this code of Ctrl-C, without a word.
        if end.code == 130:
            sys.stderr.write("interrupted; the same command goes on from the last checkpoint, where there is one\n")
        raise


def _warned(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    if issubclass(category, LeftOut):
        sys.stderr.write(f"warning: {message}\n")
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)

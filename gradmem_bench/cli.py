"""The command line. Nothing heavy is imported before a command needs it: `--help` and `list` answer at once."""

import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradmem_bench import __version__
from gradmem_bench.config import Budget, parse_bytes
from gradmem_bench.errors import UserError
from gradmem_bench.options import (
    BackboneName,
    Budgets,
    Device,
    Dtype,
    Format,
    IncludePath,
    Listed,
    Load,
    MaxPositions,
    Methods,
    ProfileFormat,
    RunDevice,
    RunDtype,
    Seed,
    Settings,
    StateDtypes,
    StoredAs,
    Tasks,
)
from gradmem_bench.reproduce_command import reproduce

if TYPE_CHECKING:
    from rich.console import Console

    from gradmem_bench.experiment import Plan

app = typer.Typer(
    name="gradmem-bench",
    help="Which memory for language models is worth its bytes?",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def run(
    method: Methods,
    task: Tasks,
    backbone: BackboneName = None,
    budget: Budgets = None,
    max_positions: MaxPositions = None,
    state_dtype: StateDtypes = None,
    settings: Settings = None,
    load: Load = None,
    train: Annotated[
        bool | None,
        typer.Option("--train/--no-train", help="Whether to train; by default yes, unless --load is given."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate so many contexts only.")] = None,
    seed: Seed = 0,
    device: RunDevice = Device.auto,
    dtype: RunDtype = Dtype.float32,
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

    [dim]gradmem-bench run --method gradmem --method rmt --task kv_retrieval --budget 1KiB --budget 4KiB[/]
    """
    plans = _plans(
        method,
        task,
        _budgets(budget, max_positions, state_dtype),
        include_path or [],
        device,
        backbone=backbone,
        settings=tuple(settings or ()),
        load=load,
        train=load is None if train is None else train,
        limit=limit,
        seed=seed,
        dtype=dtype.value,
    )
    from gradmem_bench.reporting.plans import describe, overview

    console = _console()
    if dry_run:
        for plan in plans:
            console.print(describe(plan, output, in_full=len(plans) == 1))
    if len(plans) > 1:
        console.print(overview(plans, output))
    if dry_run:
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


app.command()(reproduce)


@app.command()
def profile(
    method: Methods,
    task: Tasks,
    backbone: BackboneName = None,
    budget: Budgets = None,
    max_positions: MaxPositions = None,
    state_dtype: StateDtypes = None,
    settings: Settings = None,
    load: Load = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Contexts written, and queries answered, together.")] = 32,
    seed: Seed = 0,
    device: RunDevice = Device.auto,
    dtype: RunDtype = Dtype.float32,
    format: Annotated[ProfileFormat, typer.Option("--format", help="How it is written.")] = ProfileFormat.table,
    include_path: IncludePath = None,
) -> None:
    """Measure what WRITE and READ cost, and from how many queries on they pay; trains nothing.

    [dim]gradmem-bench profile --method gradmem --method rmt --task squad_removed --backbone gpt2[/]
    """
    plans = _plans(
        method,
        task,
        _budgets(budget, max_positions, state_dtype),
        include_path or [],
        device,
        backbone=backbone,
        settings=tuple(settings or ()),
        load=load,
        train=False,
        seed=seed,
        dtype=dtype.value,
    )
    from gradmem_bench.reporting.profiles import to_json, to_rich
    from gradmem_bench.reporting.progress import RunDisplay
    from gradmem_bench.running import profile as measured

    # What is measured goes to standard output, and how far it is to standard error.
    display = RunDisplay(_console(stderr=True))
    records = []
    for number, plan in enumerate(plans, start=1):
        display.begin(plan, number, len(plans))
        records.append(measured(plan, batch_size, display))
    if format == ProfileFormat.json:
        sys.stdout.write(to_json(records))
    else:
        console = _console()
        console.print(to_rich(records))


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

        table = Table("name", "what it is", "from", box=None, header_style="bold")
        for entry in entries("method" if what == Listed.methods else "task", include_path or []):
            about = entry.description or (", ".join(entry.members) and f"group: {', '.join(entry.members)}")
            table.add_row(entry.name, about, entry.origin)
    console.print(table if table.row_count else f"There are no {what.value} yet.")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A method's or a task's name.")],
    include_path: IncludePath = None,
) -> None:
    """Show a method or a task in full: every default, the file it comes from, and the paper."""
    from gradmem_bench.reporting.plans import resolved_yaml

    _console().print(resolved_yaml(name, include_path or []))


def _budgets(
    budget: list[str] | None, max_positions: list[int] | None, state_dtype: list[StoredAs] | None
) -> list[Budget]:
    """Every combination, each once, in the order given."""
    sizes = [parse_bytes(text) for text in budget or []] or [None]
    dtypes = [dtype.value for dtype in state_dtype or [StoredAs.float32]]
    every = product(sizes, max_positions or [None], dtypes)
    return list(dict.fromkeys(Budget(bytes=size, positions=count, state_dtype=dtype) for size, count, dtype in every))


def _plans(
    methods: list[str], tasks: list[str], budgets: list[Budget], include: list[Path], device: Device, **options: Any
) -> list["Plan"]:
    """Every method on every task at every budget, each different run once; `options` are those of experiment.Options.

    Raises UserError for whatever is wrong with one of them, before anything is run.
    """
    from gradmem_bench.registry import resolve as find

    # Names first: torch takes seconds to import.
    found = [find("method", name, include) for name in dict.fromkeys(methods)]
    wanted = _tasks(tasks, include)
    import torch

    from gradmem_bench.experiment import Known, Options, resolve

    if device == Device.cuda and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine's torch sees no GPU; take --device cpu.")
    where = "cuda" if device != Device.cpu and torch.cuda.is_available() else "cpu"
    names, known, plans = tuple(one.name for one in found), Known(), {}
    every = list(product(wanted, budgets, found))
    with _console(stderr=True).status("") as status:
        for number, (task, budget, method) in enumerate(every, start=1):
            status.update(f"planning {number} of {len(every)}")
            plan = resolve(method, task, Options(budget=budget, methods=names, device=where, **options), known)
            # Floor and ceiling are the same run at every budget.
            plans.setdefault((plan.recipe.name, plan.task.name, plan.config_hash), plan)
    return list(plans.values())


def _tasks(names: list[str], include: list[Path]) -> list:
    """The entries that task names and group names stand for, each once."""
    from gradmem_bench.registry import resolve as find

    found = {}
    for name in names:
        entry = find("task", name, include)
        for one in [find("task", member, include) for member in entry.members] or [entry]:
            found[one.target] = one
    return list(found.values())


def _console(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr)


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


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)

"""The command line. Nothing heavy is imported before a command needs it: `--help` and `list` answer at once."""

import sys
import warnings
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradmem_bench import __version__
from gradmem_bench.config import Budget, parse_bytes
from gradmem_bench.conformance.command import check
from gradmem_bench.errors import LeftOut, UserError
from gradmem_bench.integrations.commands import add_commands
from gradmem_bench.leaderboard import commands as leaderboard
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
from gradmem_bench.plotting.command import plot
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
app.add_typer(leaderboard.app)


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
def pretrain(
    preset: Annotated[str, typer.Option(help="A preset's name (see backbones/), or the path of its YAML.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Text files, or JSON lines or Parquet with a column 'text': one file or a folder. Files whose names "
            "begin with 'validation' or 'test' are held out, else every 100th document."
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="The folder that --backbone takes afterwards; a killed pretraining goes on in it.")
    ],
    tokenizer: Annotated[
        str | None, typer.Option(help="A folder or a hub id, in place of the preset's tokenizer.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps, in place of the preset's.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Stop after so many seconds of training, the learning rate at its end.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the training or the backbone (training.batch_size=8). May be repeated.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights and of the order of the data.")] = 0,
    device: Annotated[Device, typer.Option(help="Where to run.")] = Device.auto,
    dtype: Annotated[
        Dtype, typer.Option(help="Precision of the computation; the weights stay float32.")
    ] = Dtype.float32,
) -> None:
    """Train a small language model on plain text, for --backbone.

    [dim]gradmem-bench pretrain --preset llama_26m --data TEXTS --output lm --dtype bfloat16[/]
    """
    from gradmem_bench.config import merge, parse_assignments
    from gradmem_bench.registry import pretraining_recipe

    recipe = pretraining_recipe(preset)
    own = {
        "backbone": {} if tokenizer is None else {"tokenizer": tokenizer},
        "training": {key: value for key, value in (("steps", steps), ("seconds", seconds)) if value is not None},
    }
    given = merge(parse_assignments(settings or []), own)
    from gradmem_bench.pretraining import perform, resolve
    from gradmem_bench.reporting.progress import RunDisplay

    console = _console()
    plan = resolve(recipe, data, given, seed, _torch_device(device), dtype.value)
    console.rule(f"[bold]{recipe.name}[/] · {plan.backbone.name}", align="left")
    perform(plan, output, RunDisplay(console))


@app.command()
def compare(
    runs: Annotated[list[Path] | None, typer.Argument(help="Records, or folders of them; by default ./runs.")] = None,
    by: Annotated[
        str,
        typer.Option(
            help="task: one table a task, refusing records that cannot be compared; config: one for each configuration."
        ),
    ] = "task",
    baseline: Annotated[
        str | None,
        typer.Option(
            help="The method that the others are compared with, query by query, or a row's name in the table."
        ),
    ] = None,
    each_seed: Annotated[
        bool, typer.Option("--each-seed", help="A row for every seed, rather than one for all seeds of a method.")
    ] = False,
    format: Annotated[Format, typer.Option("--format", help="How the table is written.")] = Format.table,
) -> None:
    """Show the table that records make: who answers best from how many bytes, and what is more than chance.

    [dim]gradmem-bench compare runs leaderboards --baseline rmt --format markdown[/]
    """
    from gradmem_bench.reporting import formats
    from gradmem_bench.reporting.comparison import comparison
    from gradmem_bench.reporting.tables import to_rich
    from gradmem_bench.results import find_records, read_examples

    records = find_records(runs or [Path("runs")])
    if not records:
        raise UserError("There are no records here; make some with gradmem-bench run, or name a folder that has them.")
    folders = {record.run_id: path.parent for path, record in records.items()}
    tables = comparison(records.values(), by, baseline, each_seed, lambda record: read_examples(folders[record.run_id]))
    if format == Format.table:
        console = _console()
        for index, table in enumerate(tables):
            console.print(*[""] * bool(index), to_rich(table, console.width), sep="\n")
    else:
        write = {
            Format.markdown: formats.to_markdown,
            Format.csv: formats.to_csv,
            Format.latex: formats.to_latex,
            Format.json: formats.to_json,
        }
        sys.stdout.write(write[format](tables))


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


app.command()(check)
app.command()(plot)
add_commands(app)


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
    from gradmem_bench.experiment import Known, Options, resolve

    where = _torch_device(device)
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
    from gradmem_bench.registry import located
    from gradmem_bench.registry import resolve as find

    found = {}
    # Names first: a plugin that has to be imported may be slow.
    for entry in [find("task", name, include) for name in names]:
        entry = located(entry)
        for one in [find("task", member, include) for member in entry.members] or [entry]:
            found[one.target] = one
    return list(found.values())


def _torch_device(device: Device) -> str:
    """What torch calls the device; raises UserError where it has none."""
    import torch

    available = torch.cuda.is_available()
    if device == Device.cuda and not available:
        raise UserError("--device cuda: this machine's torch sees no GPU; take --device cpu.")
    return "cuda" if device != Device.cpu and available else "cpu"


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

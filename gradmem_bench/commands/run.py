"""`gradmem-bench run`: methods on tasks, trained or loaded, scored and recorded."""

from pathlib import Path
from typing import Annotated

import typer

from gradmem_bench.commands.options import (
    BackboneName,
    Budgets,
    Device,
    Dtype,
    IncludePath,
    Load,
    MaxPositions,
    Methods,
    RunDevice,
    RunDtype,
    Seed,
    Settings,
    StateDtypes,
    Tasks,
)
from gradmem_bench.commands.planning import budgets_of, plans_of


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
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Evaluate so many contexts only.")] = None,
    seed: Seed = 0,
    device: RunDevice = Device.auto,
    dtype: RunDtype = Dtype.float32,
    output: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="Where runs are kept; one that was killed goes on when the same command is given again.",
        ),
    ] = Path("runs"),
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would be run and what its state would cost; loads no weights."),
    ] = False,
    include_path: IncludePath = None,
) -> None:
    """Train (or load) methods, evaluate them, record the results and show the table.

    [dim]gradmem-bench run --method gradmem --method rmt --task kv_retrieval --budget 1KiB --budget 4KiB[/]
    """
    plans = plans_of(
        method,
        task,
        budgets_of(budget, max_positions, state_dtype),
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
    from rich.console import Console

    from gradmem_bench.processes import is_first
    from gradmem_bench.reporting.plans import describe, overview

    console = Console(quiet=not is_first())
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
    if not is_first():
        return
    console.print()
    for table in comparison(records):
        console.print(to_rich(table, console.width))

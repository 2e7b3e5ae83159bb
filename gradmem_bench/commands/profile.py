"""`gradmem-bench profile`: what WRITE and READ cost, without training."""

import sys
from enum import StrEnum
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


class ProfileFormat(StrEnum):
    table = "table"
    json = "json"


def profile(
    method: Methods,
    task: Tasks,
    backbone: BackboneName = None,
    budget: Budgets = None,
    max_positions: MaxPositions = None,
    state_dtype: StateDtypes = None,
    settings: Settings = None,
    load: Load = None,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Contexts written, and queries answered, together.")
    ] = 32,
    seed: Seed = 0,
    device: RunDevice = Device.auto,
    dtype: RunDtype = Dtype.float32,
    format: Annotated[ProfileFormat, typer.Option("--format", help="How it is written.")] = ProfileFormat.table,
    include_path: IncludePath = None,
) -> None:
    """Measure what WRITE and READ cost, and from how many queries on they take less than keeping the KV cache, or than
    reading the text again; trains nothing.

    [dim]gradmem-bench profile --method gradmem --method rmt --task squad_removed --backbone gpt2[/]
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
        train=False,
        seed=seed,
        dtype=dtype.value,
    )
    from rich.console import Console

    from gradmem_bench.reporting.profiles import to_json, to_rich
    from gradmem_bench.reporting.progress import RunDisplay
    from gradmem_bench.running import profile as measured

    # What is measured goes to standard output, and how far it is to standard error.
    display = RunDisplay(Console(stderr=True))
    records = []
    for number, plan in enumerate(plans, start=1):
        display.begin(plan, number, len(plans))
        records.append(measured(plan, batch_size, display))
    if format == ProfileFormat.json:
        sys.stdout.write(to_json(records))
    else:
        Console().print(to_rich(records))

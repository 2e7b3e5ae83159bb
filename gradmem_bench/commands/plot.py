"""`gradmem-bench plot`: pictures of records."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gradmem_bench.commands.options import Runs, records_of
from gradmem_bench.errors import UserError


class Kind(StrEnum):
    bytes = "bytes"
    pairs = "pairs"
    steps = "steps"
    flops = "flops"
    training = "training"


def plot(
    runs: Runs = None,
    kind: Annotated[
        list[Kind] | None,
        typer.Option(
            metavar="KIND",
            help="bytes: score against the bytes of a state; pairs: against their number; steps: K at training against "
            "K at evaluation; flops: score against the FLOPs of a WRITE; training: its curves. May be repeated; by "
            "default all there are numbers for.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="PATH", help="Where the pictures go, each as PNG and as SVG.")] = Path(
        "plots"
    ),
) -> None:
    """Draw what records say: score against bytes, pairs, inner steps and FLOPs, and how training went.

    [dim]gradmem-bench plot leaderboards/kv_small --kind bytes[/]
    """
    from gradmem_bench.output import check_writable
    from gradmem_bench.plotting.parts import save
    from gradmem_bench.plotting.pictures import DRAWN, draw

    check_writable(output)
    records = records_of(runs)
    pictures = {one.value: list(draw(one.value, records)) for one in kind or list(Kind)}
    lacking = [one for one, drawn in pictures.items() if not drawn]
    if kind and lacking:
        raise UserError(f"--kind {lacking[0]}: there is nothing to draw, it takes {DRAWN[lacking[0]]}.")
    if len(lacking) == len(pictures):
        raise UserError("There is nothing to draw: none of these records has a score.")
    for name, figure in (picture for drawn in pictures.values() for picture in drawn):
        output.mkdir(parents=True, exist_ok=True)
        save(figure, output / name)
        typer.echo(f"{output / name}.png, .svg")
    if lacking:
        typer.echo(f"Not drawn: {'; '.join(f'{one} (it takes {DRAWN[one]})' for one in lacking)}.", err=True)

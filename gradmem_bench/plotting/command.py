"""`gradmem-bench plot`: nothing heavy is imported before the command needs it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gradmem_bench.errors import UserError


class Kind(StrEnum):
    bytes = "bytes"
    pairs = "pairs"
    steps = "steps"
    flops = "flops"
    training = "training"


def plot(
    runs: Annotated[list[Path] | None, typer.Argument(help="Records, or folders of them; by default ./runs.")] = None,
    kind: Annotated[
        list[Kind] | None,
        typer.Option(
            help="Exact match against state bytes, against pairs, K at training against K at evaluation, exact match "
            "against the FLOPs of a WRITE, or the curves of training. May be repeated; by default all there are "
            "numbers for."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where the pictures go, each as PNG and as SVG.")] = Path("plots"),
) -> None:
    """Draw what records say: score against bytes, pairs, inner steps and FLOPs, and how training went.

    [dim]gradmem-bench plot leaderboards/kv_small --kind bytes[/]
    """
    from gradmem_bench.plotting.pictures import DRAWN, draw
    from gradmem_bench.results import find_records

    records = find_records(runs or [Path("runs")])
    if not records:
        raise UserError("There are no records here; make some with gradmem-bench run, or name a folder that has them.")
    made = 0
    for one in kind or list(Kind):
        pictures = list(draw(one.value, records))
        if kind and not pictures:
            raise UserError(f"--kind {one.value}: there is nothing to draw, it takes {DRAWN[one.value]}.")
        for name, figure in pictures:
            output.mkdir(parents=True, exist_ok=True)
            for suffix in ("png", "svg"):
                # Without a date, the same records make the same bytes.
                figure.savefig(output / f"{name}.{suffix}", dpi=160, metadata={"Date": None} if suffix == "svg" else {})
            typer.echo(f"{output / name}.png, .svg")
            made += 1
    if not made:
        raise UserError("There is nothing to draw: none of these records has a score.")

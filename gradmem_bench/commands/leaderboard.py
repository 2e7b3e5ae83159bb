"""`gradmem-bench leaderboard`: records that are published."""

from pathlib import Path
from typing import Annotated

import typer

from gradmem_bench.errors import UserError

app = typer.Typer(
    name="leaderboard", help="Publish records: check them, file them, show them on one page.", no_args_is_help=True
)

Board = Annotated[Path, typer.Option("--board", help="The folder of the records.")]


@app.command()
def build(
    board: Board = Path("leaderboards"),
    output: Annotated[Path | None, typer.Option(help="The page; by default BOARD/index.html.")] = None,
) -> None:
    """Make one page of all records: tables, charts and the paper's numbers. It needs no server and no network.

    [dim]gradmem-bench leaderboard build[/]
    """
    from gradmem_bench.leaderboard.build import build

    path = build(board, output or board / "index.html")
    typer.echo(f"{path} ({path.stat().st_size / 1024:.0f} KiB)")


@app.command()
def add(
    runs: Annotated[list[Path], typer.Argument(help="Records, or folders of them.")],
    board: Board = Path("leaderboards"),
) -> None:
    """Check runs and file them, record and rows, below BOARD/TASK.

    Checked are the schema; that the rows make the scores, means, intervals,
    sizes and recalled bits of the record; the seal; the budget; the swap test;
    and that the code was committed. What is not in order is not filed, and does
    not keep others from it; the exit code is 2 then.

    [dim]gradmem-bench leaderboard add runs/kv_small/gradmem-*[/]
    """
    from gradmem_bench.leaderboard.add import add, remarks, runs_in

    found: dict[Path, None] = {}
    refused: list[UserError] = []
    for path in runs:
        try:
            found |= dict.fromkeys(runs_in(path))
        except UserError as error:
            refused.append(error)
    for run in found:
        try:
            record, folder, new = add(run, board)
        except UserError as error:
            refused.append(error)
        else:
            typer.echo(f"{record.run_id} {'is' if new else 'was already'} in {folder}")
            for remark in remarks(record):
                typer.echo(f"  {remark}")
    if len(refused) == 1:
        raise refused[0]
    for error in refused:
        typer.echo(str(error), err=True)
    if refused:
        raise UserError(f"{len(refused)} were not filed, each for the reason above.")


@app.command()
def check(board: Board = Path("leaderboards")) -> None:
    """Check every record as add does, and compute its numbers again from its rows.

    Beside that, records of the same data must have asked the same, and no
    folder may hold rows without a record. What is not in order is told in a
    sentence of its own; the exit code is 2 then.

    [dim]gradmem-bench leaderboard check[/]
    """
    from gradmem_bench.leaderboard.check import check, summary

    found = check(board)
    for one in found:
        for problem in one.problems:
            typer.echo(f"{one.path.parent}: {problem}")
    if any(one.problems for one in found):
        raise UserError(summary(found))
    typer.echo(summary(found))

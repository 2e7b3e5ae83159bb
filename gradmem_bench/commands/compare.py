"""`gradmem-bench compare`: the table that records make."""

import sys
from enum import StrEnum
from typing import Annotated

import typer

from gradmem_bench.commands.options import Runs, records_of


class Format(StrEnum):
    table = "table"
    markdown = "markdown"
    csv = "csv"
    latex = "latex"
    json = "json"


def compare(
    runs: Runs = None,
    by: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="task: one table a task, refusing records that cannot be compared; config: one for each setting of "
            "the task, its data, limit and backbone.",
        ),
    ] = "task",
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The method that the others are compared with, query by query, or a row's name in the table.",
        ),
    ] = None,
    each_seed: Annotated[
        bool, typer.Option("--each-seed", help="A row for every seed, rather than one for all seeds of a method.")
    ] = False,
    format: Annotated[
        Format,
        typer.Option("--format", metavar="FORMAT", help=f"How the table is written: {', '.join(Format)}."),
    ] = Format.table,
) -> None:
    """Show the table that records make: who answers best from how many bytes, and what is more than chance.

    [dim]gradmem-bench compare leaderboards/kv_small --baseline rmt --format markdown[/]
    """
    from rich.console import Console

    from gradmem_bench.reporting import formats
    from gradmem_bench.reporting.comparison import comparison
    from gradmem_bench.reporting.tables import to_rich
    from gradmem_bench.results import ancestors, read_examples

    records = records_of(runs)
    folders = {record.run_id: path.parent for path, record in records.items()}
    tables = comparison(
        records.values(),
        by,
        baseline,
        each_seed,
        lambda record: read_examples(folders[record.run_id]),
        ancestors(records),
    )
    if format == Format.table:
        console = Console()
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

"""`gradmem-bench check`: the laws, tried on one method."""

from typing import Annotated

import typer

from gradmem_bench.commands.options import IncludePath


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

    find("method", name, include_path or [])
    from rich.console import Console
    from rich.markup import escape

    from gradmem_bench.reporting.laws import laws_progress, laws_table
    from gradmem_bench.testing import BACKBONES, findings

    console = Console()
    with laws_progress(console, len(backbone or BACKBONES)) as report:
        found = findings(name, None, backbone, include_path or [], report)
    console.print(laws_table(found))
    laws = {finding.law.name for finding in found}
    broken = {finding.law.name for finding in found if finding.outcome == "FAIL"}
    untried = {finding.law.name for finding in found if finding.outcome == "skipped"} - broken
    console.print()
    rest = f"; {len(untried)} could not be tried on every backbone" if untried else ""
    if broken:
        console.print(f"{escape(name)} breaks {len(broken)} of {len(laws)} laws{rest}.")
        raise typer.Exit(1)
    console.print(f"{escape(name)} keeps {len(laws - untried)} of {len(laws)} laws{rest}.")

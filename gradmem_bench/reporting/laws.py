"""What `check` found, for people: a row a law."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from gradmem_bench.conformance.check import LAWS, Finding
from gradmem_bench.conformance.law import Law

_STYLES = {"pass": "green", "FAIL": "bold red", "skipped": "yellow"}


def laws_table(findings: Sequence[Finding]) -> Table:
    """Each law with its verdict over all backbones, and below it what the method did, or why it was not tried."""
    table = Table(box=None, header_style="bold")
    table.add_column("law", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("what it says, and what was found", overflow="fold")
    for law in LAWS:
        found = [finding for finding in findings if finding.law == law]
        if not found:
            continue
        outcomes = {finding.outcome for finding in found}
        verdict = next(outcome for outcome in ("FAIL", "skipped", "pass") if outcome in outcomes)
        lines = [law.says, *_sentences([one for one in found if one.sentence], len(found))]
        table.add_row(law.name, f"[{_STYLES[verdict]}]{verdict}[/]", "\n".join(map(escape, lines)))
    return table


def _sentences(found: Sequence[Finding], backbones: int) -> list[str]:
    """The first sentence of each outcome, and the backbones that it is about where those are not all."""
    lines = []
    for outcome in ("FAIL", "skipped"):
        told = [one for one in found if one.outcome == outcome]
        if told:
            where = "" if len(told) == backbones else f"{', '.join(one.backbone for one in told)}: "
            lines.append(f"→ {where}{told[0].sentence}")
    return lines


@contextmanager
def laws_progress(console: Console, backbones: int) -> Iterator[Callable[[str, Law], None]]:
    """A bar over the laws of all backbones; yields what a check reports to."""
    columns = (TextColumn("check"), BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.description}"))
    # In a file, a bar that moves is nothing but empty lines.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("", total=backbones * len(LAWS), completed=-1)
        yield lambda backbone, law: bars.update(bar, advance=1, description=f"{law.name} · {backbone}")

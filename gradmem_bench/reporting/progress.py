"""What a person sees while a run is made: live bars on a terminal, one line a validation elsewhere."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gradmem_bench.config import Budget

if TYPE_CHECKING:
    from gradmem_bench.config import TrainingConfig
    from gradmem_bench.plan import Plan
    from gradmem_bench.results import RunRecord
    from gradmem_bench.training import Progress as TrainingProgress


class RunDisplay:
    """The display of one run.

    Args:
        console: where it is shown.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def begin(self, plan: "Plan", number: int, total: int) -> None:
        """Names the run that starts now."""
        budget = "" if plan.budget == Budget() else f" · {plan.budget}"
        # The number comes first, where no long path of a backbone can cut it off.
        self.console.rule(
            f"{number}/{total}  [bold]{plan.recipe.name}[/] on {plan.task.name} · {plan.backbone.name}{budget}",
            align="left",
        )

    def note(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False)

    def _bars(self, columns: tuple[ProgressColumn, ...]) -> Progress:
        # In a file, a bar that moves is nothing but empty lines.
        return Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)

    @contextmanager
    def _logged(self) -> Iterator[None]:
        """Shows what the library logs as notes: what it chose by itself."""
        logger, handler = logging.getLogger("gradmem_bench"), _Notes(self)
        before = logger.level
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)

    @contextmanager
    def training(self, config: "TrainingConfig") -> Iterator[Callable[["TrainingProgress", float, bool], None]]:
        """A bar over the optimiser steps; yields what the trainer reports to."""
        columns = (
            TextColumn("  train"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
        )
        last = {"step": None, "seconds": 0.0, "rate": 0.0}
        with self._bars(columns) as bars, self._logged():
            bar = bars.add_task("train", total=config.steps, shown="")

            def report(progress: "TrainingProgress", loss: float, validated: bool) -> None:
                if last["step"] is not None and progress.seconds > last["seconds"]:
                    rate = 1 / (progress.seconds - last["seconds"])
                    last["rate"] = rate if not last["rate"] else 0.95 * last["rate"] + 0.05 * rate
                last.update(step=progress.step, seconds=progress.seconds)
                score = progress.history[-1]["score"] if progress.history else None
                validation = "" if score is None else f" · validation {score:.3f}"
                shown = f"loss {loss:.3f}{validation} · {last['rate']:.1f} steps/s"
                bars.update(bar, completed=progress.step, shown=shown)
                if validated:
                    stage = progress.history[-1]["stage"]
                    stages = len(config.curriculum) + 1
                    where = f" · stage {stage + 1}/{stages}" if stages > 1 else ""
                    if stage < stages - 1:
                        eased = config.curriculum[stage].task
                        where += f" ({', '.join(f'{key} {value}' for key, value in eased.items())})"
                    self.note(
                        f"step {progress.step:>6}{where} · loss {loss:.3f}{validation} · {progress.seconds:.0f} s"
                    )

            yield report

    @contextmanager
    def evaluation(self, total: int, done: int) -> Iterator[Callable[[int], None]]:
        """A bar over the contexts that are written and asked."""
        columns = (
            TextColumn("  evaluate"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("contexts"),
            TimeRemainingColumn(),
        )
        with self._bars(columns) as bars:
            bar = bars.add_task("evaluate", total=total, completed=done)
            yield lambda count: bars.advance(bar, count)

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Something that takes its time without steps to count."""
        with self._bars((SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())) as bars:
            bars.add_task(what, total=None)
            yield

    @contextmanager
    def measuring(self) -> Iterator[Callable[[str], None]]:
        """The phases whose costs are measured; yields what `measure` reports each to."""
        columns = (SpinnerColumn(), TextColumn("measure {task.fields[phase]}"), TimeElapsedColumn())
        with self._bars(columns) as bars:
            bar = bars.add_task("measure", total=None, phase="")
            yield lambda phase: bars.update(bar, phase=phase)

    def finished(self, record: "RunRecord", folder: Path) -> None:
        """The outcome in one line, and where it was put."""
        from gradmem_bench.reporting.tables import with_interval
        from gradmem_bench.results import metric_title, primary_metric

        ranked_by = primary_metric([record])
        result = record.metrics[ranked_by]
        lacking = f" ({result.reason})" if result.value is None else ""
        swap = record.swap_test
        # The scores behind it matter where it did not pass; the record has them always.
        told = {True: "passed", None: "without a verdict (no better than chance)", False: swap.outcome}
        verdict = told[swap.passed]
        title = escape(metric_title(ranked_by, record.task))
        self.note(f"{title} {with_interval(result)}{lacking}, n = {result.n} · swap test {verdict}")
        if record.training is not None and (stage := record.training.unfinished_curriculum):
            self.note(f"[yellow]training ended in {stage}[/]: the task itself was not trained on; raise training.steps")
        if unseen := record.metrics.get("unseen_exact_match"):
            self.note(f"exact match {unseen.value:.3f} of the {unseen.n} queries that are not in the training data too")
        self.note(f"[dim]{escape(str(folder))}[/]")


class _Notes(logging.Handler):
    def __init__(self, display: RunDisplay) -> None:
        super().__init__()
        self.display = display

    def emit(self, record: logging.LogRecord) -> None:
        self.display.note(record.getMessage())

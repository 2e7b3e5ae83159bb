"""`gradmem-bench reproduce`: a paper's figure or table, ours beside the published one."""

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradmem_bench.commands.options import Device, RunDevice, torch_device

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from gradmem_bench.reproducing import Maker
    from gradmem_bench.reproduction import Experiment, Run, Scale


class ScaleName(StrEnum):
    tiny = "tiny"
    small = "small"
    paper = "paper"


def reproduce(
    figure: Annotated[
        str,
        typer.Argument(
            help="Of GradMem's paper (arXiv 2603.13875): fig3, fig4 (fig4a, fig4b), fig5, tables (babi, squad, "
            "question, reconstruction). Of this repository: claims (writing, writing_steps, writing_ablation), "
            "writing_seeds, writing_pairs, eight_vectors, babi_wiki, squad_wiki, babi_wiki_14m, squad_wiki_14m; "
            "list figures says what each is. Or the path of an experiment's YAML."
        ),
    ],
    scale: Annotated[
        ScaleName | None,
        typer.Option(
            help="tiny: minutes to an hour on a core or two, small: hours; paper: its own size, for a GPU. By default "
            "the smallest that the figure has."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where runs are kept, and ours is put beside the paper's.")] = Path(
        "runs/reproduce"
    ),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs, which are there, and what the others will take.")
    ] = False,
    device: RunDevice = Device.auto,
) -> None:
    """Run what is missing of a figure, the paper's or our own, and show it, ours beside the paper's with the
    difference. Exit code 1 when nothing of ours is there, or can be made.

    [dim]gradmem-bench reproduce fig3 --scale tiny[/]
    """
    from gradmem_bench import processes
    from gradmem_bench.errors import UserError
    from gradmem_bench.output import check_writable
    from gradmem_bench.reproduction import experiments, scale_of

    if processes.count() > 1:
        raise UserError(
            f"reproduce works in one process, and {processes.count()} were started; start it without torchrun, or make "
            "its runs with gradmem-bench run, which trains in several."
        )
    found = experiments(figure)
    scale = scale or next(one for one in ScaleName if any(one in experiment.scales for experiment in found))
    # Of several figures those are made that have such a scale.
    having = [one for one in found if scale in one.scales] or found
    wanted = [(one, scale_of(one, scale)) for one in having]
    if not dry_run:
        check_writable(output)
    from rich.console import Console

    from gradmem_bench.archive import Archive
    from gradmem_bench.reporting.progress import RunDisplay
    from gradmem_bench.reproducing import Maker
    from gradmem_bench.results import find_records

    console = Console()
    for one in found:
        if one not in having:
            console.print(f"{one.figure} has no scale {scale}, only {', '.join(one.scales)}.", style="dim")
    archive = Archive(find_records([output]) if output.exists() else {})
    maker = Maker(output, archive, torch_device(device), RunDisplay(console))
    if dry_run:
        listed: list[Run] = []
        made = 0
        for experiment, size in wanted:
            to_train, can_be_made = _list(console, experiment, scale, size, maker, listed)
            listed += to_train
            made += can_be_made
        if len(wanted) > 1:
            console.print(f"All figures: {_time_of(listed)}.")
        if not made:
            raise typer.Exit(1)
        return
    answered = [_answer(console, experiment, scale, size, maker) for experiment, size in wanted]
    if not any(answered):
        raise typer.Exit(1)


def _answer(console: "Console", experiment: "Experiment", name: str, scale: "Scale", maker: "Maker") -> bool:
    """Makes and shows one figure; whether it has any number of ours."""
    from gradmem_bench.archive import missing
    from gradmem_bench.paper import paper_figure
    from gradmem_bench.plotting.parts import files_of, save
    from gradmem_bench.plotting.reproductions import picture
    from gradmem_bench.registry import recipe_folder
    from gradmem_bench.reporting.reproductions import lines, report
    from gradmem_bench.reproducing import benchmark
    from gradmem_bench.reproduction import expand

    archive, output = maker.archive, maker.output
    runs = expand(scale)
    reasons = maker.make(missing(runs, archive))
    if experiment.report == "losses":
        maker.measure_parts(runs)
    reasons |= Counter(benchmark(scale, output / "performance", maker.device))
    paper = paper_figure(experiment.paper or experiment.figure)
    table = lines(experiment, runs, archive, paper)
    performance = [recipe_folder("paper").parent / "performance", output / "performance"]
    shown = report(experiment, name, scale, table, paper, reasons, performance)
    console.print()
    console.print(shown)
    output.mkdir(parents=True, exist_ok=True)
    stem = output / f"{experiment.figure}-{name}"
    with stem.with_suffix(".txt").open("w", encoding="utf-8") as file:
        type(console)(file=file, width=80).print(shown)
    figure = picture(experiment, table)
    files = [stem.with_suffix(".txt"), *(save(figure, stem) if figure else [])]
    if figure is None:
        # One of an earlier run would show what the table beside it does not.
        for old in files_of(stem):
            old.unlink(missing_ok=True)
    console.print(f"\n{', '.join(map(str, files))}", style="dim")
    if not runs:
        return any(path for folder in performance for path in folder.glob("meta_gradient-*.json"))
    return len(missing(runs, archive)) < len(runs)


def _list(
    console: "Console", experiment: "Experiment", name: str, scale: "Scale", maker: "Maker", before: "list[Run]"
) -> "tuple[list[Run], int]":
    """Shows what a figure is made of. Trainings of `before` are counted there.

    Returns:
        Those of the missing runs that can be made whose training is neither there nor among `before`, and how much is
        there or can be made, runs and measurements.
    """
    from rich.text import Text

    from gradmem_bench.archive import missing
    from gradmem_bench.reproducing import names_of, unmeasured, without
    from gradmem_bench.reproduction import expand

    runs, counted = expand(scale), {run.training for run in before}
    absent = missing(runs, maker.archive)
    made, own = absent, []
    there = {run.training for run in runs if run not in absent}
    console.print(Text(f"{experiment.figure} · {experiment.title} · scale {name}", style="bold"))
    rows: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        told = {key: value for key, value in run.setting.items() if key not in run.evaluation}
        begun = run.start and ", ".join(f"{key} {value}" for key, value in run.start.setting.items())
        start = "" if run.start is None else f"{run.start.name} ({begun})" if begun else run.start.name
        setting = ", ".join(f"{key} {value}" for key, value in told.items())
        rows.setdefault((run.name, run.task, setting, start), []).append(run)
    listed = []
    for (label, task, setting, start), alike in rows.items():
        seeds = " ".join(map(str, dict.fromkeys(run.seed for run in alike)))
        to_train = len({run.training for run in alike} - there - counted)
        evaluated = len(alike) - sum(run in absent for run in alike)
        steps = alike[0].settings.get("training.steps")
        trainings = f"{to_train} of {steps} steps" if to_train and steps else str(to_train)
        evaluations = f"{len(alike)}, {evaluated} there" if evaluated else str(len(alike))
        listed.append((label, task, setting, seeds, start, trainings, evaluations))
    if runs:
        console.print(_table(("name", "task", "setting", "seeds", "starts from", "to train", "to evaluate"), listed))
        shared = len({run.training for run in absent} & counted)
        above = f"; {shared} of their trainings are counted above" if shared else ""
        with maker.display.working("whether each can be made"):
            refused = maker.refused(absent)
        made = without(absent, refused)
        own = [run for run in made if run.training not in counted | there]
        lacking = f", of which {len(made)} can be made" if refused else ""
        time = f": {_time_of(own)}" if own else ""
        console.print(f"{len(absent)} of {len(runs)} runs to make{lacking}{time}{above}.")
        for reason, ones in refused.items():
            console.print(Text(f"{len(ones)} cannot be made ({names_of(ones)}): {reason}", style="red"))
    if scale.benchmark:
        left = unmeasured(scale, maker.output / "performance")
        for call in scale.benchmark:
            there = "" if call in left else "  (there)"
            console.print(Text(f"python benchmarks/meta_gradient.py {' '.join(call)}{there}"))
        console.print(f"{len(left)} of {len(scale.benchmark)} measurements to make, whose time was not measured.")
    console.print(Text(scale.about, style="dim"))
    console.print()
    return own, len(runs) - len(absent) + len(made) + len(scale.benchmark)


def _table(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> "Table":
    """The rows, without the columns in which nothing stands."""
    from rich.table import Table
    from rich.text import Text

    filled = [index for index in range(len(headers)) if any(row[index] for row in rows)]
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for index in filled:
        # A setting is of use only whole.
        table.add_column(headers[index], overflow="fold", no_wrap=headers[index] in ("setting", "task"))
    for row in rows:
        table.add_row(*(Text(row[index]) for index in filled))
    return table


def _time_of(runs: "list[Run]") -> str:
    from gradmem_bench.reporting.tables import duration
    from gradmem_bench.reproduction import estimated_seconds

    seconds, unknown = estimated_seconds(runs)
    parts = [f"about {duration(seconds)}"] if seconds or not unknown else []
    if unknown:
        parts.append(f"{unknown} training{'s' if unknown > 1 else ''} whose time was not measured")
    return ", and ".join(parts)

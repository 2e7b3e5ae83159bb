"""Ours beside the paper's: every seed, both intervals, the difference, the controls, and what is missing."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from gradmem_bench.archive import Archive
from gradmem_bench.metrics import METRICS
from gradmem_bench.paper import PaperFigure, PaperRow
from gradmem_bench.reconstruction import PARTS_FILE
from gradmem_bench.reporting.examples import Examples
from gradmem_bench.reporting.longest import reached
from gradmem_bench.reproduction import Experiment, Run, Scale
from gradmem_bench.results import read_examples
from gradmem_bench.statistics import estimate

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gradmem_bench.results import RunRecord

NOTHING = "–"
_STEPS = "evaluation_inner_steps"
_SHORT = {_STEPS: "K", "memory_vectors": "m"}
_ONE_LINE = len("0.123 [0.12, 0.12]")


@dataclass
class Line:
    """One row: the seeds of one method and setting, and the published number."""

    name: str
    setting: dict[str, Any]
    seeds: list[int]
    records: dict[int, tuple[Path, "RunRecord"]]
    """By seed, of those that are there."""
    without_steps: dict[int, "RunRecord"] = field(default_factory=dict)
    """The same checkpoints at K = 0."""
    paper: PaperRow | None = None
    task: str = ""
    paper_name: str = ""

    def scores(self, metric: str) -> dict[int, float]:
        found = {seed: record.metrics.get(metric) for seed, (_, record) in self.records.items()}
        return {seed: one.value for seed, one in found.items() if one is not None and one.value is not None}

    def interval(self, metric: str) -> tuple[float | None, float | None] | None:
        """Of the mean over seeds and contexts, as `gradmem-bench compare` has it; of one seed, as its record has it.

        Raises UserError where the example rows of several seeds are not those that their records count.
        """
        records = [record for _, record in self.records.values() if metric in record.metrics]
        if len(records) < 2:
            return next(((one.metrics[metric].low, one.metrics[metric].high) for one in records), None)
        folders = {record.run_id: path.parent for path, record in self.records.values()}
        examples = Examples(lambda record: read_examples(folders[record.run_id]))
        found = estimate(*examples.scores(records, metric), METRICS[metric].kind)
        return found.low, found.high

    @property
    def told(self) -> str:
        return told_of(self.setting)


def lines(experiment: Experiment, runs: Sequence[Run], archive: Archive, paper: PaperFigure | None) -> list[Line]:
    """The rows in the order of the experiment, with the published number of the same method, task and setting."""
    made: dict[Any, Line] = {}
    for run in runs:
        line = made.setdefault(
            run.row, Line(run.name, dict(run.setting), [], {}, task=run.task, paper_name=run.paper_name)
        )
        line.seeds.append(run.seed)
        if found := archive.find(run):
            line.records[run.seed] = found
        if line.paper is None and paper is not None:
            line.paper = next((row for row in paper.rows if _is_of(row, run, experiment.metric)), None)
    if experiment.report == "rows":
        for key, line in list(made.items()):
            if line.setting.get(_STEPS) == 0:
                setting = tuple((name, value) for name, value in key[2] if name != _STEPS)
                if trained := made.get((*key[:2], setting)):
                    trained.without_steps = {seed: record for seed, (_, record) in line.records.items()}
                    del made[key]
    return list(made.values())


def told_of(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{_SHORT.get(key, key)} {value}" for key, value in setting.items())


def _is_of(row: PaperRow, run: Run, metric: str) -> bool:
    return (row.method, row.task, row.metric, row.setting) == (run.paper_name, run.paper_task, metric, run.setting)


def _number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    return NOTHING if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def _with(value: float | None, interval: tuple[float | None, float | None] | None) -> str:
    if value is None or interval is None or interval[0] is None:
        return _number(value)
    return f"{value:.3f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _grid(headers: Iterable[str], rows: Sequence[Sequence[str]], left: int = 2) -> Table:
    """A table of `rows`, of which one with a single cell is a heading of those below it."""
    grid = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    for index, header in enumerate(headers):
        # A number with its interval is read in one line; a list of many seeds may take several.
        whole = index >= left and max((len(row[index]) for row in rows if len(row) > 1), default=0) <= _ONE_LINE
        grid.add_column(Text(header), justify="left" if index < left else "right", overflow="fold", no_wrap=whole)
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row), style="" if len(row) > 1 else "bold")
    return grid


def rows_report(table: Sequence[Line], metric: str, solved_at: float) -> "RenderableType":
    """Means beside the paper's, where it has any, then every seed with its controls."""
    is_published = any(line.paper is not None and line.paper.value is not None for line in table)
    compared, seeds = [], []
    tasks, task = list(dict.fromkeys(line.task for line in table)), None
    for line in sorted(table, key=lambda line: tasks.index(line.task)):
        if len(tasks) > 1 and line.task != task:
            task = line.task
            compared.append([task])
            seeds.append([task])
        scores = line.scores(metric)
        mean = fmean(scores.values()) if scores else None
        paper = line.paper
        published = NOTHING if paper is None else _with(paper.value, (paper.low, paper.high))
        difference = None if paper is None or paper.value is None or mean is None else mean - paper.value
        # A method may have no such metric.
        absent = {seed: NOTHING if seed in line.records else "missing" for seed in line.seeds}
        ours = _with(mean, line.interval(metric)) if scores else NOTHING if line.records else "missing"
        beside = [published, _number(difference, 3, sign=True)]
        compared.append([line.name, line.told, ours, *(beside if is_published else [])])
        swaps = [record.swap_test for _, record in line.records.values()]
        each = " ".join(f"{scores[seed]:.2f}" if seed in scores else absent[seed] for seed in line.seeds)
        solved = f"{sum(score >= solved_at for score in scores.values())}/{len(scores)}" if scores else NOTHING
        without = [record.metrics[metric].value for record in line.without_steps.values() if metric in record.metrics]
        blanks = [swap.blank_score for swap in swaps]
        seeds.append(
            [
                line.name,
                line.told,
                each,
                solved,
                _mean(without),
                _mean([swap.swapped_score for swap in swaps]),
                _mean([swap.random_score for swap in swaps]),
                NOTHING if None in blanks else _mean(blanks),
            ]
        )
    controls = ["foreign", "random", "blank"]
    if all(row[-1] == NOTHING for row in seeds if len(row) > 1):
        seeds = [row[:-1] if len(row) > 1 else row for row in seeds]
        controls.remove("blank")
    headers = ["method", "setting", "ours [95 %]", *(["paper [± sd]", "difference"] if is_published else [])]
    return Group(
        _grid(headers, compared),
        Text(""),
        _grid(["method", "setting", "each seed", f"≥ {solved_at:g}", "K = 0", *controls], seeds),
        Text(
            f"≥ {solved_at:g}: how many of the seeds reach it. K = 0: no step of WRITE. "
            f"{', '.join(controls)}: exact match from another context's state"
            f"{', a random one and the one that WRITE begins with' if 'blank' in controls else ', or a random one'}."
        ),
    )


def _mean(values: Iterable[float | None], digits: int = 2) -> str:
    known = [value for value in values if value is not None]
    return _number(fmean(known) if known else None, digits)


def heat_map(table: Sequence[Line]) -> dict[tuple[str, str], dict[int, Line]]:
    """Rows of one training by K at evaluation: (method, task where there are several and setting without K) -> K ->
    line."""
    found: dict[tuple[str, str], dict[int, Line]] = {}
    several = len({line.task for line in table}) > 1
    for line in table:
        rest = {"task": line.task} if several else {}
        rest |= {key: value for key, value in line.setting.items() if key != _STEPS}
        if _STEPS in line.setting:
            found.setdefault((line.name, told_of(rest)), {})[line.setting[_STEPS]] = line
    return found


def heat_map_report(table: Sequence[Line], metric: str) -> "RenderableType":
    """One block a training: its seeds, their mean with its interval, and the paper's where it has any, against K at
    evaluation."""
    parts: list[RenderableType] = []
    for (name, setting), by_steps in heat_map(table).items():
        steps = sorted(by_steps)
        seeds = dict.fromkeys(seed for line in by_steps.values() for seed in line.seeds)
        scores = {step: by_steps[step].scores(metric) for step in steps}
        means = {step: fmean(one.values()) if one else None for step, one in scores.items()}
        paper = {step: published.value for step in steps if (published := by_steps[step].paper)}
        rows = [[f"seed {seed}", *(_number(scores[step].get(seed), 2) for step in steps)] for seed in seeds]
        if len(seeds) > 1:
            rows.append(["mean", *(_number(means[step], 2) for step in steps)])
        found = [by_steps[step].interval(metric) or (None, None) for step in steps]
        for place, side in enumerate(("low", "high")):
            rows.append([f"95 % {side}", *(_number(interval[place], 2) for interval in found)])
        if any(value is not None for value in paper.values()):
            rows.append(["paper", *(_number(paper.get(step), 2) for step in steps)])
            gap = [
                NOTHING if means[step] is None or paper.get(step) is None else f"{means[step] - paper[step]:+.2f}"
                for step in steps
            ]
            rows.append(["difference", *gap])
        swaps = [record.swap_test for line in by_steps.values() for _, record in line.records.values()]
        rows.append(["foreign", *(_mean(s.swap_test.swapped_score for s in _all(by_steps[step])) for step in steps)])
        if any(swap.random_score is not None for swap in swaps):
            random = (_mean(s.swap_test.random_score for s in _all(by_steps[step])) for step in steps)
            rows.append(["random", *random])
        parts += [Text(f"{name}, {setting}".rstrip(", "), style="bold"), _grid(["K =", *map(str, steps)], rows, left=1)]
        parts.append(Text(""))
    over = "over seeds, as compare has it" if any(len(line.seeds) > 1 for line in table) else "over contexts"
    return Group(*parts, Text(f"95 %: the interval of the mean, {over}. foreign, random: from such a state."))


def _all(line: Line) -> list["RunRecord"]:
    return [record for _, record in line.records.values()]


def parts_of(line: Line) -> dict[int, dict[str, float]]:
    """Seed -> part of the context -> nats per token, where they were measured."""
    files = {seed: path.parent / PARTS_FILE for seed, (path, _) in line.records.items()}
    return {
        seed: json.loads(file.read_text(encoding="utf-8"))["nats_per_token"]
        for seed, file in files.items()
        if file.exists()
    }


def losses_report(table: Sequence[Line], metric: str) -> "RenderableType":
    """Exact match beside the reconstruction loss of keys, values and marks, seed by seed."""
    rows = []
    for (name, setting), by_steps in heat_map(table).items():
        for step in sorted(by_steps):
            line = by_steps[step]
            scores, parts = line.scores(metric), parts_of(line)
            for seed in line.seeds:
                found = parts.get(seed, {})
                nats = (_number(found.get(part), 3) for part in ("keys", "values", "marks"))
                rows.append([name, f"{setting}, seed {seed}", str(step), _number(scores.get(seed)), *nats])
    return _grid(["method", "setting", "K", "exact match", "keys", "values", "marks"], rows)


def performance_report(folders: Iterable[Path], paper: PaperFigure | None) -> "RenderableType":
    """The engines' records, and what the paper says of its own."""
    parts: list[RenderableType] = []
    for path in (path for folder in folders for path in sorted(folder.glob("meta_gradient-*.json"))):
        record = json.loads(path.read_text(encoding="utf-8"))
        unit = "pairs" if record["model"] == "kv" else "tokens"
        told = f"{record['model']} · {record['machine']['device']} · batch {record['batch']} · {path.name}"
        rows = [
            [
                str(row[unit]),
                str(row["K"]),
                row["variant"],
                _number(row["seconds"]),
                _number(row["time_ratio"], 2),
                _number(row["bytes"] / 2**30, 2),
                _number(row["memory_ratio"], 2),
            ]
            for row in record["rows"]
        ]
        headers = [unit, "K", "engine", "s a step", "ratio", "peak GiB", "ratio"]
        parts += [Text(told, style="bold"), _grid(headers, rows, left=3), Text("")]
    if not parts:
        parts.append(Text("missing: no record of benchmarks/meta_gradient.py is here."))
    if paper is not None:
        rows = [[row.method, told_of(row.setting), row.metric, f"{row.value:g}"] for row in paper.rows]
        parts.append(_grid(["paper", "setting", "metric", "value"], rows, left=3))
    return Group(*parts)


def _measured(table: Sequence[Line], metric: str) -> str:
    """What each number is a score of: the metric, n, and the backbone."""
    title, records = metric.replace("_", " "), [record for line in table for record in _all(line)]
    if not (counts := {record.metrics[metric].n for record in records if metric in record.metrics}):
        return title
    queries = _span(counts)
    contexts = _span({record.task.contexts for record in records})
    backbones = dict.fromkeys(record.backbone.name for record in records)
    cut = max(record.task.truncated_contexts for record in records)
    lost = f", up to {cut:,} of them cut to fit it" if cut else ""
    return f"{title} of {queries} queries in {contexts} contexts a seed, on {', '.join(backbones)}{lost}"


def _span(counts: set[int]) -> str:
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def _published_alone(beside: Sequence[PaperRow | None], paper: PaperFigure | None) -> list[str]:
    """The published numbers that stand `beside` nothing of ours, one text a method, task and metric."""
    if paper is None:
        return []
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in paper.rows:
        if row not in beside and row.value is not None:
            setting = told_of(row.setting)
            told = f"{setting + ': ' if setting else ''}{row.value:.4g}"
            found.setdefault((row.method, row.task, row.metric), []).append(told)
    return [
        f"{method}, {task}, {metric.replace('_', ' ')}: {'; '.join(told)}"
        for (method, task, metric), told in found.items()
    ]


def report(
    experiment: Experiment,
    scale_name: str,
    scale: Scale,
    table: Sequence[Line],
    paper: PaperFigure | None,
    reasons: Mapping[str, int],
    performance: Iterable[Path],
) -> "RenderableType":
    """The whole answer to one figure.

    Args:
        reasons: why runs could not be made, each with how many they are.
        performance: folders with the engines' records.
    """
    metric = experiment.metric
    title = Text(f"{experiment.figure} · {experiment.title} · scale {scale_name}", style="bold")
    body: RenderableType
    if experiment.report == "performance":
        body = performance_report(performance, paper)
    elif experiment.report == "heat_map":
        body = heat_map_report(table, metric)
    elif experiment.report == "losses":
        body = losses_report(table, metric)
    else:
        body = rows_report(table, metric, scale.solved_at)
    beside = [line.paper for line in table]
    if experiment.longest and (lengths := reached(table, metric, experiment.longest, paper)):
        beside += [one.paper for one in lengths]
        headers = ["longest N", "setting", f"{metric.replace('_', ' ')} ≥", "ours", "paper", "difference"]
        table_of = _grid(headers, [one.cells for one in lengths])
        told = Text("longest N: by the mean; in brackets by the lower and by the upper bound of 95 % of each length.")
        body = Group(body, Text(""), table_of, told)
    wanted, made = sum(len(line.seeds) for line in table), sum(len(line.records) for line in table)
    notes = [scale.about, *experiment.notes]
    if table:
        notes.insert(0, f"{_measured(table, metric)}; {wanted - made} of {wanted} scores missing.")
    notes += [f"missing ({count}): {reason}" for reason, count in reasons.items()]
    if paper is not None:
        notes.append(f"Paper: {paper.source}.")
    if experiment.report != "performance":
        notes += [f"published, and not run at this scale: {text}" for text in _published_alone(beside, paper)]
    return Group(title, Text(""), body, Text(""), *(Text(note, style="dim") for note in notes))

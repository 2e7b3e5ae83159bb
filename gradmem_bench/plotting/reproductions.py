"""The picture of a reproduced figure."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter

from gradmem_bench.plotting.parts import (
    METHOD,
    REFERENCES,
    caption,
    error_bars,
    legend,
    looks_of,
    new_figure,
    points_told,
    score_axis,
    shaded,
    side_by_side,
)
from gradmem_bench.reporting.reproductions import Line, heat_map, parts_of
from gradmem_bench.reproduction import Experiment
from gradmem_bench.results import MetricResult


def picture(experiment: Experiment, table: Sequence[Line]) -> Figure | None:
    """What the rows of a figure look like; nothing where there is nothing to be drawn."""
    kinds = {"heat_map": _heat_map, "losses": _losses, "rows": _curves}
    kind = kinds.get(experiment.report)
    return kind(experiment.title, table, experiment.metric) if kind else None


def _curves(title: str, table: Sequence[Line], metric: str) -> Figure | None:
    """Score against the one axis that the rows have, the mean over seeds with each of them; the paper's hollow."""
    by_name: dict[str, list[Line]] = {}
    several = len({line.task for line in table}) > 1
    for line in table:
        if len(line.setting) == 1 and type(_place(line)) is int and _place(line) >= 0:
            by_name.setdefault(f"{line.name}, {line.task}" if several else line.name, []).append(line)
    shown = [line for own in by_name.values() for line in own]
    across = {key for line in shown for key in line.setting}
    if len(across) != 1 or not any(line.scores(metric) for line in shown):
        return None
    figure, axes = new_figure(title)
    drawn: list[float] = []
    published = False
    roles = {name: _role(own) for name, own in by_name.items()}
    looks = looks_of(name for name, role in roles.items() if role == "method")
    order = sorted(by_name, key=lambda name: (roles[name] != "method", name))
    values = sorted({_place(line) for line in shown})
    # On a doubling axis zero has no place; here it is the one before all others.
    at = {value: value or next(filter(None, values), 1) / 2 for value in values}
    sides = side_by_side(axes, at.values(), len(order))
    axes.xaxis.set_major_formatter(FixedFormatter(list(map(str, values))))
    for name, side in zip(order, sides, strict=True):
        look = looks[name] | METHOD if name in looks else REFERENCES[roles[name]]
        made = [line for line in by_name[name] if line.scores(metric)]
        if made:
            xs = [at[_place(line)] * side for line in made]
            seeds = [list(line.scores(metric).values()) for line in made]
            means = list(map(fmean, seeds))
            bars = error_bars(means, [line.interval(metric) for line in made])
            axes.errorbar(xs, means, yerr=bars, label=name, **look, linewidth=1.2, capsize=3, zorder=3)
            for x, scores in zip(xs, seeds, strict=True):
                if len(scores) > 1:
                    axes.scatter([x] * len(scores), scores, s=9, color=look["color"], zorder=4)
            drawn += means
        paper = [(at[_place(line)] * side, line.paper.value) for line in by_name[name] if line.paper]
        if paper:
            published = True
            # A ceiling's stroke could not be hollow.
            marker = look["marker"] if name in looks else "s"
            hollow = {"marker": marker, "color": look["color"], "fillstyle": "none", "markersize": 11}
            axes.plot(*zip(*paper, strict=True), linestyle="none", **hollow)
            drawn += [value for _, value in paper if value is not None]
    if published:
        hollow = {"marker": "o", "color": "0.3", "fillstyle": "none", "markersize": 11}
        axes.plot([], [], linestyle="none", **hollow, label="large, hollow: the paper's")
    (name,) = across
    axes.set_xlabel(name)
    score_axis(axes, _title(metric), drawn)
    legend(figure)
    marks = [points_told(len(line.scores(metric)) for line in shown if line.scores(metric)), "Lines join the means."]
    if len(order) > 1:
        marks.append(f"Side by side on a grey band: one value of {name}.")
    caption(figure, (), marks)
    return figure


def _role(own: Sequence[Line]) -> str:
    """Floor, ceiling or method; what was not run is taken for a method."""
    return next((record.method.role for line in own for _, record in line.records.values()), "method")


def _heat_map(title: str, table: Sequence[Line], metric: str) -> Figure | None:
    """Means over seeds: one row a training, one column a K at evaluation."""
    if not any(line.scores(metric) for line in table):
        return None
    blocks = heat_map(table)
    steps = sorted({step for by_steps in blocks.values() for step in by_steps})
    means = [
        [
            fmean(scores.values()) if step in own and (scores := own[step].scores(metric)) else float("nan")
            for step in steps
        ]
        for own in blocks.values()
    ]
    figure, axes = new_figure(title, 3.4 + 0.6 * len(steps), 1.0 + 0.5 * len(blocks))
    texts = [[f"{mean:.2f}" for mean in row] for row in means]
    shaded(axes, means, texts, 1.0)
    axes.set_xticks(range(len(steps)), [str(step) for step in steps])
    axes.set_yticks(range(len(blocks)), list(map(_block_name, blocks)), fontsize=8)
    missing = "; hatched: missing" if any(mean != mean for row in means for mean in row) else ""
    axes.set_xlabel(f"K at evaluation; a cell is the mean over seeds{missing}")
    return figure


def _losses(title: str, table: Sequence[Line], metric: str) -> Figure | None:
    """Score against the reconstruction loss, keys and values in panels of their own; a seed's K are joined."""
    if not any(parts_of(line) for line in table):
        return None
    blocks = heat_map(table)
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    looks = looks_of(map(_block_name, blocks))
    for axes, part in zip(figure.subplots(1, 2, sharey=True), ("keys", "values"), strict=True):
        drawn: list[float] = []
        for block, by_steps in blocks.items():
            name = _block_name(block)
            for own in _by_seed(by_steps, metric).values():
                xs = [parts[part] for parts, _ in own]
                scores = [score.value for _, score in own]
                bars = error_bars(scores, [(score.low, score.high) for _, score in own])
                known = axes.get_legend_handles_labels()[1]
                told = {"label": f"_{name}" if name in known else name, "zorder": 3}
                axes.errorbar(xs, scores, yerr=bars, **looks[name], **told, markersize=4, linewidth=0.8, capsize=2)
                drawn += scores
        axes.set_xlabel(f"nats per token of the {part}")
        score_axis(axes, _title(metric) if part == "keys" else "", drawn)
        axes.spines[["top", "right"]].set_visible(False)
    legend(figure)
    steps = ", ".join(map(str, sorted({step for by_steps in blocks.values() for step in by_steps})))
    joined = f"A line joins the K at evaluation of one seed ({steps})."
    caption(figure, (), [points_told([1]), joined])
    return figure


def _by_seed(by_steps: Mapping[int, Line], metric: str) -> dict[int, list[tuple[dict[str, float], MetricResult]]]:
    """Seed -> nats per token of each part and the score, K at evaluation growing."""
    found: dict[int, list[tuple[dict[str, float], MetricResult]]] = {}
    for step in sorted(by_steps):
        scores, parts = by_steps[step].scores(metric), parts_of(by_steps[step])
        for seed in scores.keys() & parts.keys():
            found.setdefault(seed, []).append((parts[seed], by_steps[step].records[seed][1].metrics[metric]))
    return found


def _place(line: Line) -> int:
    """Where it stands on the one axis."""
    return next(iter(line.setting.values()))


def _block_name(block: tuple[str, str]) -> str:
    return ", ".join(block).rstrip(", ")


def _title(metric: str) -> str:
    return metric.replace("_", " ")

"""The picture of a reproduced figure."""

from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure

from gradmem_bench.plotting.parts import doubling_axis, legend, looks_of, new_figure, score_axis, shaded
from gradmem_bench.reporting.reproductions import Line, heat_map, parts_of
from gradmem_bench.reproduction import Experiment


def picture(experiment: Experiment, table: Sequence[Line]) -> Figure | None:
    """What the rows of a figure look like; nothing where there is nothing to be drawn."""
    kinds = {"heat_map": _heat_map, "losses": _losses, "rows": _curves}
    kind = kinds.get(experiment.report)
    return kind(experiment.title, table, experiment.metric) if kind else None


def _curves(title: str, table: Sequence[Line], metric: str) -> Figure | None:
    """Score against the one axis that the rows have, every seed a point; the paper's hollow."""
    by_name: dict[str, list[Line]] = {}
    for line in table:
        if len(line.setting) == 1 and isinstance(_place(line), int):
            by_name.setdefault(line.name, []).append(line)
    shown = [line for own in by_name.values() for line in own]
    across = {key for line in shown for key in line.setting}
    if len(across) != 1 or not any(line.scores(metric) for line in shown):
        return None
    figure, axes = new_figure(title)
    drawn: list[float] = []
    published = False
    for index, ((name, own), look) in enumerate(zip(sorted(by_name.items()), looks_of(by_name).values(), strict=True)):
        # Beside one another, since some methods have the same score.
        side = 2 ** (0.05 * (index - (len(by_name) - 1) / 2))
        points = look | {"linestyle": "none"}
        for line in own:
            scores = list(line.scores(metric).values())
            axes.plot([_place(line) * side] * len(scores), scores, **points, markersize=4)
            drawn += scores
        means = [(_place(line) * side, fmean(scores)) for line in own if (scores := line.scores(metric).values())]
        if means:
            axes.plot(*zip(*means, strict=True), color=look["color"], linestyle=look["linestyle"])
            axes.plot([], [], **look, markersize=4, label=name)
        paper = [(_place(line) * side, line.paper.value) for line in own if line.paper]
        if paper:
            published = True
            axes.plot(*zip(*paper, strict=True), **points, fillstyle="none", markersize=8)
            drawn += [value for _, value in paper]
    if published:
        axes.plot([], [], "o", color="0.3", fillstyle="none", markersize=8, label="large, hollow: the paper's")
    doubling_axis(axes, {_place(line) for line in shown})
    axes.set_xlabel(f"{across.pop()}; a point is one seed, lines join the means")
    score_axis(axes, _title(metric), drawn)
    legend(figure)
    return figure


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
    axes.set_xlabel("K at evaluation; a cell is the mean over seeds")
    return figure


def _losses(title: str, table: Sequence[Line], metric: str) -> Figure | None:
    """Score against the reconstruction loss, keys and values in panels of their own."""
    if not any(parts_of(line) for line in table):
        return None
    blocks = heat_map(table)
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    looks = looks_of(map(_block_name, blocks))
    for axes, part in zip(figure.subplots(1, 2, sharey=True), ("keys", "values"), strict=True):
        drawn: list[float] = []
        for block, by_steps in blocks.items():
            points = []
            for step in sorted(by_steps):
                scores, parts = by_steps[step].scores(metric), parts_of(by_steps[step])
                points += [(parts[seed][part], scores[seed]) for seed in scores if seed in parts]
            if points:
                look = looks[_block_name(block)] | {"linestyle": "none"}
                axes.plot(*zip(*points, strict=True), **look, markersize=4, label=_block_name(block))
                drawn += [score for _, score in points]
        axes.set_xlabel(f"nats per token of the {part}")
        score_axis(axes, _title(metric) if part == "keys" else "", drawn)
        axes.spines[["top", "right"]].set_visible(False)
    legend(figure)
    return figure


def _place(line: Line) -> int:
    """Where it stands on the one axis."""
    return next(iter(line.setting.values()))


def _block_name(block: tuple[str, str]) -> str:
    return ", ".join(block).rstrip(", ")


def _title(metric: str) -> str:
    return metric.replace("_", " ")

"""The pictures of a reproduced figure, as PNG and SVG."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from gradmem_bench.reporting.reproductions import Line, heat_map, parts_of
from gradmem_bench.reproduction import Experiment

_MARKERS, _LINES = "os^DvPX*", ("-", "--", "-.", ":")


def draw(experiment: Experiment, table: Sequence[Line], stem: Path) -> list[Path]:
    """Draws what there is; returns the files, none where nothing is to be drawn."""
    kinds = {"heat_map": _heat_map, "losses": _losses, "rows": _curves}
    figure = kinds[experiment.report](table, experiment.metric) if experiment.report in kinds else None
    if figure is None:
        return []
    files = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in files:
        figure.savefig(file, dpi=150, bbox_inches="tight")
    return files


def _curves(table: Sequence[Line], metric: str) -> Figure | None:
    """Score against the one axis that the rows have, every seed a point; the paper's dashed."""
    by_name: dict[str, list[Line]] = {}
    for line in table:
        if len(line.setting) == 1 and isinstance(next(iter(line.setting.values())), int):
            by_name.setdefault(line.name, []).append(line)
    axes = {next(iter(line.setting)) for own in by_name.values() for line in own}
    if len(axes) != 1 or not any(line.scores(metric) for own in by_name.values() for line in own):
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    panel = figure.add_subplot()
    published = False
    for index, (name, own) in enumerate(by_name.items()):
        # Told apart by marker and line too: a picture is read in grey, and some lines lie on one another.
        look = {"color": f"C{index}", "marker": _MARKERS[index % len(_MARKERS)]}
        shift = 2 ** (0.05 * (index - (len(by_name) - 1) / 2))
        there = [line for line in own if line.scores(metric)]
        across = [next(iter(line.setting.values())) * shift for line in there]
        for place, line in zip(across, there, strict=True):
            scores = list(line.scores(metric).values())
            panel.plot([place] * len(scores), scores, **look, linestyle="none", markersize=4)
        means = [fmean(line.scores(metric).values()) for line in there]
        panel.plot(across, means, _LINES[index % len(_LINES)], color=look["color"])
        panel.plot([], [], _LINES[index % len(_LINES)], **look, markersize=4, label=name)
        paper = [(next(iter(line.setting.values())) * shift, line.paper.value) for line in own if line.paper]
        if paper:
            published = True
            panel.plot(*zip(*paper, strict=True), **look, linestyle="none", fillstyle="none", markersize=8)
    if published:
        panel.plot([], [], "o", color="0.3", fillstyle="none", markersize=8, label="large, hollow: the paper's")
    places = sorted({next(iter(line.setting.values())) for own in by_name.values() for line in own})
    panel.set_xscale("log", base=2)
    panel.set_xticks(places, [str(place) for place in places])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel(f"{axes.pop()}; a point is one seed, lines join the means")
    panel.set_ylabel(metric.replace("_", " "))
    panel.set_ylim(-0.02, 1.04)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, frameon=False, loc="outside right upper")
    return figure


def _heat_map(table: Sequence[Line], metric: str) -> Figure | None:
    """Means over seeds: one row a training, one column a K at evaluation."""
    blocks = heat_map(table)
    steps = sorted({step for by_steps in blocks.values() for step in by_steps})
    if not any(line.scores(metric) for line in table):
        return None
    values = [
        [
            fmean(scores.values()) if step in own and (scores := own[step].scores(metric)) else float("nan")
            for step in steps
        ]
        for own in blocks.values()
    ]
    figure = Figure(figsize=(1.5 + 0.6 * len(steps), 1 + 0.5 * len(blocks)))
    panel = figure.add_subplot()
    panel.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for row, own in enumerate(values):
        for column, value in enumerate(own):
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", color="w" if value < 0.6 else "k")
    panel.set_xticks(range(len(steps)), [str(step) for step in steps])
    panel.set_yticks(range(len(blocks)), [", ".join(block).rstrip(", ") for block in blocks])
    panel.set_xlabel("K at evaluation")
    return figure


def _losses(table: Sequence[Line], metric: str) -> Figure | None:
    """Score against the reconstruction loss, keys and values in panels of their own."""
    if not any(parts_of(line) for line in table):
        return None
    figure = Figure(figsize=(8, 3.5))
    for index, (panel, part) in enumerate(zip(figure.subplots(1, 2, sharey=True), ("keys", "values"), strict=True)):
        for (name, setting), by_steps in heat_map(table).items():
            points = []
            for step in sorted(by_steps):
                scores, parts = by_steps[step].scores(metric), parts_of(by_steps[step])
                points += [(parts[seed][part], scores[seed]) for seed in scores if seed in parts]
            if points:
                panel.plot(*zip(*points, strict=True), "o", markersize=4, label=f"{name}, {setting}".rstrip(", "))
        panel.set_xlabel(f"nats per token of the {part}")
        if index == 0:
            panel.set_ylabel(metric.replace("_", " "))
            panel.legend(fontsize=7)
    return figure

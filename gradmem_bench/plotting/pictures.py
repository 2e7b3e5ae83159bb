"""One function a picture: which records it takes, and what is drawn of them, intervals included."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from gradmem_bench.config import Budget, fingerprint, format_bytes
from gradmem_bench.reporting.comparison import Comparison, comparison
from gradmem_bench.reporting.profiles import format_count
from gradmem_bench.reporting.rows import Row
from gradmem_bench.results import MetricResult, RunRecord, metric_title, primary_metric, read_examples

DRAWN = {
    "bytes": "records with a score",
    "pairs": "records of one task and backbone with different numbers of pairs",
    "steps": "records of one method with different inner steps, at training or at evaluation",
    "flops": "records whose WRITE was measured (FLOPs)",
    "training": "folders of runs with their weights, which hold the history of training",
}
"""What each kind of picture needs, for a message."""

# Told apart by lightness and by shape too: a picture is read in grey.
_COLOURS = ("#12355b", "#d1495b", "#2a9d8f", "#edae49", "#7b4fa3", "#1a1a1a", "#8fb8de", "#9c6644")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 3)))

Pictures = Iterator[tuple[str, Figure]]


def draw(kind: str, records: dict[Path, RunRecord]) -> Pictures:
    """The pictures of a kind, each with the name of its file; none where the records do not have the numbers.

    Args:
        kind: a key of DRAWN.
        records: by the path of their `run.json`.
    """
    if kind in ("bytes", "flops"):
        folders = {record.run_id: path.parent for path, record in records.items()}
        # A front through the luckiest seed of each method would be one that no method keeps to.
        tables = comparison(
            records.values(), by="config", examples=lambda record: read_examples(folders[record.run_id])
        )
        if kind == "bytes":
            yield from _against(tables, kind, "state bytes of a context", _state_bytes, 4, format_bytes)
        else:
            yield from _against(tables, kind, "FLOPs of one WRITE", _write_flops, 10, format_count)
        return
    tables = comparison(records.values(), by="config")
    if kind == "pairs":
        yield from _pairs(records.values())
    elif kind == "steps":
        yield from _steps(tables)
    else:
        yield from _training(tables, {record.run_id: path.parent for path, record in records.items()})


# ----------------------------------------------------------------------------------------- the parts


def _figure(title: str, width: float = 6.4, height: float = 4.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _score_axis(axes: Axes, name: str, scores: Iterable[float]) -> None:
    # A task's own metric may be any number; all others are shares.
    if all(0 <= score <= 1 for score in scores):
        axes.set_ylim(-0.02, 1.04)
    axes.set_ylabel(name)
    axes.grid(axis="y", color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)


def _legend(axes: Axes) -> None:
    """Right of the axes; the picture is made as much larger as the names need."""
    figure = axes.get_figure()
    handles, labels = axes.get_legend_handles_labels()
    texts = [fill(label, 44) for label in labels]
    lines = "\n".join(texts).split("\n")
    longest = max(map(len, lines))
    figure.set_figwidth(figure.get_figwidth() + 0.07 * max(0, longest - 14))
    figure.set_figheight(max(figure.get_figheight(), 0.6 + 0.16 * len(lines)))
    figure.legend(handles, texts, fontsize=8, frameon=False, loc="outside right upper")


def _looks(names: Iterable[str]) -> dict[str, dict]:
    """Colour, marker and line of each name, by its place in the alphabet; no two of the first 64 are alike."""
    looks = {}
    for at, name in enumerate(sorted(set(names))):
        shape = (at + at // 8) % 8
        looks[name] = {"color": _COLOURS[at % 8], "marker": _MARKERS[shape], "linestyle": _LINES[shape]}
    return looks


def _errors(found: Sequence[MetricResult]) -> list[list[float]]:
    """What lies below and above each score, for `errorbar`; nothing where there is no interval."""
    return [
        [0.0 if one.low is None else one.value - one.low for one in found],
        [0.0 if one.high is None else one.high - one.value for one in found],
    ]


def _score(record: RunRecord, metric: str) -> float | None:
    return record.metrics[metric].value if metric in record.metrics else None


def _file(*parts: str) -> str:
    return "-".join("".join(letter if letter.isalnum() or letter in "._" else "_" for letter in part) for part in parts)


# ------------------------------------------------------------------------- score against bytes, FLOPs


def _state_bytes(row: Row) -> float | None:
    return row.size("state_bytes").mean


def _write_flops(row: Row) -> float | None:
    return row.flops("write")


def _against(
    tables: Sequence[Comparison],
    kind: str,
    axis: str,
    cost: Callable[[Row], float | None],
    base: int,
    text: Callable[[float], str],
) -> Pictures:
    """One picture a table: every row at its cost, and the Pareto front, the best score at each cost or less.

    Of several seeds the point is their mean, its interval is over seeds too, and each has a dot.
    """
    for number, table in enumerate(tables, start=1):
        rows = [row for row in table.rows if row.score is not None and cost(row) is not None]
        if not rows:
            continue
        figure, axes = _figure(table.title)
        looks = _looks(row.record.method.name for row in rows)
        place = _logarithmic(axes, [cost(row) for row in rows], base, text)
        for method, look in looks.items():
            own = [row for row in rows if row.record.method.name == method]
            xs, ys = [place(cost(row)) for row in own], [row.score for row in own]
            style = look | {"linestyle": "none", "markersize": 7, "markeredgecolor": "white", "capsize": 3, "zorder": 3}
            axes.errorbar(xs, ys, yerr=_errors([row.result for row in own]), label=method, **style)
            for x, row in zip(xs, own, strict=True):
                scores = [score for score in row.by_seed() if score is not None]
                if len(row.records) > 1:
                    axes.scatter([x] * len(scores), scores, s=9, color=look["color"], zorder=4)
        front = pareto_front([(cost(row), row.score) for row in rows])
        xs, ys = zip(*((place(x), y) for x, y in front), strict=True)
        axes.step(
            [*xs, axes.get_xlim()[1]], [*ys, ys[-1]], where="post", color="0.45", linewidth=1.2, linestyle=(0, (4, 3)),
            label="Pareto front", zorder=2,
        )  # fmt: skip
        axes.set_xlabel(axis)
        _score_axis(axes, table.title_of(table.ranked_by), [row.score for row in rows])
        _legend(axes)
        yield _file(kind, table.rows[0].record.task.name, str(number)), figure


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, score) that no other one beats at the same cost or less, the cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


def _logarithmic(
    axes: Axes, values: Sequence[float], base: int, text: Callable[[float], str]
) -> Callable[[float], float]:
    """Makes the x axis logarithmic; what is zero gets a place of its own left of all, which is returned for it."""
    positive = [value for value in values if value > 0] or [1.0]
    ticks = [1.0]
    while ticks[-1] < max(positive):
        ticks.append(ticks[-1] * base)
    while len(ticks) > 1 and ticks[1] <= min(positive):
        ticks.pop(0)
    every = -(-len(ticks) // 7)
    ticks = ticks[::every] if (len(ticks) - 1) % every == 0 else [*ticks[::every], ticks[-1] * base]
    zero = ticks[0] / base**every
    axes.set_xscale("log", base=base)
    has_zero = min(values) <= 0
    places = [zero, *ticks] if has_zero else ticks
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FixedFormatter(["0"] * has_zero + [text(tick) for tick in ticks]))
    axes.set_xlim(places[0] / base**0.3, places[-1] * base**0.3)
    return lambda value: value if value > 0 else zero


# ----------------------------------------------------------------------------------- score against N


def _pairs(records: Iterable[RunRecord]) -> Pictures:
    """One picture a task and backbone, one line a configuration of a method; of several seeds, through their mean."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        if "pairs" in record.task.settings:
            rest = {key: value for key, value in record.task.settings.items() if key not in ("pairs", "test_contexts")}
            key = fingerprint([record.task.name, record.task.version, record.backbone.weights_hash, rest])
            groups.setdefault(key, []).append(record)
    for number, group in enumerate(groups.values(), start=1):
        metric = primary_metric(group)
        group = [record for record in group if _score(record, metric) is not None]
        if len({record.task.settings["pairs"] for record in group}) < 2:
            continue
        figure, axes = _figure(f"{group[0].task.name} · {group[0].backbone.name}")
        lines: dict[str, list[RunRecord]] = {}
        for record in group:
            lines.setdefault(_configuration(record, group), []).append(record)
        for (label, own), look in zip(sorted(lines.items()), _looks(lines).values(), strict=True):
            own.sort(key=lambda record: record.task.settings["pairs"])
            xs = [record.task.settings["pairs"] for record in own]
            style = {"color": look["color"], "marker": look["marker"], "linestyle": "none", "capsize": 3}
            scores = [_score(record, metric) for record in own]
            axes.errorbar(xs, scores, yerr=_errors([record.metrics[metric] for record in own]), label=label, **style)
            means = {x: fmean(_score(one, metric) for one in own if one.task.settings["pairs"] == x) for x in xs}
            axes.plot(list(means), list(means.values()), color=look["color"], linestyle=look["linestyle"])
        ticks = sorted({record.task.settings["pairs"] for record in group})
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FixedFormatter([str(tick) for tick in ticks]))
        axes.set_xlabel("pairs in a context")
        _score_axis(axes, metric_title(metric, group[0].task), [_score(record, metric) for record in group])
        _legend(axes)
        yield _file("pairs", group[0].task.name, str(number)), figure


def _configuration(record: RunRecord, group: Sequence[RunRecord]) -> str:
    """The method, with as few of the parameters and the budget as tell it from others of it in the group."""
    same = [other for other in group if other.method.name == record.method.name]
    known = [set(other.method.parameters) for other in same]
    # A parameter that some do not have came with a later version, and says least.
    names = sorted(set.union(*known), key=lambda name: (not all(name in one for one in known), name))
    told: list[str] = []
    apart = 1
    for name in ["", *names]:
        found = len({tuple(_setting(other, one) for one in [*told, name]) for other in same})
        if found > apart:
            told.append(name)
            apart = found
    text = ", ".join(_setting(record, name) for name in sorted(told, key=lambda name: (not name, name)))
    return f"{record.method.name} ({text})" if text else record.method.name


def _setting(record: RunRecord, name: str) -> str:
    """A parameter with its value; the budget, under no name."""
    if not name:
        return "no budget" if record.budget in (None, Budget()) else f"at most {record.budget}"
    return f"{name.replace('_', ' ')} {record.method.parameters.get(name)}"


# ------------------------------------------------------------------------------------- K against K


def _steps(tables: Sequence[Comparison]) -> Pictures:
    """One picture a table and method: the mean over seeds, and the interval or, of several seeds, the range."""
    for number, table in enumerate(tables, start=1):
        by_method: dict[str, dict[tuple[int, int], list[RunRecord]]] = {}
        for record in (
            row.record for row in table.rows if row.score is not None and row.record.method.role == "method"
        ):
            trained = record.method.parameters.get("inner_steps")
            if trained is not None:
                evaluated = record.method.parameters.get("evaluation_inner_steps")
                evaluated = trained if evaluated is None else evaluated
                cells = by_method.setdefault(record.method.name, {})
                cells.setdefault((trained, evaluated), []).append(record)
        for method, cells in by_method.items():
            if len(cells) > 1:
                yield (
                    _file("steps", table.rows[0].record.task.name, method, str(number)),
                    _heat_map(f"{table.title} · {method}", cells, table),
                )


def _heat_map(title: str, cells: dict[tuple[int, int], list[RunRecord]], table: Comparison) -> Figure:
    metric = table.ranked_by
    trained, evaluated = (sorted({key[side] for key in cells}) for side in (0, 1))
    figure, axes = _figure(title, 1.6 + 1.15 * len(evaluated) + 1.0, 1.3 + 0.75 * len(trained))
    means = {key: fmean(_score(record, metric) for record in own) for key, own in cells.items()}
    grid = [[means.get((row, column), float("nan")) for column in evaluated] for row in trained]
    picture = axes.imshow(grid, cmap="Greys", vmin=0, vmax=max(1.0, *means.values()), aspect="auto", origin="lower")
    for (row, column), own in cells.items():
        scores = [_score(record, metric) for record in own]
        found = own[0].metrics[metric]
        if len(own) > 1:
            below = f"{len(own)} runs, {min(scores):.2f}–{max(scores):.2f}"
        else:
            below = "no interval" if found.low is None else f"[{found.low:.3f}, {found.high:.3f}]"
        mean = means[row, column]
        colour = "white" if mean >= picture.norm.vmax / 2 else "black"
        axes.text(
            evaluated.index(column), trained.index(row), f"{mean:.3f}\n{below}",
            ha="center", va="center", color=colour, fontsize=7.5,
        )  # fmt: skip
    axes.set_xticks(range(len(evaluated)), [str(k) for k in evaluated])
    axes.set_yticks(range(len(trained)), [str(k) for k in trained])
    axes.set_xlabel("K at evaluation")
    axes.set_ylabel("K at training")
    figure.colorbar(picture, ax=axes, label=table.title_of(metric))
    return figure


# ------------------------------------------------------------------------------------------ training


def _training(tables: Sequence[Comparison], folders: dict[str, Path]) -> Pictures:
    """One picture a table: the validation score at each validation; hollow where it was on an easier task."""
    from gradmem_bench.checkpoints import METHOD_FILE, read_about
    from gradmem_bench.statistics import wilson

    for number, table in enumerate(tables, start=1):
        curves = {}
        for row in table.rows:
            path = folders[row.record.run_id] / METHOD_FILE
            history = read_about(path).get("history") if path.exists() else None
            if history:
                curves[row.label] = history
        if not curves:
            continue
        figure, axes = _figure(table.title)
        for (label, history), look in zip(sorted(curves.items()), _looks(curves).values(), strict=True):
            steps, scores = [one["step"] for one in history], [one["score"] for one in history]
            last = max(one["stage"] for one in history)
            faces = [look["color"] if one["stage"] == last else "white" for one in history]
            axes.plot(steps, scores, markersize=4.5, label=label, **look)
            axes.scatter(steps, scores, s=22, marker=look["marker"], c=faces, edgecolors=look["color"], zorder=3)
            if all("contexts" in one for one in history):
                # As wide as if the queries of a context were all right or all wrong together.
                bounds = [wilson(round(one["score"] * one["contexts"]), one["contexts"]) for one in history]
                lows, highs = zip(*bounds, strict=True)
                axes.fill_between(steps, lows, highs, color=look["color"], alpha=0.12, linewidth=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("optimiser steps (hollow: an easier task of the curriculum)")
        _score_axis(axes, "teacher-forced exact match, validation", ())
        _legend(axes)
        yield _file("training", table.rows[0].record.task.name, str(number)), figure

"""Score against what a state costs, in bytes or in the FLOPs of its WRITE, with the Pareto front."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import exp, log

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from gradmem_bench.plotting.parts import (
    METHOD,
    MOST,
    REFERENCES,
    SIDE,
    Pictures,
    caption,
    entries,
    error_bars,
    fitting,
    legend,
    looks_of,
    new_figure,
    points_told,
    score_axis,
    stems,
)
from gradmem_bench.plotting.recipes import Known, as_trained, inner_steps, labels, training_recipe
from gradmem_bench.reporting.comparison import Comparison
from gradmem_bench.reporting.rows import Row

Cost = Callable[[Row], float | None]


def state_bytes(row: Row) -> float | None:
    return row.size("state_bytes").mean


def write_flops(row: Row) -> float | None:
    return row.flops("write")


def against(
    tables: Sequence[Comparison],
    known: Known,
    kind: str,
    axis: str,
    cost: Cost,
    base: int,
    text: Callable[[float], str],
) -> Pictures:
    """One picture a table: every row at its cost, and the Pareto front, the best score at each cost or less.

    Of several seeds the point is their mean, its interval is over seeds too, and each has a dot. Points of one training
    that was evaluated at several K have their K beside them.
    """
    for stem, table in zip(stems(kind, [table.title for table in tables]), tables, strict=True):
        rows = [row for row in table.rows if row.score is not None and cost(row) is not None]
        if not rows:
            continue
        series, left_out = _series(rows, cost, known)
        rows = [row for own in series.values() for row in own]
        figure, axes = new_figure(table.title)
        looks = looks_of(label for label, own in series.items() if own[0].role == "method")
        costs = [cost(row) for row in rows]
        place = _logarithmic(axes, costs, base, text)
        ordered = sorted(rows, key=lambda row: (place(cost(row)), -row.score))
        sides = _side_by_side([place(cost(row)) for row in ordered], axes)
        at = {id(row): x for row, x in zip(ordered, sides, strict=True)}
        for label, own in sorted(series.items(), key=lambda one: (one[1][0].role != "method", one[0])):
            look = looks[label] | METHOD if label in looks else REFERENCES[own[0].role]
            xs, scores = [at[id(row)] for row in own], [row.score for row in own]
            bars = error_bars(scores, [(row.result.low, row.result.high) for row in own])
            style = look | {"linestyle": "none", "capsize": 3, "zorder": 3}
            axes.errorbar(xs, scores, yerr=bars, label=label, **style)
            for x, row in zip(xs, own, strict=True):
                scores = [score for score in row.by_seed() if score is not None]
                if len(row.records) > 1:
                    axes.scatter([x] * len(scores), scores, s=9, color=look["color"], zorder=4)
        # Through the marks that make it, where they were moved to.
        moved = {(cost(row), row.score): at[id(row)] for row in reversed(ordered)}
        xs, ys = zip(*((moved[point], point[1]) for point in pareto_front(moved)), strict=True)
        axes.step(
            [*xs, axes.get_xlim()[1]], [*ys, ys[-1]], where="post", color="0.45", linewidth=1.2, linestyle=(0, (4, 3)),
            label="Pareto front", zorder=2,
        )  # fmt: skip
        axes.set_xlabel(axis)
        score_axis(axes, table.title_of(table.ranked_by), [row.score for row in rows])
        steps = [
            _steps_told(axes, own, [at[id(row)] for row in own], looks[label]["color"])
            for label, own in series.items()
            if label in looks
        ]
        legend(figure)
        records = [record for row in rows for record in row.records]
        marks = _marks(rows, costs, sides != [place(cost(row)) for row in ordered], any(steps))
        caption(figure, records, [*marks, *left_out])
        yield stem, figure


def _series(rows: Sequence[Row], cost: Cost, known: Known) -> tuple[dict[str, list[Row]], list[str]]:
    """The rows by their entry in the legend, at most MOST of methods where that can be, and what was done for it."""
    chosen, names, said = fitting(
        rows, lambda some: labels([row.record for row in some], known, places=[cost(row) for row in some])
    )
    if entries(chosen, names) > MOST:
        dtypes: dict[str, set[str]] = {}
        for row in chosen:
            dtypes.setdefault(row.record.method.name, set()).add(row.record.footprint.state_dtype)
        names = [
            f"{name} ({row.record.footprint.state_dtype})" if len(dtypes[name]) > 1 else name
            for row, name in ((row, row.record.method.name) for row in chosen)
        ]
        said.append(f"More than {MOST} recipes: gradmem-bench compare names each.")
    series: dict[str, list[Row]] = {}
    for row, name in zip(chosen, names, strict=True):
        series.setdefault(name, []).append(row)
    several = []
    for name, own in series.items():
        # Under another bound it is another recipe of course.
        recipes = {(row.bound, training_recipe(row.record, known)) for row in own}
        if len(recipes) > len({bound for bound, _ in recipes}):
            several.append(name)
    if several:
        said.append(f"Points of one look are not all of one recipe: {', '.join(several)}.")
    return series, said


def _steps_told(axes: Axes, own: Sequence[Row], xs: Sequence[float], colour: str) -> bool:
    """Writes K at evaluation at each bar of a series that has several for one K at training, upright; if it did."""
    steps = [inner_steps(row.record) for row in own]
    if None in steps or len(set(steps)) == 1 or all(as_trained(row.record) for row in own):
        return False
    bottom, top = axes.get_ylim()
    for row, x, (_, evaluated) in zip(own, xs, steps, strict=True):
        low = row.score if row.result.low is None else row.result.low
        high = row.score if row.result.high is None else row.result.high
        # Where below the bar there is no room for it, above.
        below = low - bottom > 0.15 * (top - bottom)
        axes.annotate(
            f"K={evaluated}", (x, low if below else high), xytext=(0, -4 if below else 4), textcoords="offset points",
            rotation=90, ha="center", va="top" if below else "bottom", fontsize=6, color=colour,
            zorder=5, path_effects=[withStroke(linewidth=1.5, foreground="white")],
        )  # fmt: skip
    return True


def _marks(rows: Sequence[Row], costs: Sequence[float], moved: bool, steps: bool) -> Iterator[str]:
    yield points_told(len(row.records) for row in rows)
    if steps:
        yield "K: inner steps at evaluation."
    if moved:
        yield "What costs about the same stands side by side on a grey band: the cheaper, then the better, on the left."
    if min(costs) <= 0 < max(costs):
        yield "0 has a place of its own, left of the dotted line."


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
    axes.set_xlim(places[0] / base**0.5, places[-1] * base**0.5)
    if has_zero and max(values) > 0:
        axes.axvline((zero * ticks[0]) ** 0.5, color="0.6", linewidth=0.8, linestyle=":", zorder=1)
    return lambda value: value if value > 0 else zero


def _side_by_side(places: Sequence[float], axes: Axes) -> list[float]:
    """The places, which ascend, with those moved apart that would stand on one another."""
    low, high = map(log, axes.get_xlim())
    step = SIDE * (high - low)
    heaps: list[list[float]] = []
    for place in places:
        if heaps and log(place) - log(heaps[-1][-1]) < step / 2:
            heaps[-1].append(place)
        else:
            heaps.append([place])
    centres = [sum(map(log, heap)) / len(heap) for heap in heaps]
    found = []
    for index, (heap, centre) in enumerate(zip(heaps, centres, strict=True)):
        gaps = [abs(other - centre) for other in centres[max(0, index - 1) : index] + centres[index + 1 : index + 2]]
        room = 0.8 * min([*gaps, 2 * (centre - low), 2 * (high - centre)])
        width = min(step, room / len(heap))
        for side, place in enumerate(heap):
            moved = centre + (side - (len(heap) - 1) / 2) * width
            found.append(place if len(heap) == 1 else exp(moved))
        if len(heap) > 1:
            half = len(heap) * width / 2
            axes.axvspan(exp(centre - half), exp(centre + half), color="0.95", linewidth=0, zorder=0)
    return found

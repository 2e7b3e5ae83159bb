"""What every picture has: axes, looks that are told apart in grey, a legend beside it and a caption below."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import log2
from pathlib import Path
from textwrap import fill

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from gradmem_bench.config import Budget
from gradmem_bench.plotting.recipes import as_trained
from gradmem_bench.reporting.rows import Row
from gradmem_bench.results import RunRecord

Pictures = Iterator[tuple[str, Figure]]
"""Each with the name of its file."""

MOST = 8
"""Entries of a legend that are told apart by colour alone; what has more is split or drawn with less."""

SIDE = 0.02
"""From one point to the next that has the same place across, as a share of the axis."""

REFERENCES = {
    "ceiling": {"color": "0.35", "marker": "_", "linestyle": "-", "markeredgewidth": 2, "markersize": 11},
    "floor": {"color": "0.35", "marker": "x", "linestyle": ":", "markeredgewidth": 2, "markersize": 7},
}
"""Floor and ceiling take none of the methods' colours."""
METHOD = {"markersize": 7, "markeredgecolor": "white"}

# Told apart by lightness and by shape too: a picture is read in grey.
_COLOURS = ("#12355b", "#d1495b", "#2a9d8f", "#edae49", "#7b4fa3", "#1a1a1a", "#8fb8de", "#9c6644")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 3)))


def new_figure(title: str, width: float = 6.4, height: float = 4.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def score_axis(axes: Axes, name: str, scores: Iterable[float]) -> None:
    # A task's own metric may be any number; all others are shares.
    if all(0 <= score <= 1 for score in scores):
        axes.set_ylim(-0.02, 1.04)
    axes.set_ylabel(name)
    axes.grid(axis="y", color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)


def doubling_axis(axes: Axes, places: Iterable[float]) -> None:
    """A logarithmic axis across, to the base 2, with a tick at each of the places and nowhere else."""
    ticks = sorted(places)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FixedFormatter([str(tick) for tick in ticks]))


def side_by_side(axes: Axes, places: Iterable[float], count: int) -> list[float]:
    """A doubling axis with a grey band around each place, and what a place is times for each of so many series."""
    doubling_axis(axes, places)
    ticks = [tick for tick in axes.get_xticks() if tick > 0] or [1]
    gap = min((log2(right / left) for left, right in pairwise(ticks)), default=1.0)
    axes.set_xlim(ticks[0] / 2 ** (gap / 2), ticks[-1] * 2 ** (gap / 2))
    step = min(SIDE * (log2(ticks[-1] / ticks[0]) + gap), 0.8 * gap / count)
    if count > 1:
        for tick in ticks:
            half = 2 ** (count * step / 2)
            axes.axvspan(tick / half, tick * half, color="0.95", linewidth=0, zorder=0)
    return [2 ** (step * (at - (count - 1) / 2)) for at in range(count)]


def shaded(axes: Axes, values: Sequence[Sequence[float]], texts: Sequence[Sequence[str]], most: float) -> AxesImage:
    """Cells that are the darker the higher their value is, 0 to `most`, each with its text; NaN is hatched."""
    picture = axes.imshow(values, cmap="Greys", vmin=0, vmax=most, aspect="auto", origin="lower")
    for row, (own, told) in enumerate(zip(values, texts, strict=True)):
        for column, (value, text) in enumerate(zip(own, told, strict=True)):
            if value == value:
                colour = "white" if value >= 0.6 * most else "black"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7.5)
            else:
                corner = column - 0.5, row - 0.5
                axes.add_patch(Rectangle(corner, 1, 1, facecolor="white", edgecolor="0.75", hatch="///", linewidth=0))
    return picture


def legend(figure: Figure) -> None:
    """Right of the axes; the picture is made as much larger as the names need."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    texts = [folded(name) for name in names]
    lines = "\n".join(texts).split("\n")
    figure.set_figwidth(figure.get_figwidth() + 0.07 * max(0, max(map(len, lines)) - 14))
    figure.set_figheight(max(figure.get_figheight(), 0.6 + 0.16 * len(lines)))
    # So long that a dashed line is seen to be one.
    figure.legend(handles, texts, fontsize=8, frameon=False, loc="outside right upper", handlelength=3.4)


def folded(name: str) -> str:
    """A name in lines of 44 letters at most; a setting and its value stay on one."""
    space = "\N{NO-BREAK SPACE}"
    whole = name.replace(" ", space).replace(f",{space}", ", ").replace(f"{space}(", " (")
    return fill(whole, 44).replace(space, " ")


def caption(figure: Figure, records: Sequence[RunRecord], sentences: Iterable[str]) -> None:
    """Below the axes and the legend: what was asked, of how much, and what the marks are. To be called last.

    Args:
        records: what was asked and of how much is theirs; nothing is said of it where there are none.
    """
    width = int(figure.get_figwidth() / 0.058)
    text = "\n".join(fill(line, width) for line in (_what(records) if records else "", " ".join(sentences)) if line)
    figure.set_figheight(figure.get_figheight() + 0.2 + 0.13 * (text.count("\n") + 1))
    figure.supxlabel(text, x=0.012, ha="left", fontsize=7, color="0.25", linespacing=1.35)


def _what(records: Sequence[RunRecord]) -> str:
    task = records[0].task
    limits = sorted({record.task.limit or 0 for record in records})
    limit = f", limit {' or '.join(f'{one:,}' if one else 'none' for one in limits)}" if any(limits) else ""
    bounds = {record.budget for record in records if record.method.role == "method" and record.budget is not None}
    bounds = {bound.bound for bound in bounds} - {Budget()}
    sizes = sorted(bounds, key=lambda bound: (bound.bytes or 0, bound.positions or 0))
    bound = f"states of at most {' or '.join(map(str, sizes))}" if sizes else "no bound on the state"
    backbones = dict.fromkeys(record.backbone.name for record in records if not record.method.own_backbone)
    names = ", ".join(backbones) or records[0].backbone.name
    queries = _span(record.task.queries for record in records)
    contexts = _span(record.task.contexts for record in records)
    return (
        f"{task.name} version {task.version}, {task.split} split: n = {queries} queries on {contexts} contexts{limit}; "
        f"backbone {names}; {bound}."
    )


def _span(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def looks_of(names: Iterable[str]) -> dict[str, dict]:
    """Colour, marker and line of each name, by its place in the alphabet; no two of the first 64 are alike."""
    looks = {}
    for at, name in enumerate(sorted(set(names))):
        shape = (at + at // MOST) % MOST
        looks[name] = {"color": _COLOURS[at % MOST], "marker": _MARKERS[shape], "linestyle": _LINES[shape]}
    return looks


def points_told(seeds: Iterable[int]) -> str:
    """What points, dots and bars are.

    Args:
        seeds: of each point, how many seeds it is the mean of.
    """
    counts = sorted(set(seeds))
    if counts[-1] == 1:
        return "Points: one seed each; bars: 95 % intervals over contexts."
    return (
        f"Points: means over seeds ({' or '.join(map(str, counts))}); small dots: single seeds; bars: 95 % intervals "
        "over contexts and, of several seeds, over seeds too."
    )


def fitting(rows: Sequence[Row], named: Callable[[Sequence[Row]], list[str]]) -> tuple[list[Row], list[str], list[str]]:
    """Without the rows evaluated at another K, where with them more than MOST methods had names of their own.

    Args:
        named: the name of each row in the legend.
    Returns:
        The rows, their names, and the sentence that says what was left out.
    """
    names = named(rows)
    trained = [row for row in rows if as_trained(row.record)]
    if entries(rows, names) <= MOST or not trained or len(trained) == len(rows):
        return list(rows), names, []
    count = len(rows) - len(trained)
    told = (
        f"Left out, since a legend of more than {MOST} methods is not read: {count} row{'s' * (count > 1)} evaluated "
        "at another K than in training."
    )
    return trained, named(trained), [told]


def entries(rows: Sequence[Row], names: Sequence[str]) -> int:
    """How many names the methods have among them, beside floor and ceiling."""
    return len({name for row, name in zip(rows, names, strict=True) if row.role == "method"})


def each_method(methods: Mapping[str, str]) -> list[tuple[list[str], tuple[str, ...]]]:
    """What goes into which picture: all into one, or, of more than MOST names, a method's into one or several.

    Args:
        methods: name in the legend -> method.
    Returns:
        Of each picture the names in it, and what it is called beside the table.
    """
    order = sorted(methods)
    if len(order) <= MOST:
        return [(order, ())]
    pictures = []
    for method in sorted(set(methods.values())):
        mine = [name for name in order if methods[name] == method]
        count = -(-len(mine) // MOST)
        size = -(-len(mine) // count)
        for at in range(count):
            part = (str(at + 1),) if count > 1 else ()
            pictures.append((mine[at * size : (at + 1) * size], (method, *part)))
    return pictures


def error_bars(values: Sequence[float], intervals: Sequence[tuple[float | None, float | None]]) -> list[list[float]]:
    """What lies below and above each score, for `errorbar`; nothing where there is no interval."""
    found = list(zip(values, intervals, strict=True))
    return [
        [0.0 if low is None else max(0.0, value - low) for value, (low, _) in found],
        [0.0 if high is None else max(0.0, high - value) for value, (_, high) in found],
    ]


def files_of(stem: Path) -> list[Path]:
    """Where a picture is saved."""
    return [stem.with_name(f"{stem.name}{suffix}") for suffix in (".png", ".svg")]


def save(figure: Figure, stem: Path) -> list[Path]:
    """The picture as PNG and SVG; the same records make the same bytes."""
    files = files_of(stem)
    with rc_context({"svg.hashsalt": "gradmem-bench"}):
        for file in files:
            figure.savefig(file, dpi=160, metadata={"Date": None} if file.suffix == ".svg" else {})
    return files


def file_name(*parts: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._=-" else "_" for letter in "-".join(parts))


def stems(kind: str, titles: Sequence[str]) -> list[str]:
    """What the files of each table begin with: the kind, and of the table's title the task and what tells it apart.

    A backbone is told where several have that task; a number, where all this is the same.
    """
    told = [title.split(" · ", 2) for title in titles]
    names = []
    for task, backbone, *rest in told:
        alone = len({other for one, other, *_ in told if one == task}) == 1
        settings = ["=".join(setting.rsplit(" ", 1)) for text in rest for setting in text.split(", ")]
        names.append(file_name(kind, task, *([] if alone else [backbone]), *settings))
    return [
        name if names.count(name) == 1 else f"{name}-{names[: at + 1].count(name)}" for at, name in enumerate(names)
    ]

"""What every picture has: axes, looks that are told apart in grey, a legend beside it and a caption below."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from textwrap import fill

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from gradmem_bench.config import Budget
from gradmem_bench.results import MetricResult, RunRecord

Pictures = Iterator[tuple[str, Figure]]
"""Each with the name of its file."""

MOST = 8
"""Entries of a legend that are told apart by colour alone; what has more is split or drawn with less."""

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


def doubling_axis(axes: Axes, places: Iterable[int]) -> None:
    """A logarithmic axis across, to the base 2, with a tick at each of the places and nowhere else."""
    ticks = sorted(places)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FixedFormatter([str(tick) for tick in ticks]))


def shaded(axes: Axes, values: Sequence[Sequence[float]], texts: Sequence[Sequence[str]], most: float) -> AxesImage:
    """Cells that are the darker the higher their value is, 0 to `most`, each with its text; NaN stays empty."""
    picture = axes.imshow(values, cmap="Greys", vmin=0, vmax=most, aspect="auto", origin="lower")
    for row, (own, told) in enumerate(zip(values, texts, strict=True)):
        for column, (value, text) in enumerate(zip(own, told, strict=True)):
            if value == value:
                colour = "white" if value >= most / 2 else "black"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7.5)
    return picture


def legend(figure: Figure) -> None:
    """Right of the axes; the picture is made as much larger as the names need."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    texts = [fill(name, 44) for name in names]
    lines = "\n".join(texts).split("\n")
    figure.set_figwidth(figure.get_figwidth() + 0.07 * max(0, max(map(len, lines)) - 14))
    figure.set_figheight(max(figure.get_figheight(), 0.6 + 0.16 * len(lines)))
    figure.legend(handles, texts, fontsize=8, frameon=False, loc="outside right upper")


def caption(figure: Figure, records: Sequence[RunRecord], sentences: Iterable[str]) -> None:
    """Below the axes and the legend: what was asked, of how much, and what the marks are. To be called last."""
    width = int(figure.get_figwidth() / 0.058)
    text = "\n".join(fill(line, width) for line in (_what(records), " ".join(sentences)) if line)
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


def error_bars(found: Sequence[MetricResult]) -> list[list[float]]:
    """What lies below and above each score, for `errorbar`; nothing where there is no interval."""
    return [
        [0.0 if one.low is None else one.value - one.low for one in found],
        [0.0 if one.high is None else one.high - one.value for one in found],
    ]


def save(figure: Figure, stem: Path) -> list[Path]:
    """The picture as PNG and SVG; the same records make the same bytes."""
    files = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".png", ".svg")]
    with rc_context({"svg.hashsalt": "gradmem-bench"}):
        for file in files:
            figure.savefig(file, dpi=160, metadata={"Date": None} if file.suffix == ".svg" else {})
    return files


def file_name(*parts: str | int) -> str:
    texts = map(str, parts)
    return "-".join("".join(letter if letter.isalnum() or letter in "._" else "_" for letter in text) for text in texts)

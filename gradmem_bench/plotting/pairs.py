"""Score against the number of pairs: one picture a task and backbone, one line a recipe."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from gradmem_bench.config import fingerprint
from gradmem_bench.plotting.parts import (
    METHOD,
    MOST,
    REFERENCES,
    Pictures,
    caption,
    each_method,
    entries,
    error_bars,
    file_name,
    fitting,
    legend,
    looks_of,
    new_figure,
    points_told,
    score_axis,
    side_by_side,
    stems,
)
from gradmem_bench.plotting.recipes import Known, labels
from gradmem_bench.reporting.caption import shared_backbone
from gradmem_bench.reporting.comparison import Comparison
from gradmem_bench.reporting.labels import setting_text
from gradmem_bench.reporting.references import RULE, reference
from gradmem_bench.reporting.rows import Row
from gradmem_bench.results import metric_title


def pairs(tables: Sequence[Comparison], known: Known) -> Pictures:
    """One picture a task and backbone, one line a recipe of a method, floor and ceiling in grey.

    Of several seeds the point is their mean, its interval is over seeds too, and each has a dot. What more than MOST
    recipes leave out, the caption says; of more than that still, each method has pictures of its own.
    """
    groups: dict[str, list[Row]] = {}
    for table in tables:
        rows = [row for row in table.rows if row.score is not None and "pairs" in row.record.task.settings]
        if rows:
            key = fingerprint([table.ranked_by, _told(rows)])
            groups.setdefault(key, []).extend(rows)
    chosen = [rows for rows in groups.values() if len({_pairs(row) for row in rows}) > 1]
    titles = _titles(chosen)
    for rows, title, stem in zip(chosen, titles, stems("pairs", titles), strict=True):
        kept, names, said = _reduced([row for row in rows if row.role == "method"], known)
        lines: dict[str, list[Row]] = {}
        for row, name in zip(kept, names, strict=True):
            lines.setdefault(name, []).append(row)
        references = _references(rows)
        if sum(map(len, references.values())) < sum(row.role != "method" for row in rows):
            said.append(f"Of several {' or '.join(references)} with one number of pairs: {RULE}.")
        split = each_method({name: own[0].record.method.name for name, own in lines.items()})
        if len(split) > 1:
            said.append(f"More than {MOST} recipes: each method has pictures of its own.")
        for own, parts in split:
            shown = {name: lines[name] for name in own} | references
            yield file_name(stem, *parts), _picture(" · ".join((title, *parts)), shown, said)


def _reduced(rows: Sequence[Row], known: Known) -> tuple[list[Row], list[str], list[str]]:
    """The methods' rows with a place in the picture, their names in the legend, and what was left out."""
    # A task of more pairs may well be trained for longer: one line, unless it was also trained otherwise.
    chosen, names, said = fitting(
        rows, lambda some: labels([row.record for row in some], known, training_places=[_pairs(row) for row in some])
    )
    if entries(chosen, names) > MOST:
        places: dict[str, set[int]] = {}
        for row, name in zip(chosen, names, strict=True):
            places.setdefault(name, set()).add(_pairs(row))
        lines = [at for at, name in enumerate(names) if len(places[name]) > 1]
        once = sum(len(own) == 1 for own in places.values())
        if once and lines:
            said.append(f"Left out too: {once} recipe{'s' * (once > 1)} run with one number of pairs only.")
            chosen, names = [chosen[at] for at in lines], [names[at] for at in lines]
    return chosen, names, said


def _references(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """By its method, the floor and the ceiling that counts at each number of pairs."""
    found: dict[str, dict[int, list[Row]]] = {}
    for row in sorted(rows, key=lambda row: row.record.method.name):
        if row.role != "method":
            found.setdefault(row.record.method.name, {}).setdefault(_pairs(row), []).append(row)
    return {name: [reference(own, own[0].role) for own in places.values()] for name, places in found.items()}


def _picture(title: str, lines: dict[str, list[Row]], said: Sequence[str]) -> Figure:
    rows = [row for own in lines.values() for row in own]
    figure, axes = new_figure(title)
    looks = looks_of(name for name, own in lines.items() if own[0].role == "method")
    sides = side_by_side(axes, {_pairs(row) for row in rows}, len(lines))
    for side, (name, own) in zip(sides, lines.items(), strict=True):
        own = sorted(own, key=_pairs)
        look = looks[name] | METHOD if name in looks else REFERENCES[own[0].role]
        xs, scores = [_pairs(row) * side for row in own], [row.score for row in own]
        bars = error_bars(scores, [(row.result.low, row.result.high) for row in own])
        axes.errorbar(xs, scores, yerr=bars, label=name, **look, linewidth=1.2, capsize=3, zorder=3)
        for x, row in zip(xs, own, strict=True):
            seeds = [score for score in row.by_seed() if score is not None]
            if len(row.records) > 1:
                axes.scatter([x] * len(seeds), seeds, s=9, color=look["color"], zorder=4)
    axes.set_xlabel("pairs in a context")
    score_axis(axes, metric_title(rows[0].ranked_by, rows[0].record.task), [row.score for row in rows])
    legend(figure)
    marks = [points_told(len(row.records) for row in rows), "Lines join the points of a recipe."]
    if len(lines) > 1:
        marks.append("Side by side on a grey band: one number of pairs.")
    caption(figure, [record for row in rows for record in row.records], [*marks, *said])
    return figure


def _told(rows: Sequence[Row]) -> dict[str, Any]:
    """What the rows of a picture have in common, by the name a person knows it by."""
    backbone, task = shared_backbone(row.record for row in rows), rows[0].record.task
    rest = {name: value for name, value in task.settings.items() if name not in ("pairs", "test_contexts")}
    first = {"task": task.name, "backbone": backbone.name, "task version": task.version}
    return first | rest | {"backbone weights": backbone.weights_hash[:12]}


def _titles(groups: Sequence[Sequence[Row]]) -> list[str]:
    """Task and backbone of each group, and what of `_told` sets it apart from others with the same."""
    told = [_told(rows) for rows in groups]
    titles = []
    for mine in told:
        same = [one for one in told if (one["task"], one["backbone"]) == (mine["task"], mine["backbone"])]
        texts = [
            f"{name} {setting_text(value)}"
            for name, value in mine.items()
            if any(setting_text(one.get(name)) != setting_text(value) for one in same)
        ]
        titles.append(" · ".join([mine["task"], mine["backbone"], *([", ".join(texts)] if texts else [])]))
    return titles


def _pairs(row: Row) -> int:
    return row.record.task.settings["pairs"]

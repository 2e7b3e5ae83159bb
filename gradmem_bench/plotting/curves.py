"""How training went: the validation score at each validation, one look a recipe, one line a seed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradmem_bench.plotting.parts import (
    Pictures,
    caption,
    each_method,
    file_name,
    legend,
    looks_of,
    new_figure,
    score_axis,
    stems,
)
from gradmem_bench.plotting.recipes import Known, labels, training_recipe
from gradmem_bench.reporting.comparison import Comparison
from gradmem_bench.results import RunRecord

Curve = tuple[RunRecord, list[dict[str, Any]]]
"""A training's record, and what was found at each of its validations."""


def training(tables: Sequence[Comparison], known: Known, folders: dict[str, Path]) -> Pictures:
    """The validation score at each validation; hollow where it was on an easier task.

    One picture a table; of more than MOST recipes one a method, and of more than MOST of a method several.
    """
    from gradmem_bench.checkpoints import METHOD_FILE, read_about

    for stem, table in zip(stems("training", [table.title for table in tables]), tables, strict=True):
        curves: dict[tuple[str, int], Curve] = {}
        for record in (record for row in table.rows for record in row.records):
            path = folders[record.run_id] / METHOD_FILE
            history = read_about(path).get("history") if path.exists() and record.training is not None else None
            # Evaluations of one training, at several K, have its curve in common.
            key = training_recipe(record, known), record.training.seed if record.training is not None else 0
            if history and key not in curves:
                curves[key] = (record, history)
        if not curves:
            continue
        found = list(curves.values())
        named: dict[str, list[Curve]] = {}
        for label, curve in zip(labels([one for one, _ in found], known, evaluations=False), found, strict=True):
            named.setdefault(label, []).append(curve)
        for chosen, parts in each_method({label: own[0][0].method.name for label, own in named.items()}):
            title = " · ".join((table.title, *parts))
            yield file_name(stem, *parts), _curves(title, {label: named[label] for label in chosen})


def _curves(title: str, named: dict[str, list[Curve]]) -> Figure:
    from gradmem_bench.statistics import wilson

    figure, axes = new_figure(title)
    looks = looks_of(named)
    for label, own in named.items():
        look = looks[label]
        for at, (record, history) in enumerate(own):
            steps, scores = [one["step"] for one in history], [one["score"] for one in history]
            easier = len(record.training.config.get("curriculum") or ())
            faces = [look["color"] if one["stage"] >= easier else "white" for one in history]
            name = f"{label} · {len(own)} seeds" if len(own) > 1 else label
            axes.plot(steps, scores, markersize=4.5, linewidth=1.2, label=None if at else name, **look)
            axes.scatter(steps, scores, s=22, marker=look["marker"], c=faces, edgecolors=look["color"], zorder=3)
            if len(own) == 1 and all("contexts" in one for one in history):
                # As wide as if the queries of a context were all right or all wrong together.
                bounds = [wilson(round(one["score"] * one["contexts"]), one["contexts"]) for one in history]
                lows, highs = zip(*bounds, strict=True)
                axes.fill_between(steps, lows, highs, color=look["color"], alpha=0.12, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("optimiser steps (hollow: an easier task of the curriculum)")
    score_axis(axes, "teacher-forced exact match, validation", ())
    legend(figure)
    curves = [curve for own in named.values() for curve in own]
    validated = sorted({one["contexts"] for _, history in curves for one in history if "contexts" in one})
    counts = f" on {' or '.join(map(str, validated))} contexts of the validation split" if validated else ""
    marks = [f"A line is one seed, a mark one validation{counts}."]
    if any(len(own) == 1 for own in named.values()) and validated:
        marks.append("Bands, of recipes with one seed: 95 % intervals over contexts.")
    caption(figure, [record for record, _ in curves], marks)
    return figure

"""Score against the number of pairs: one picture a task and backbone, one line a recipe."""

from collections.abc import Iterable, Sequence
from statistics import fmean

from gradmem_bench.config import fingerprint
from gradmem_bench.plotting.parts import (
    MOST,
    Pictures,
    caption,
    doubling_axis,
    error_bars,
    file_name,
    legend,
    looks_of,
    new_figure,
    score_axis,
)
from gradmem_bench.plotting.recipes import Known, as_trained, by_seed, labels
from gradmem_bench.results import RunRecord, metric_title, primary_metric


def pairs(records: Iterable[RunRecord], known: Known) -> Pictures:
    """One picture a task and backbone, one line a recipe of a method; of several seeds, through their mean."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        if "pairs" in record.task.settings:
            rest = {key: value for key, value in record.task.settings.items() if key not in ("pairs", "test_contexts")}
            key = fingerprint([record.task.name, record.task.version, record.backbone.weights_hash, rest])
            groups.setdefault(key, []).append(record)
    for number, group in enumerate(groups.values(), start=1):
        metric = primary_metric(group)
        group = [record for record in group if metric in record.metrics]
        if len({_pairs(record) for record in group}) < 2:
            continue
        lines, left_out = _lines(group, known), []
        if len(lines) > MOST:
            trained = [record for record in group if as_trained(record)]
            if trained and len(trained) < len(group):
                apart = len(group) - len(trained)
                left_out = [f"Left out: {apart} runs evaluated at another K than they were trained with."]
                group, lines = trained, _lines(trained, known)
        figure, axes = new_figure(f"{group[0].task.name} · {group[0].backbone.name}")
        for (label, own), look in zip(sorted(lines.items()), looks_of(lines).values(), strict=True):
            own.sort(key=_pairs)
            xs = [_pairs(record) for record in own]
            found = [record.metrics[metric] for record in own]
            style = {"color": look["color"], "marker": look["marker"], "linestyle": "none", "capsize": 3}
            axes.errorbar(xs, [one.value for one in found], yerr=error_bars(found), label=label, **style)
            means = {x: fmean(by_seed((one for one in own if _pairs(one) == x), metric).values()) for x in xs}
            axes.plot(list(means), list(means.values()), color=look["color"], linestyle=look["linestyle"])
        doubling_axis(axes, {_pairs(record) for record in group})
        axes.set_xlabel("pairs in a context")
        score_axis(axes, metric_title(metric, group[0].task), [record.metrics[metric].value for record in group])
        legend(figure)
        marks = "A point is one seed, its bar the 95 % interval over contexts; lines join the means."
        caption(figure, group, [marks, *left_out])
        yield file_name("pairs", group[0].task.name, number), figure


def _lines(group: Sequence[RunRecord], known: Known) -> dict[str, list[RunRecord]]:
    # A task of more pairs may well be trained for longer: one line, unless it was also trained otherwise.
    names = labels(group, known, training_places=[_pairs(record) for record in group])
    lines: dict[str, list[RunRecord]] = {}
    for record, name in zip(group, names, strict=True):
        lines.setdefault(name, []).append(record)
    return lines


def _pairs(record: RunRecord) -> int:
    return record.task.settings["pairs"]

"""K at training against K at evaluation: one row a training recipe, one cell the seeds of it."""

from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure

from gradmem_bench.plotting.parts import Pictures, caption, file_name, folded, new_figure, shaded, stems
from gradmem_bench.plotting.recipes import Known, by_seed, differences, inner_steps, training_recipe
from gradmem_bench.reporting.comparison import Comparison
from gradmem_bench.results import RunRecord

Trainings = dict[str, dict[int, list[RunRecord]]]
"""Training recipe -> K at evaluation -> records of every seed."""


def steps(tables: Sequence[Comparison], known: Known) -> Pictures:
    """One picture a table and method that has more than one K.

    Of several seeds a cell is their mean and their range, of one seed its score and interval.
    """
    for stem, table in zip(stems("steps", [table.title for table in tables]), tables, strict=True):
        methods: dict[str, Trainings] = {}
        pairs: dict[str, set[tuple[int, int]]] = {}
        for record in (row.record for row in table.rows if row.score is not None and row.role == "method"):
            if (both := inner_steps(record)) is not None:
                name = record.method.name
                pairs.setdefault(name, set()).add(both)
                cells = methods.setdefault(name, {}).setdefault(training_recipe(record, known), {})
                cells.setdefault(both[1], []).append(record)
        for method, trainings in methods.items():
            if len(pairs[method]) > 1:
                yield file_name(stem, method), _heat_map(f"{table.title} · {method}", trainings, table, known)


def _heat_map(title: str, trainings: Trainings, table: Comparison, known: Known) -> Figure:
    metric = table.ranked_by
    first = [next(iter(own.values()))[0] for own in trainings.values()]
    named = zip(first, differences(first, known), trainings.values(), strict=True)
    rows = sorted(named, key=lambda row: (inner_steps(row[0])[0], len(row[1]), row[1]))
    evaluated = sorted({column for own in trainings.values() for column in own})
    names = [folded(name) for _, name, _ in rows]
    # As high as a cell's three lines or the longest name.
    lines = max(5, *(name.count("\n") + 1 for name in names))
    width = 2.6 + 0.065 * max(len(line) for name in names for line in name.split("\n"))
    figure, axes = new_figure(title, width + 0.95 * len(evaluated), 1.0 + (0.1 + 0.13 * lines) * len(rows))
    scores = [[by_seed(own.get(column, ()), metric) for column in evaluated] for _, _, own in rows]
    means = [[fmean(cell.values()) if cell else float("nan") for cell in row] for row in scores]
    highest = max(1.0, *(mean for row in means for mean in row if mean == mean))
    texts = [
        [
            f"{mean:.3f}\n{_spread(seeds, cells[column], metric)}" if seeds else ""
            for mean, seeds, column in zip(row, own, evaluated, strict=True)
        ]
        for row, own, (_, _, cells) in zip(means, scores, rows, strict=True)
    ]
    picture = shaded(axes, means, texts, highest)
    axes.set_xticks(range(len(evaluated)), [str(k) for k in evaluated])
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_xlabel("K at evaluation")
    axes.set_ylabel("K at training")
    figure.colorbar(picture, ax=axes, label=table.title_of(metric))
    marks = [
        "A row is one training recipe, a cell the mean over its seeds and their range; of one seed, its score and the "
        "95 % interval over contexts. A seed that was evaluated twice alike counts once."
    ]
    if any(not cell for row in scores for cell in row):
        marks.append("Hatched: not evaluated at that K.")
    caption(figure, [record for own in trainings.values() for cell in own.values() for record in cell], marks)
    return figure


def _spread(seeds: dict[int | None, float], records: Sequence[RunRecord], metric: str) -> str:
    if len(seeds) > 1:
        return f"{len(seeds)} seeds\n{min(seeds.values()):.2f}–{max(seeds.values()):.2f}"
    found = records[0].metrics[metric]
    return "1 seed\n" + ("no interval" if found.low is None else f"[{found.low:.2f}, {found.high:.2f}]")

"""What the pictures of reproduced figures show, read off the figures; and that they are the same bytes again."""

import json
from pathlib import Path

import pytest
from boards import write_run
from matplotlib.collections import PathCollection
from matplotlib.lines import Line2D

from gradmem_bench.paper import PaperRow
from gradmem_bench.plotting.parts import save
from gradmem_bench.plotting.reproductions import picture
from gradmem_bench.reconstruction import PARTS_FILE
from gradmem_bench.reporting.reproductions import Line
from gradmem_bench.reproduction import Experiment

METRIC = "exact_match"
SCALES = {"tiny": {"about": "Smallest.", "task": "kv_retrieval", "runs": []}}


def experiment(report: str) -> Experiment:
    return Experiment(figure="f", title="A figure", metric=METRIC, report=report, scales=SCALES)


def line(folder: Path, name: str, setting: dict, rights: list[int], paper: float | None = None) -> Line:
    """A row with a record for each of `rights`, the queries of 60 that are right, as seeds 0, 1, ..."""
    records = {}
    for seed, right in enumerate(rights):
        own = folder / f"{name}-{'-'.join(map(str, setting.values()))}-{seed}"
        records[seed] = own / "run.json", write_run(own, name, right)
    published = {"method": name, "task": "t", "metric": METRIC, "value": paper, "source": "A paper"}
    return Line(name, setting, list(records), records, paper=None if paper is None else PaperRow(**published))


def marks(axes) -> dict[str, list[tuple[float, float]]]:
    """What is joined by a line -> its points, left to right."""
    return {one.get_label(): [tuple(map(float, at)) for at in one[0].get_xydata()] for one in axes.containers}


def points(axes) -> dict[tuple, list[tuple[float, float]]]:
    """(colour, marker, fill style) -> the points drawn so, left to right."""
    found: dict[tuple, list[tuple[float, float]]] = {}
    for one in axes.get_lines():
        if one.get_linestyle() == "None" and len(one.get_xdata()):
            look = one.get_color(), one.get_marker(), one.get_fillstyle()
            own = zip(map(float, one.get_xdata()), map(float, one.get_ydata()), strict=True)
            found.setdefault(look, []).extend(own)
    return {look: sorted(own) for look, own in found.items()}


def test_zero_has_a_place_of_its_own_and_a_choice_is_no_number(tmp_path):
    table = [line(tmp_path, "gradmem", {"tokens": tokens}, [right]) for tokens, right in ((0, 6), (2, 30), (4, 60))]
    [axes] = picture(experiment("rows"), table).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "2", "4"]
    [own] = marks(axes).values()
    left, right = axes.get_xlim()
    assert [score for _, score in own] == [0.1, 0.5, 1.0]
    assert left < own[0][0] < own[1][0] < own[2][0] < right
    switched = [line(tmp_path, "rmt", {"residual": choice}, [6]) for choice in (False, True)]
    assert picture(experiment("rows"), switched) is None


def test_the_means_are_joined_with_their_intervals_and_every_seed_has_a_dot(tmp_path):
    table = [
        line(tmp_path, "gradmem", {"pairs": 2}, [30, 60], paper=0.25),
        line(tmp_path, "gradmem", {"pairs": 8}, [15]),
        line(tmp_path, "rmt", {"pairs": 2}, [6]),
        line(tmp_path, "rmt", {"pairs": 8}, []),
    ]
    [axes] = picture(experiment("rows"), table).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "8"]
    found = marks(axes)
    scores = {name: [score for _, score in own] for name, own in found.items()}
    assert scores == {"gradmem": [0.75, 0.25], "rmt": [0.1]}
    bars = next(one for one in axes.containers if one.get_label() == "gradmem")[2][0].get_segments()
    stated = [line.interval(METRIC) for line in table[:2]]
    assert [(bar[0][1], bar[1][1]) for bar in bars] == list(map(pytest.approx, stated)) and stated[0][0] < 0.5
    dots = [tuple(point) for one in axes.findobj(PathCollection) for point in one.get_offsets()]
    assert dots == [(found["gradmem"][0][0], 0.5), (found["gradmem"][0][0], 1.0)]
    [(_, published)] = [one for look, own in points(axes).items() if look[2] == "none" for one in own]
    assert published == 0.25
    (legend,) = axes.get_figure().legends
    assert {text.get_text() for text in legend.get_texts()} == {"gradmem", "rmt", "large, hollow: the paper's"}
    assert [one.get_linestyle() for one in legend.findobj(Line2D) if one.get_linestyle() != "None"] == ["-", "--"]
    text = axes.get_figure().get_supxlabel().replace("\n", " ")
    assert "means over seeds (1 or 2); small dots" in text and "on a grey band: one value of pairs" in text


def test_there_is_no_curve_without_scores_or_with_two_axes(tmp_path):
    unmade = line(tmp_path, "gradmem", {"pairs": 2}, [])
    assert picture(experiment("rows"), [unmade]) is None
    other = line(tmp_path, "gradmem", {"vectors": 2}, [30])
    assert picture(experiment("rows"), [line(tmp_path, "gradmem", {"pairs": 2}, [30]), other]) is None


def test_a_cell_is_the_mean_of_its_seeds(tmp_path):
    table = [
        line(tmp_path, "gradmem", {"evaluation_inner_steps": 0}, [0]),
        line(tmp_path, "gradmem", {"evaluation_inner_steps": 4}, [30, 60]),
        line(tmp_path, "rmt", {"evaluation_inner_steps": 4}, [15]),
    ]
    [axes] = picture(experiment("heat_map"), table).axes
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "0.00",
        (1, 0): "0.75",
        (1, 1): "0.25",
    }
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["gradmem", "rmt"]
    assert [patch.get_xy() for patch in axes.patches if patch.get_hatch()] == [(-0.5, 0.5)]
    assert axes.get_xlabel().endswith("; hatched: missing")


def test_losses_of_keys_and_values_have_panels_where_the_steps_of_each_seed_are_joined(tmp_path):
    table = [line(tmp_path, "gradmem", {"evaluation_inner_steps": step}, [30 * step, 15 * step]) for step in (2, 1)]
    for one in table:
        for seed, (path, _) in one.records.items():
            nats = {"keys": (1.0 + seed) / one.setting["evaluation_inner_steps"], "values": 3.0 + seed, "marks": 0.0}
            (path.parent / PARTS_FILE).write_text(json.dumps({"nats_per_token": nats}))
    keys, values = picture(experiment("losses"), table).axes
    assert marks(keys) == {"gradmem": [(1.0, 0.5), (0.5, 1.0)], "_gradmem": [(2.0, 0.25), (1.0, 0.5)]}
    assert marks(values) == {"gradmem": [(3.0, 0.5), (3.0, 1.0)], "_gradmem": [(4.0, 0.25), (4.0, 0.5)]}
    metric = table[1].records[0][1].metrics[METRIC]
    (bars,) = keys.containers[0].lines[2]
    assert bars.get_segments()[0][:, 1] == pytest.approx([metric.low, metric.high])


@pytest.mark.parametrize("report", ["rows", "heat_map"])
def test_a_picture_of_the_same_runs_is_the_same_bytes(tmp_path, report):
    name = "pairs" if report == "rows" else "evaluation_inner_steps"
    table = [line(tmp_path, "gradmem", {name: 2}, [30]), line(tmp_path, "gradmem", {name: 4}, [15])]
    first, again = (
        [file.read_bytes() for file in save(picture(experiment(report), table), tmp_path / stem)]
        for stem in ("first", "again")
    )
    assert first == again
    assert first[0].startswith(b"\x89PNG") and b"<svg" in first[1]


def test_a_line_joins_the_values_of_one_task(tmp_path):
    table = [line(tmp_path / task, "gradmem", {"m": m}, [30 * m]) for task in ("a", "b") for m in (1, 2)]
    for place, one in enumerate(table):
        one.task = "ab"[place // 2]
    [axes] = picture(experiment("rows"), table).axes
    assert {name: [y for _, y in own] for name, own in marks(axes).items()} == {
        "gradmem, a": [0.5, 1.0],
        "gradmem, b": [0.5, 1.0],
    }

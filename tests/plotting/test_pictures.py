from pathlib import Path

import pytest
from boards import edit, write_run
from commands import command
from matplotlib.colors import to_rgb
from records import TASK, measured_costs, metric

from gradmem_bench.plotting.pictures import draw, pareto_front
from gradmem_bench.results import RunRecord, find_records


def drawn(kind: str, folder: Path):
    pictures = dict(draw(kind, find_records([folder])))
    assert len(pictures) == 1
    return next(iter(pictures.values())).axes[0]


def containers(axes) -> dict:
    """label -> (points, (low, high) of each error bar)."""
    found = {}
    for one in axes.containers:
        points = [tuple(map(float, point)) for point in zip(*one[0].get_data(), strict=True)]
        bars = [(float(bar[0][1]), float(bar[1][1])) for bar in one[2][0].get_segments()]
        found[one.get_label()] = (points, bars)
    return found


def interval(record: RunRecord) -> tuple[float, float]:
    score = record.metrics["exact_match"]
    return pytest.approx((score.low, score.high))


def test_the_pareto_front_is_what_nothing_cheaper_or_as_cheap_beats():
    points = [(8, 0.5), (0, 0.1), (8, 0.7), (16, 0.7), (32, 0.9), (64, 0.8), (0, 0.05)]
    assert pareto_front(points) == [(0, 0.1), (8, 0.7), (32, 0.9)]


def test_score_against_bytes_has_every_record_at_its_bytes_with_its_interval_and_the_front(tmp_path):
    gradmem = write_run(tmp_path / "a", "gradmem", 45)
    rmt = write_run(tmp_path / "b", "rmt", 24, state_bytes=4096)
    full = write_run(tmp_path / "c", "full_kv", 57, "ceiling", 65_536, 40)
    write_run(tmp_path / "d", "no_memory", 4, "floor", 0, 0)
    axes = drawn("bytes", tmp_path)
    found = containers(axes)
    assert found["gradmem"] == ([(2048, 0.75)], [interval(gradmem)])
    assert found["rmt"] == ([(4096, 0.4)], [interval(rmt)])
    assert found["full_kv"] == ([(65_536, 0.95)], [interval(full)])
    # What has no bytes stands left of all others, over a tick that says 0.
    (zero, score), *_ = found["no_memory"][0]
    assert zero < 2048 and score == pytest.approx(4 / 60)
    assert axes.get_xscale() == "log"
    ticks = dict(zip(axes.get_xticks(), [label.get_text() for label in axes.get_xticklabels()], strict=True))
    assert ticks[zero] == "0" and ticks[4096] == "4 KiB"
    front = next(line for line in axes.lines if line.get_label() == "Pareto front")
    assert list(front.get_xdata())[:-1] == [zero, 2048, 65_536]
    assert list(front.get_ydata()) == pytest.approx([4 / 60, 0.75, 0.95, 0.95])


def test_what_a_task_is_scored_with_is_drawn(tmp_path):
    own = TASK.model_copy(update={"own_metric": "points", "settings": {"pairs": 4}})
    hits = [1.0] * 256 + [0.0] * 256
    for method, right, points in (("gradmem", 15, 3.5), ("rmt", 45, 1.5)):
        for pairs in (4, 8):
            score = metric("task_score", [points + 0.01 * pairs + 0.5 * hit for hit in hits])
            metrics = {"exact_match": metric("exact_match", hits), "task_score": score}
            task = own.model_copy(update={"settings": {"pairs": pairs}})
            write_run(tmp_path / f"{pairs}" / method, method, right + pairs, task=task, metrics=metrics)
    axes = drawn("bytes", tmp_path / "4")
    assert containers(axes)["gradmem"][0] == [(2048, pytest.approx(3.79))]
    assert axes.get_ylabel() == "points" and axes.get_ylim()[1] > 3.79
    front = next(line for line in axes.lines if line.get_label() == "Pareto front")
    assert list(front.get_ydata()) == [pytest.approx(3.79)] * 2
    axes = drawn("pairs", tmp_path)
    points, bars = containers(axes)["rmt"]
    assert points == [(4, pytest.approx(1.79)), (8, pytest.approx(1.83))]
    assert axes.get_ylabel() == "points" and all(low < high for low, high in bars)
    # Of text, F1 says more than exact match.
    text = TASK.model_copy(update={"normalized_answers": True})
    record = write_run(tmp_path / "text", "gradmem", 30, task=text)
    axes = drawn("bytes", tmp_path / "text")
    assert axes.get_ylabel() == "F1" and record.metrics["f1"].value == 0.75
    assert containers(axes)["gradmem"][0] == [(2048, 0.75)]


def test_seeds_are_one_point_at_their_mean_and_the_front_goes_through_it(tmp_path):
    lucky, other = (write_run(tmp_path / f"{seed}", "gradmem", right, seed=seed) for seed, right in ((0, 54), (1, 30)))
    write_run(tmp_path / "rmt", "rmt", 45, state_bytes=4096)
    axes = drawn("bytes", tmp_path)
    [point], [(low, high)] = containers(axes)["gradmem"]
    assert point == (2048, pytest.approx(0.7))
    assert low < other.metrics["exact_match"].value and high > lucky.metrics["exact_match"].value
    front = next(line for line in axes.lines if line.get_label() == "Pareto front")
    assert list(front.get_ydata()) == pytest.approx([0.7, 0.75, 0.75])
    dots = sorted(float(y) for one in axes.collections for x, y in one.get_offsets() if x == 2048)
    assert dots == pytest.approx([0.5, 0.9])


def test_no_name_of_a_legend_is_cut(tmp_path):
    for steps in range(1, 11):
        folder = tmp_path / f"{steps}"
        task = TASK.model_copy(update={"settings": {"pairs": 4 + steps % 2, "alphabet": 16}})
        write_run(folder, "gradmem", 30 + steps, task=task)
        parameters = {"inner_steps": steps, "inner_learning_rate": 0.25, "evaluation_inner_steps": 2 * steps}
        edit(folder, lambda values, parameters=parameters: values["method"].update(parameters=parameters))
    ((_, figure),) = draw("pairs", find_records([tmp_path]))
    figure.savefig(tmp_path / "picture.png")
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 10
    box, whole = legend.get_window_extent(), figure.bbox
    assert box.x0 >= figure.axes[0].get_window_extent().x1 and box.x1 <= whole.x1 and box.y0 >= whole.y0
    looks = {(one[0].get_color(), one[0].get_marker()) for one in figure.axes[0].containers}
    assert len(looks) == 10


def test_methods_are_told_apart_in_grey(tmp_path):
    for method in ("gradmem", "rmt", "truncated_text", "full_kv"):
        write_run(tmp_path / method, method, 30)
    points = [one[0] for one in drawn("bytes", tmp_path).containers]
    assert len({line.get_marker() for line in points}) == 4
    weights = (0.2126, 0.7152, 0.0722)
    grey = sorted(sum(w * c for w, c in zip(weights, to_rgb(line.get_color()), strict=True)) for line in points)
    assert min(b - a for a, b in zip(grey, grey[1:], strict=False)) > 0.05


def test_exact_match_against_pairs_joins_the_configurations_of_a_method(tmp_path):
    written = {}
    for pairs, right in ((4, 58), (8, 50), (16, 20)):
        task = TASK.model_copy(update={"settings": {"pairs": pairs, "alphabet": 16}})
        for seed in (0, 1):
            written[pairs, seed] = write_run(
                tmp_path / f"{pairs}-{seed}", "gradmem", right + seed, task=task, seed=seed
            )
        write_run(tmp_path / f"rmt-{pairs}", "rmt", right - 10, task=task)
    axes = drawn("pairs", tmp_path)
    points, bars = containers(axes)["gradmem"]
    assert points == [(pairs, pytest.approx(r.metrics["exact_match"].value)) for (pairs, _), r in written.items()]
    assert bars == [interval(record) for record in written.values()]
    means = [list(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) == 3]
    assert [pytest.approx(58.5 / 60), pytest.approx(50.5 / 60), pytest.approx(20.5 / 60)] in means
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "8", "16"]


def test_inner_steps_at_training_and_evaluation_make_a_map(tmp_path):
    for trained, evaluated, right in ((1, None, 30), (1, 2, 33), (2, None, 48), (2, 1, 12), (1, 0, 3)):
        parameters = {"memory_vectors": 8, "inner_steps": trained, "evaluation_inner_steps": evaluated}
        folder = tmp_path / f"{trained}-{evaluated}"
        write_run(folder, "gradmem", right)
        edit(folder, lambda values, parameters=parameters: values["method"].update(parameters=parameters))
    records = find_records([tmp_path])
    ((name, figure),) = draw("steps", records)
    axes = figure.axes[0]
    assert name == "steps-kv_retrieval-gradmem-1"
    # K = 0 at evaluation, the memory before any step, is a column of its own.
    assert axes.images[0].get_array().filled(-1).tolist() == [
        [pytest.approx(0.05), pytest.approx(0.5), pytest.approx(0.55)],
        [-1, pytest.approx(0.2), 0.8],
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("K at evaluation", "K at training")
    best = records[tmp_path / "2-None" / "run.json"].metrics["exact_match"]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts[2, 1] == f"0.800\n[{best.low:.3f}, {best.high:.3f}]"


def test_score_against_the_flops_of_a_write(tmp_path):
    write_run(tmp_path / "a", "gradmem", 45, costs=measured_costs(3e9))
    write_run(tmp_path / "b", "rmt", 24, costs=measured_costs(1e9))
    write_run(tmp_path / "c", "full_kv", 57, "ceiling", costs=measured_costs(None))
    found = containers(drawn("flops", tmp_path))
    assert {label: points for label, (points, _) in found.items()} == {"gradmem": [(3e9, 0.75)], "rmt": [(1e9, 0.4)]}


def test_training_curves_are_the_histories_of_the_runs(five_runs):
    from gradmem_bench.checkpoints import read_about

    ((_, figure),) = draw("training", five_runs)
    curves = {line.get_label(): line for line in figure.axes[0].lines}
    path = next(path for path, record in five_runs.items() if record.method.name == "gradmem")
    history = read_about(path.parent / "method.safetensors")["history"]
    assert list(curves["gradmem"].get_xdata()) == [row["step"] for row in history] == [20, 40]
    assert list(curves["gradmem"].get_ydata()) == [row["score"] for row in history]
    assert {row["contexts"] for row in history} == {32}
    band = figure.axes[0].collections[-1].get_paths()[0].vertices[:, 1]
    assert 0 <= band.min() < band.max() <= 1


def test_the_command_writes_png_and_svg_the_same_again(tmp_path):
    write_run(tmp_path / "runs" / "a")
    done = command("plot", tmp_path / "runs", "--output", tmp_path / "plots")
    assert (done.code, done.errors) == (0, "")
    files = {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    assert sorted(files) == ["bytes-kv_retrieval-1.png", "bytes-kv_retrieval-1.svg"]
    assert files["bytes-kv_retrieval-1.png"].startswith(b"\x89PNG") and b"<svg" in files["bytes-kv_retrieval-1.svg"]


def test_what_cannot_be_drawn_is_said(tmp_path):
    write_run(tmp_path / "a")
    done = command("plot", tmp_path, "--kind", "steps", "--output", tmp_path / "plots")
    assert done.code == 2 and "--kind steps: there is nothing to draw, it takes records of one method" in done.errors
    (tmp_path / "empty").mkdir()
    assert "There are no records here" in command("plot", tmp_path / "empty").errors

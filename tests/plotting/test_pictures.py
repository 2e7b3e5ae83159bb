import pytest
from boards import edit, write_run
from commands import command
from plotting.drawing import caption_of, containers, drawn, write_gradmem
from records import TASK, measured_costs, metric

from gradmem_bench.config import Budget
from gradmem_bench.plotting.parts import stems
from gradmem_bench.plotting.pictures import draw
from gradmem_bench.results import find_records


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
    assert containers(axes)["gradmem"][0][0][1] == pytest.approx(3.79)
    assert axes.get_ylabel() == "points" and axes.get_ylim()[1] > 3.79
    front = next(line for line in axes.lines if line.get_label() == "Pareto front")
    assert list(front.get_ydata()) == [pytest.approx(3.79)] * 2
    axes = drawn("pairs", tmp_path)
    points, bars = containers(axes)["rmt"]
    assert [(round(x), y) for x, y in points] == [(4, pytest.approx(1.79)), (8, pytest.approx(1.83))]
    assert axes.get_ylabel() == "points" and all(low < high for low, high in bars)
    # Of text, F1 says more than exact match.
    text = TASK.model_copy(update={"normalized_answers": True})
    record = write_run(tmp_path / "text", "gradmem", 30, task=text)
    axes = drawn("bytes", tmp_path / "text")
    assert axes.get_ylabel() == "F1" and record.metrics["f1"].value == 0.75
    assert containers(axes)["gradmem"][0] == [(2048, 0.75)]


def test_no_name_of_a_legend_is_cut(tmp_path):
    for steps in range(1, 11):
        folder = tmp_path / f"{steps}"
        task = TASK.model_copy(update={"settings": {"pairs": 4 + steps % 2, "alphabet": 16}})
        write_run(folder, "gradmem", 30 + steps, task=task)
        parameters = {"inner_steps": steps, "inner_learning_rate": 0.25, "evaluation_inner_steps": 2 * steps}
        edit(folder, lambda values, parameters=parameters: values["method"].update(parameters=parameters))
    pictures = [figure for _, figure in draw("pairs", find_records([tmp_path]))]
    assert len(pictures) == 2
    for figure in pictures:
        figure.savefig(tmp_path / "picture.png")
        (legend,) = figure.legends
        assert len(legend.get_texts()) == 5
        # What a setting is, is read on one line with its name.
        names = [name for text in legend.get_texts() for name in text.get_text().split("\n")]
        assert all(name[-1] in ",)" for name in names)
        box, whole = legend.get_window_extent(), figure.bbox
        assert box.x0 >= figure.axes[0].get_window_extent().x1 and box.x1 <= whole.x1 and box.y0 >= whole.y0
        looks = {(one[0].get_color(), one[0].get_marker()) for one in figure.axes[0].containers}
        assert len(looks) == 5


def test_the_command_writes_png_and_svg_the_same_again(tmp_path):
    write_run(tmp_path / "runs" / "a")
    done = command("plot", tmp_path / "runs", "--output", tmp_path / "plots")
    assert done.code == 0
    # What there was nothing for is said in one line.
    assert done.errors.startswith("Not drawn: pairs (it takes records of one task and backbone with different numbers")
    assert done.errors.count("\n") == 1 and "training (it takes" in done.errors and "bytes" not in done.errors
    files = {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    assert sorted(files) == ["bytes-kv_retrieval.png", "bytes-kv_retrieval.svg"]
    assert files["bytes-kv_retrieval.png"].startswith(b"\x89PNG") and b"<svg" in files["bytes-kv_retrieval.svg"]


def test_the_name_of_a_file_tells_what_sets_its_table_apart(tmp_path):
    for alphabet, pairs in ((16, 4), (16, 8), (26, 8)):
        task = TASK.model_copy(update={"settings": {"pairs": pairs, "alphabet": alphabet}})
        write_run(tmp_path / f"{alphabet}-{pairs}", right=alphabet + pairs, task=task)
    records = find_records([tmp_path])
    names = [name for name, _ in draw("bytes", records)]
    assert names == [f"bytes-kv_retrieval-pairs={told}" for told in ("4-alphabet=16", "8-alphabet=16", "8-alphabet=26")]
    ((name, figure),) = draw("pairs", records)
    assert name == "pairs-kv_retrieval"
    other = TASK.model_copy(update={"settings": {"pairs": 4, "alphabet": 26}})
    write_run(tmp_path / "26-4", right=31, task=other)
    pictures = dict(draw("pairs", find_records([tmp_path])))
    assert sorted(pictures) == ["pairs-kv_retrieval-alphabet=16", "pairs-kv_retrieval-alphabet=26"]
    assert [figure.axes[0].get_title(loc="left") for figure in pictures.values()] == [
        f"kv_retrieval · llama-2x64 · alphabet {size}" for size in (16, 26)
    ]
    # Where a title tells too little, a number does.
    assert stems("bytes", ["t · b · a/1", "t · b · a:1", "t · c"]) == [
        "bytes-t-b-a_1-1",
        "bytes-t-b-a_1-2",
        "bytes-t-c",
    ]


def test_a_kind_that_was_asked_for_and_cannot_be_drawn_is_said_before_anything_is_written(tmp_path):
    write_run(tmp_path / "a")
    done = command("plot", tmp_path, "--kind", "bytes", "--kind", "steps", "--output", tmp_path / "plots")
    assert done.code == 2 and "--kind steps: there is nothing to draw, it takes records of one method" in done.errors
    assert done.output == "" and not (tmp_path / "plots").exists()
    (tmp_path / "empty").mkdir()
    assert "There are no records here" in command("plot", tmp_path / "empty").errors


def test_every_picture_says_what_was_asked_of_how_much_and_what_its_marks_are(tmp_path):
    for pairs in (4, 8):
        for seed in (0, 1):
            write_gradmem(
                tmp_path / f"{pairs}-{seed}", 30, seed=seed, inner_steps=pairs // 4, evaluation_inner_steps=seed,
                budget=Budget(bytes=2048), costs=measured_costs(3e9),
                task=TASK.model_copy(update={"settings": {"pairs": pairs, "alphabet": 16}}),
            )  # fmt: skip
    for kind in ("bytes", "flops", "pairs", "steps"):
        for _, figure in draw(kind, find_records([tmp_path])):
            text = caption_of(figure.axes[0])
            assert "kv_retrieval version 1, test split: n = 60 queries on 20 contexts, limit 20" in text
            assert "backbone llama-2x64" in text and "states of at most 2 KiB" in text
            assert "95 %" in text
            figure.savefig(tmp_path / "picture.png")
            box = figure._supxlabel.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
            assert all(box.y1 <= axes.get_tightbbox().y0 for axes in figure.axes[:1])
            assert all(box.y1 <= legend.get_window_extent().y0 for legend in figure.legends)

import pytest
from boards import write_run
from matplotlib.lines import Line2D
from plotting.drawing import caption_of, containers, drawn, write_gradmem
from records import TASK

from gradmem_bench.plotting.pictures import draw
from gradmem_bench.reporting.comparison import comparison
from gradmem_bench.results import find_records, read_examples


def task_of(pairs: int):
    return TASK.model_copy(update={"settings": {"pairs": pairs, "alphabet": 16}})


def dots(axes) -> list[tuple[float, float]]:
    return sorted(tuple(map(float, point)) for one in axes.collections for point in one.get_offsets() if len(point))


def test_a_point_is_what_the_table_says_of_all_seeds_and_each_seed_has_a_dot(tmp_path):
    for pairs, right in ((4, 48), (8, 40), (16, 20)):
        for seed in (0, 1):
            folder = tmp_path / f"{pairs}-{seed}"
            write_run(folder, "gradmem", right + 10 * seed, task=task_of(pairs), seed=seed)
        write_run(tmp_path / f"rmt-{pairs}", "rmt", right + 5, task=task_of(pairs))
    records = find_records([tmp_path])
    folders = {record.run_id: path.parent for path, record in records.items()}
    tables = comparison(records.values(), "config", examples=lambda record: read_examples(folders[record.run_id]))
    stated = [next(row.result for row in table.rows if len(row.records) == 2) for table in tables]
    axes = drawn("pairs", tmp_path)
    points, bars = containers(axes)["gradmem"]
    assert [y for _, y in points] == pytest.approx([53 / 60, 45 / 60, 25 / 60])
    assert [y for _, y in points] == pytest.approx([found.value for found in stated])
    assert bars == [pytest.approx((found.low, found.high)) for found in stated]
    marks = [(x, y) for x, y in dots(axes) if any(x == at for at, _ in points)]
    assert [y * 60 for _, y in marks] == pytest.approx([48, 58, 40, 50, 20, 30])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "8", "16"]
    # Nothing hides another, though their means are alike, and all of one place are nearer to it than to the next.
    others, _ = containers(axes)["rmt"]
    assert [y for _, y in others] == pytest.approx([y for _, y in points])
    axes.get_figure().savefig(tmp_path / "picture.png")
    for (x, y), (other, _), pairs in zip(points, others, (4, 8, 16), strict=True):
        left, right = (axes.transData.transform((place, y))[0] for place in (x, other))
        assert right - left > 7 and pairs / 2**0.4 < x < pairs < other < pairs * 2**0.4
    text = caption_of(axes)
    assert "means over seeds (1 or 2); small dots: single seeds" in text and "Side by side on a grey band" in text


def test_the_legend_shows_the_line_of_each_recipe_and_floor_and_ceiling_are_grey(tmp_path):
    for pairs in (4, 8):
        for method, role in (("gradmem", "method"), ("rmt", "method"), ("full_kv", "ceiling"), ("no_memory", "floor")):
            write_run(tmp_path / f"{method}-{pairs}", method, 30 + pairs, role, task=task_of(pairs))
        # Of two floors the better counts.
        other = {"parameters": {"size": 1}, "task": task_of(pairs)}
        write_run(tmp_path / f"worse-{pairs}", "no_memory", 20 + pairs, "floor", **other)
    axes = drawn("pairs", tmp_path)
    (legend,) = axes.get_figure().legends
    assert [text.get_text() for text in legend.get_texts()] == ["gradmem", "rmt", "full_kv", "no_memory"]
    lines = [line for line in legend.findobj(Line2D) if line.get_linestyle() != "None"]
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-", ":"]
    assert [line.get_color() == "0.35" for line in lines] == [False, False, True, True]
    assert [y for _, y in containers(axes)["no_memory"][0]] == pytest.approx([34 / 60, 38 / 60])
    assert "Of several full_kv or no_memory with one number of pairs" in caption_of(axes)


def test_lines_over_pairs_are_of_one_training_recipe_and_a_seed_counts_once(tmp_path):
    for pairs, right in ((4, 54), (8, 42)):
        for seed, less in ((0, 0), (1, 12)):
            write_gradmem(tmp_path / f"{pairs}-{seed}", right - less, seed, task=task_of(pairs))
        write_gradmem(tmp_path / f"{pairs}-asked", right, 0, task=task_of(pairs), evaluation_inner_steps=1)
        write_gradmem(tmp_path / f"{pairs}-one", 6, 0, {"queries_per_context": 1}, task=task_of(pairs))
    axes = drawn("pairs", tmp_path)
    found = {name: [y for _, y in points] for name, (points, _) in containers(axes).items()}
    assert found == {
        "gradmem": pytest.approx([0.8, 0.6]),
        "gradmem (queries_per_context 1)": pytest.approx([0.1, 0.1]),
    }


def test_of_more_recipes_than_fit_those_with_a_line_are_drawn_a_method_at_a_time_and_the_rest_is_said(tmp_path):
    for pairs in (4, 8):
        for steps in range(1, 10):
            write_gradmem(tmp_path / f"{steps}-{pairs}", 20 + steps, inner_steps=steps, task=task_of(pairs))
        write_gradmem(tmp_path / f"more-{pairs}", 50, evaluation_inner_steps=30, task=task_of(pairs))
        write_run(tmp_path / f"rmt-{pairs}", "rmt", 10 + pairs, task=task_of(pairs))
        write_run(tmp_path / f"full-{pairs}", "full_kv", 50 + pairs, "ceiling", task=task_of(pairs))
    write_gradmem(tmp_path / "once", 30, inner_steps=10, task=task_of(8))
    pictures = dict(draw("pairs", find_records([tmp_path])))
    stem = "pairs-kv_retrieval"
    assert list(pictures) == [f"{stem}-gradmem-1", f"{stem}-gradmem-2", f"{stem}-rmt"]
    names = [set(containers(figure.axes[0])) for figure in pictures.values()]
    assert [len(own) for own in names] == [6, 5, 2]
    assert set.intersection(*names) == {"full_kv"}
    assert not any("inner_steps 10" in name or "30" in name for own in names for name in own)
    for figure in pictures.values():
        text = caption_of(figure.axes[0])
        assert "2 rows evaluated at another K than in training" in text
        assert "1 recipe run with one number of pairs only" in text

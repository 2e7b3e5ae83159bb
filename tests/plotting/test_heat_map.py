import pytest
from boards import edit, write_run
from plotting.drawing import WRITING, caption_of, drawn, write_gradmem

from gradmem_bench.plotting.pictures import draw
from gradmem_bench.results import find_records


def cells(axes) -> dict[tuple[str, str], str]:
    """(label of the row, label of the column) -> what is written there."""
    columns = [label.get_text() for label in axes.get_xticklabels()]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    return {(rows[y], columns[x]): text.get_text() for text in axes.texts for x, y in [text.get_position()]}


def test_inner_steps_at_training_and_evaluation_make_a_map(tmp_path):
    for trained, evaluated, right in ((1, None, 30), (1, 2, 33), (2, None, 48), (2, 1, 12), (1, 0, 3)):
        parameters = {"memory_vectors": 8, "inner_steps": trained, "evaluation_inner_steps": evaluated}
        folder = tmp_path / f"{trained}-{evaluated}"
        write_run(folder, "gradmem", right)
        edit(folder, lambda values, parameters=parameters: values["method"].update(parameters=parameters))
    records = find_records([tmp_path])
    ((name, figure),) = draw("steps", records)
    axes = figure.axes[0]
    assert name == "steps-kv_retrieval-gradmem"
    # K = 0 at evaluation, the memory before any step, is a column of its own.
    assert axes.images[0].get_array().filled(-1).tolist() == [
        [pytest.approx(0.05), pytest.approx(0.5), pytest.approx(0.55)],
        [-1, pytest.approx(0.2), 0.8],
    ]
    # What was not evaluated is hatched, unlike a score of 0, and said.
    assert [patch.get_xy() for patch in axes.patches if patch.get_hatch()] == [(-0.5, 0.5)]
    assert "Hatched: not evaluated at that K." in caption_of(axes)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("K at evaluation", "K at training")
    best = records[tmp_path / "2-None" / "run.json"].metrics["exact_match"]
    assert cells(axes)["2", "2"] == f"0.800\n1 seed\n[{best.low:.2f}, {best.high:.2f}]"


def test_a_cell_holds_one_recipe_and_each_of_its_seeds_once(tmp_path):
    for seed, right in ((0, 48), (1, 54)):
        write_gradmem(tmp_path / f"default-{seed}", right, seed, inner_steps=2)
        # The same training, evaluated at its own K because it was asked for.
        write_gradmem(tmp_path / f"asked-{seed}", right, seed, inner_steps=2, evaluation_inner_steps=2)
        write_gradmem(tmp_path / f"more-{seed}", 57, seed, inner_steps=2, evaluation_inner_steps=5)
        write_gradmem(tmp_path / f"one-{seed}", 6, seed, {"queries_per_context": 1}, inner_steps=2)
    write_gradmem(tmp_path / "asked-2", 42, 2, inner_steps=2, evaluation_inner_steps=2)
    write_gradmem(tmp_path / "small", 30, inner_steps=1, inner_learning_rate=4.0)
    axes = drawn("steps", tmp_path)
    found = cells(axes)
    assert {where: text.split("\n")[:2] for where, text in found.items()} == {
        ("1, inner_learning_rate 4", "1"): ["0.500", "1 seed"],
        ("2, inner_learning_rate 1", "2"): ["0.800", "3 seeds"],
        ("2, inner_learning_rate 1", "5"): ["0.950", "2 seeds"],
        ("2, inner_learning_rate 1,\nqueries_per_context 1", "2"): ["0.100", "2 seeds"],
    }
    assert found["2, inner_learning_rate 1", "2"].endswith("\n0.70–0.90")
    assert "A seed that was evaluated twice alike counts once" in caption_of(axes)


def test_settings_that_tell_no_trainings_apart_do_not_name_rows(tmp_path):
    for steps in (1, 2):
        write_gradmem(tmp_path / f"{steps}", 30 + steps, training={"tuned_trials": 10 * steps}, inner_steps=steps)
    axes = drawn("steps", tmp_path)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2"]


def test_rows_are_as_high_as_their_names(tmp_path):
    for steps in (1, 2, 3):
        for pairs in (2, 4):
            stages = [{"task": {"pairs": number}, "until": 0.85, "steps": 300} for number in range(2, 9)]
            training = {"curriculum": stages[:pairs], "learning_rate": 0.002 * steps, "warmup_steps": 25 * pairs}
            write_gradmem(tmp_path / f"{steps}-{pairs}", 20 + steps, training=training, inner_steps=steps)
    axes = drawn("steps", tmp_path)
    axes.get_figure().savefig(tmp_path / "picture.png")
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert len(boxes) == 6 and all(upper.y0 > lower.y1 for lower, upper in zip(boxes, boxes[1:], strict=False))
    assert boxes[-1].y1 < axes.get_figure().bbox.y1


def test_the_map_of_the_published_writing_runs_has_their_published_means():
    texts = (WRITING / "writing_steps-tiny.txt").read_text()
    published = {}
    for block in texts.split("GradMem K=")[1:]:
        columns = block.split("K =")[1].split("\n")[0].split()
        means = next(line for line in block.split("\n") if line.startswith("mean")).split()[1:]
        published |= {(block.split("\n")[0], column): float(mean) for column, mean in zip(columns, means, strict=True)}
    assert len(published) == 21 and published["2", "2"] == 0.93
    found = cells(drawn("steps", WRITING))
    # Beside them, one query a context, with as many steps and with as many seconds, and a learned inner learning rate.
    assert len(found) == 25
    apart = ("queries_per_context", "learned_inner_learning_rate")
    alike = {where: text for where, text in found.items() if not any(one in where[0] for one in apart)}
    shown = {(row.partition(",")[0], column): text for (row, column), text in alike.items()}
    assert {where: float(text.split("\n")[0]) for where, text in shown.items()} == pytest.approx(published, abs=0.0055)
    assert all(text.split("\n")[1] == "3 seeds" for text in found.values())

from matplotlib.colors import to_hex
from plotting.drawing import drawn, write_gradmem, write_history

from gradmem_bench.plotting.pictures import draw
from gradmem_bench.results import find_records


def names(figure) -> list[str]:
    return [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]


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
    assert "a mark one validation on 32 contexts" in figure.get_supxlabel().replace("\n", " ")


def test_seeds_of_a_recipe_have_one_look_and_one_name_and_evaluations_of_a_training_one_curve(tmp_path):
    for seed in range(3):
        for queries in (None, 1):
            folder = tmp_path / f"{seed}-{queries}"
            write_gradmem(folder, 30, seed, {"queries_per_context": queries})
            write_history(folder, [0.1 * seed, 0.5 if queries else 0.9])
        write_gradmem(tmp_path / f"{seed}-again", 33, seed, evaluation_inner_steps=5)
        write_history(tmp_path / f"{seed}-again", [0.1 * seed, 0.9])
    axes = drawn("training", tmp_path)
    assert names(axes.get_figure()) == ["gradmem · 3 seeds", "gradmem (queries_per_context 1) · 3 seeds"]
    looks = {}
    for line in axes.lines:
        looks.setdefault(float(line.get_ydata()[-1]), set()).add((to_hex(line.get_color()), line.get_marker()))
    assert len(axes.lines) == 6 and [len(looks[score]) for score in (0.9, 0.5)] == [1, 1]
    assert looks[0.9] != looks[0.5]


def test_what_was_validated_on_an_easier_task_is_hollow_though_the_curriculum_was_never_left(tmp_path):
    curriculum = [{"task": {"pairs": 2}}]
    for seed, stages in enumerate(([0, 0, 0], [0, 1, 1])):
        folder = tmp_path / f"{seed}"
        write_gradmem(folder, 30, seed, {"curriculum": curriculum})
        write_history(folder, [0.3, 0.8, 0.2 + 0.1 * seed], stages)
    write_gradmem(tmp_path / "plain", 30, inner_steps=2)
    write_history(tmp_path / "plain", [0.5, 0.6, 0.7])
    axes = drawn("training", tmp_path)
    hollow = {
        round(float(marks.get_offsets()[-1][1]), 6): [to_hex(face) == "#ffffff" for face in marks.get_facecolors()]
        for marks in axes.collections
    }
    assert hollow == {0.2: [True] * 3, 0.3: [True, False, False], 0.7: [False] * 3}


def test_more_than_eight_recipes_make_a_picture_for_each_method(tmp_path):
    for steps in range(1, 11):
        for name in ("gradmem", "other") if steps < 4 else ("gradmem",):
            folder = tmp_path / f"{name}-{steps}"
            write_gradmem(folder, 30, name=name, inner_steps=steps)
            write_history(folder, [0.5, 0.6])
    pictures = dict(draw("training", find_records([tmp_path])))
    stem = "training-kv_retrieval"
    assert list(pictures) == [f"{stem}-gradmem-1", f"{stem}-gradmem-2", f"{stem}-other"]
    assert [len(names(figure)) for figure in pictures.values()] == [5, 5, 3]
    for figure in pictures.values():
        assert len({line.get_color() for line in figure.axes[0].lines}) == len(names(figure))

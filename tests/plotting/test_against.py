import pytest
from boards import write_run
from matplotlib.colors import to_rgb
from plotting.drawing import caption_of, containers, drawn, write_gradmem
from records import measured_costs

from gradmem_bench.config import Budget
from gradmem_bench.plotting.against import pareto_front


def interval(record) -> tuple[float, float]:
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


def test_methods_are_told_apart_in_grey(tmp_path):
    for method in ("gradmem", "rmt", "truncated_text", "full_kv"):
        write_run(tmp_path / method, method, 30)
    points = [one[0] for one in drawn("bytes", tmp_path).containers]
    assert len({line.get_marker() for line in points}) == 4
    weights = (0.2126, 0.7152, 0.0722)
    grey = sorted(sum(w * c for w, c in zip(weights, to_rgb(line.get_color()), strict=True)) for line in points)
    assert min(b - a for a, b in zip(grey, grey[1:], strict=False)) > 0.05


def test_score_against_the_flops_of_a_write(tmp_path):
    write_run(tmp_path / "a", "gradmem", 45, costs=measured_costs(3e9))
    write_run(tmp_path / "b", "rmt", 24, costs=measured_costs(1e9))
    write_run(tmp_path / "c", "full_kv", 57, "ceiling", costs=measured_costs(None))
    found = containers(drawn("flops", tmp_path))
    assert {label: points for label, (points, _) in found.items()} == {"gradmem": [(3e9, 0.75)], "rmt": [(1e9, 0.4)]}


def test_points_of_one_training_tell_the_k_that_they_were_evaluated_at(tmp_path):
    rights = {0: 1, 1: 40, 5: 50}
    for evaluated, right in rights.items():
        costs = measured_costs(evaluated * 1e9)
        write_gradmem(tmp_path / f"{evaluated}", right, evaluation_inner_steps=evaluated, costs=costs)
    write_run(tmp_path / "rmt", "rmt", 20, costs=measured_costs(2e9))
    axes = drawn("flops", tmp_path)
    points, bars = containers(axes)["gradmem"]
    told = {text.get_text(): text.xy for text in axes.texts}
    # At the bar's lower end, or at its upper where the lower is at the foot of the picture.
    ends = [(x, high if y < 0.1 else low) for (x, y), (low, high) in zip(points, bars, strict=True)]
    assert told == {f"K={evaluated}": end for evaluated, end in zip(rights, sorted(ends), strict=True)}
    assert "K: inner steps at evaluation" in caption_of(axes)


def test_the_dtype_of_states_names_a_series_where_it_varies(tmp_path):
    for dtype, right, size in (("float32", 40, 2048), ("int8", 50, 2048), ("int8", 30, 512)):
        folder = tmp_path / f"{dtype}-{size}"
        record = write_gradmem(folder, right, budget=Budget(bytes=size, state_dtype=dtype), state_bytes=size)
        footprint = record.footprint.model_copy(update={"state_dtype": dtype})
        (folder / "run.json").write_text(record.model_copy(update={"footprint": footprint}).model_dump_json())
    write_run(tmp_path / "rmt", "rmt", 20)
    axes = drawn("bytes", tmp_path)
    found = containers(axes)
    assert set(found) == {"gradmem (float32)", "gradmem (int8)", "rmt"}
    assert [y for _, y in found["gradmem (int8)"][0]] == [0.5, pytest.approx(50 / 60)]
    # The front goes through the marks that make it, where they stand.
    front = next(line for line in axes.lines if line.get_label() == "Pareto front")
    corners = list(zip(front.get_xdata(), front.get_ydata(), strict=True))[:-1]
    assert corners == sorted(found["gradmem (int8)"][0])
    # Nothing stands on another: those of 2,048 bytes are side by side, the best first, around their place.
    xs = [found[name][0][-1][0] for name in ("gradmem (int8)", "gradmem (float32)", "rmt")]
    assert xs == sorted(xs) and len(set(xs)) == 3 and xs[1] == pytest.approx(2048)
    assert "side by side" in caption_of(axes) and "not all of one recipe" not in caption_of(axes)


def test_of_more_entries_than_fit_those_evaluated_as_trained_are_drawn_and_the_rest_is_said(tmp_path):
    for steps in (1, 2, 3):
        for evaluated in (None, 1, 2, 3, 5):
            folder = tmp_path / f"{steps}-{evaluated}"
            write_gradmem(folder, 20 + 9 * steps, inner_steps=steps, evaluation_inner_steps=evaluated)
    axes = drawn("bytes", tmp_path)
    assert set(containers(axes)) == {f"gradmem (inner_steps {steps})" for steps in (1, 2, 3)}
    assert all(len(points) == 1 for points, _ in containers(axes).values())
    assert "9 rows evaluated at another K than in training" in caption_of(axes)


def test_of_more_recipes_than_fit_a_method_has_one_entry(tmp_path):
    for steps in range(1, 10):
        write_gradmem(tmp_path / f"{steps}", 20 + steps, inner_steps=steps)
    axes = drawn("bytes", tmp_path)
    points, _ = containers(axes)["gradmem"]
    assert len(containers(axes)) == 1 and len({x for x, _ in points}) == len(points) == 9
    assert "Points of one look are not all of one recipe: gradmem." in caption_of(axes)


def test_writes_without_flops_stand_side_by_side_over_0(tmp_path):
    free = [(name, 0.0, right) for name, right in (("mean_pool", 17), ("rmt", 16), ("truncated_text", 15))]
    for name, flops, right in (("gradmem", 3e9, 45), *free):
        write_run(tmp_path / name, name, right, costs=measured_costs(flops))
    axes = drawn("flops", tmp_path)
    found = {name: points[0][0] for name, (points, _) in containers(axes).items()}
    zero = dict(zip((label.get_text() for label in axes.get_xticklabels()), axes.get_xticks(), strict=True))["0"]
    middle, low = found["rmt"], axes.get_xlim()[0]
    assert middle == pytest.approx(zero) and low < found["mean_pool"] < middle < found["truncated_text"] < 1e9
    axes.get_figure().savefig(tmp_path / "picture.png")
    seen = sorted(axes.transData.transform((found[name], 0.3))[0] for name in ("mean_pool", "rmt", "truncated_text"))
    # In pixels of a picture of 100 an inch; a mark is 7 points, about ten of them.
    assert min(b - a for a, b in zip(seen, seen[1:], strict=False)) > 7
    assert "0 has a place of its own" in caption_of(axes)

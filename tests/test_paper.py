import pytest

from gradmem_bench.errors import UserError
from gradmem_bench.metrics import METRICS
from gradmem_bench.paper import figures_of, paper_figure
from gradmem_bench.registry import recipe_folder


@pytest.mark.parametrize("path", sorted(recipe_folder("paper").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_papers_numbers_are_whole(path):
    figure = paper_figure(path.stem)
    keys = [(row.method, row.task, tuple(row.setting.items()), row.metric) for row in figure.rows]
    assert len(set(keys)) == len(keys)
    for row in figure.rows:
        assert row.source and (row.value is not None or row.note)
        if row.low is not None:
            assert row.low <= row.value <= row.high
        if row.metric in METRICS and row.value is not None:
            assert 0 <= row.value <= 1


def test_a_few_of_the_papers_numbers_stand_where_they_belong():
    found = {(row.method, row.setting.get("pairs")): row for row in paper_figure("fig3").rows}
    last = found["GradMem K=5", 96]
    assert (last.value, last.low, last.high, last.n, last.seeds) == (0.884, 0.861, 0.907, 5000, 3)
    assert found["RMT ×1", 16].value == 0.455
    steps = {
        row.setting["evaluation_inner_steps"]: row.value
        for row in paper_figure("fig4a").rows
        if (row.method, row.setting["pairs"]) == ("GradMem K=2", 64) and len(row.setting) == 2
    }
    assert steps == {1: 0.318, 2: 0.728, 3: 0.815, 4: 0.899, 5: 0.899}
    assert {row.value for row in paper_figure("squad").rows if row.method == "GradMem K=5"} == {0.549}


@pytest.mark.parametrize("wrong", ["value: .nan", "valeu: 1"])
def test_what_is_no_number_and_what_is_no_key_are_refused(tmp_path, wrong):
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "a.yaml").write_text(f"figure: a\nrows: [{{method: x, task: y, metric: z, {wrong}}}]\n")
    with pytest.raises(UserError, match="a.yaml"):
        list(figures_of(tmp_path))

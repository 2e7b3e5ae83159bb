import pytest
from comparisons import caption, changed
from records import TRAINING, demo_records, run_record

from gradmem_bench.reporting.comparison import comparison


def test_of_several_ceilings_one_that_is_not_quantised_then_the_longest_trained_counts():
    def ceiling(right, steps, dtype="float32"):
        training = changed(TRAINING, steps=steps)
        record = run_record("full_kv", "ceiling", right, training=training, config_hash=f"{right}" * 5)
        return changed(record, footprint=changed(record.footprint, state_dtype=dtype), run_id=f"{right}")

    short, long, narrow = ceiling(505, 20), ceiling(500, 60), ceiling(512, 60, "int4")
    records = [run_record("no_memory", "floor", 34), run_record(right=400)]
    for ceilings, taken in ([short, long, narrow], 500), ([short, narrow], 505), ([narrow], 512):
        [table] = comparison([*records, *ceilings])
        assert table.ceiling.score == taken / 512
        gradmem = next(row for row in table.rows if row.label == "gradmem")
        assert gradmem.normalized_score == pytest.approx((400 - 34) / (taken - 34))
        rule = (
            "; of several ceilings, one whose states are not quantised before others, then the most training steps, "
            "then the best score."
        )
        said = f"ceiling {table.ceiling.label} {taken / 512:.3f}"
        assert f"{said}{rule if len(ceilings) > 1 else '.'}" in caption(table)


def test_of_several_floors_trained_alike_the_best_counts():
    better = run_record("no_memory", "floor", 60, run_id="better", training=changed(TRAINING, seed=1, steps=400))
    [table] = comparison([*demo_records(), better])
    by_label = {row.label: row.normalized_score for row in table.rows}
    assert by_label["gradmem"] == pytest.approx((473 - 60) / (511 - 60))
    assert by_label["no_memory (seed 0)"] < 0 == by_label["no_memory (seed 1)"]
    assert "floor no_memory (seed 1) 0.117, ceiling full_kv 0.998; of several floors, one" in caption(table)
    assert "One seed a row (0, 1): those intervals say nothing of another seed." in table.caption

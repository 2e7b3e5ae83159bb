from comparisons import changed
from records import ENVIRONMENT, TRAINING, run_record

from gradmem_bench.config import Budget
from gradmem_bench.reporting.comparison import comparison


def test_records_of_one_method_are_told_apart_by_as_little_as_will_do():
    def labels(*records):
        return sorted(row.label for row in comparison(records)[0].rows)

    first, second = run_record(right=400), run_record(right=300, training=changed(TRAINING, seed=1))
    assert labels(first, second) == ["gradmem (seed 0)", "gradmem (seed 1)"]
    steps = [run_record(parameters={"inner_steps": steps, "rate": 2.0}) for steps in (1, 5)]
    assert labels(*steps) == ["gradmem (inner_steps 1)", "gradmem (inner_steps 5)"]
    both = run_record(right=2, parameters={"inner_steps": 5, "rate": 2.0}, training=changed(TRAINING, seed=3))
    assert labels(*steps, both) == [
        "gradmem (inner_steps 1, seed 0)",
        "gradmem (inner_steps 5, seed 0)",
        "gradmem (seed 3)",
    ]
    assert labels(run_record(config_hash="1" * 16, run_id="one"), run_record(config_hash="2" * 16, run_id="two")) == [
        "gradmem (one)",
        "gradmem (two)",
    ], "nothing that the record knows tells them apart"


def test_what_a_label_is_told_apart_by_comes_before_its_run():
    def labels(*records):
        return sorted(row.label for row in comparison(records)[0].rows)

    def trained(right, begun=None, **config):
        training = changed(TRAINING, config=TRAINING.config | config, initial_checkpoint=begun)
        return run_record(right=right, training=training)

    asked = trained(400, queries_per_context=None, betas=[0.9, 0.999]), trained(300, queries_per_context=1)
    assert labels(*asked) == ["gradmem (queries_per_context 1)", "gradmem (queries_per_context none)"]
    # The parameter has the name of a setting of the training.
    both = [run_record(right=right, parameters={"learning_rate": 1.0}) for right in (2, 3)]
    both[1] = changed(both[1], training=changed(TRAINING, config={"steps": 1000, "learning_rate": 0.1}))
    assert labels(*both) == ["gradmem (training.learning_rate 0.001)", "gradmem (training.learning_rate 0.1)"]
    stages = trained(3, curriculum=[{"task": {"pairs": 2}, "until": 0.9, "steps": None}]), trained(4, curriculum=[])
    assert labels(*stages) == [
        "gradmem (curriculum [])",
        "gradmem (curriculum [{task: {pairs: 2}, until: 0.9, steps: none}])",
    ]
    begun = trained(2), trained(3, "gradmem-1f72c8df/method.safetensors (weights a, 300 steps)")
    assert labels(*begun) == ["gradmem (from gradmem-1f72c8df)", "gradmem (from scratch)"]
    absent = run_record(parameters={"steps": None}), run_record(parameters={"steps": 2}), run_record(parameters={})
    assert labels(*absent[:2]) == ["gradmem (gradmem.steps 2)", "gradmem (gradmem.steps none)"]
    stored = [run_record("full_kv", "ceiling", right, budget=budget) for right, budget in ((9, None), (8, Budget()))]
    stored[1] = changed(stored[1], footprint=changed(stored[1].footprint, state_dtype="int8"))
    assert labels(*stored) == ["full_kv (state_dtype float32)", "full_kv (state_dtype int8)"]
    bounded = run_record("full_kv", "ceiling", 9), run_record("full_kv", "ceiling", 8, budget=Budget(bytes=4096))
    assert labels(*bounded) == ["full_kv (bound 4 KiB)", "full_kv (bound none)"]
    computed = run_record(), run_record(right=3, environment=changed(ENVIRONMENT, dtype="bfloat16"))
    assert labels(*computed) == ["gradmem (dtype bfloat16)", "gradmem (dtype float32)"]

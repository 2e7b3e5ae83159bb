import json

import pytest
from commands import TINY, command
from planned import make_model, make_task, plan, write_rows

from gradmem_bench.config import Budget
from gradmem_bench.errors import UserError
from gradmem_bench.loading import load_backbone


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def local_task(tmp_path):
    return make_task(tmp_path)


# ---------------------------------------------------------------------------------------------- dry run


@pytest.mark.parametrize(
    ("method", "state", "positions", "parameters"),
    # llama-1x32: one vector is 128 bytes, one position of KV 256; `!a:5!|` has six tokens and as many bytes.
    [
        (
            "gradmem --set=memory_vectors=4 --set=write_head=true",
            "512 B",
            "at most 4, holding 1 KiB",
            16_992 + 4 * 32 + 16 * 32,
        ),
        (
            "rmt --set=memory_vectors=4 --set=projection=shared",
            "512 B",
            "at most 4, holding 1 KiB",
            16_992 + 4 * 32 + 33 * 32,
        ),
        ("full_kv", "1.5 KiB", "at most 6, holding 1.5 KiB", 16_992),
        ("truncated_text", "6 B", "at most 6, holding 1.5 KiB", 16_992),
        ("no_memory", "0 B", "at most 0, holding 0 B", 16_992),
    ],
)
def test_a_dry_run_says_what_a_run_would_cost_and_writes_nothing(tmp_path, method, state, positions, parameters):
    done = command("run", "--method", *method.split(), *TINY, "--dry-run", "--output", tmp_path / "runs")
    assert (done.code, done.errors) == (0, "")
    facts = dict(line.split("  ", 1) for line in done.output.splitlines()[1:7])
    assert facts["state"].strip().startswith(f"at most {state} for a context of 6 tokens")
    assert facts["READ positions"].strip() == f"{positions} of KV"
    assert facts["budget"].split()[0] == "none"
    assert facts["parameters"].strip() == f"{parameters:,}"
    assert facts["steps"].strip() == "40 of 16 contexts"
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_needs_no_weights_file(tmp_path, model):
    given = ["--method=gradmem", *TINY, "--set=memory_vectors=4", "--backbone", model, "--output", tmp_path / "runs"]
    done = command("run", *given, "--dry-run")
    assert (done.code, done.errors) == (0, "")
    assert "state           at most 512 B for a context of 6 tokens" in done.output
    assert list(tmp_path.iterdir()) == []
    done = command("run", *given)
    assert done.code == 2
    assert f"'{model}' is no folder with a config.json and safetensors weights" in done.errors
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_on_the_meta_device_and_counts_what_a_real_method_has():
    found = plan("gradmem")
    assert {parameter.device.type for parameter in found.shape.parameters()} == {"meta"}
    backbone = load_backbone(found.backbone, found.task.tokenizer(), "cpu", 0)
    method = found.method_class(backbone, found.parameters)
    assert found.parameter_count == sum(parameter.numel() for parameter in method.parameters())


# ---------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize("method", ["gradmem", "rmt"])
@pytest.mark.parametrize(
    ("budget", "vectors"),
    [(Budget(bytes=4096), 32), (Budget(positions=3), 3), (Budget(bytes=1000), 7), (Budget(bytes=4096, positions=5), 5)],
)
def test_a_budget_is_filled_with_vectors(method, budget, vectors):
    found = plan(method, budget=budget)
    assert found.parameters.memory_vectors == vectors
    assert (found.footprint.state_bytes, found.footprint.read_positions) == (vectors * 128, vectors)


def test_a_budget_bounds_text_and_leaves_floor_and_ceiling_alone():
    found = plan("truncated_text", budget=Budget(bytes=4, positions=3))
    assert (found.parameters.max_bytes, found.parameters.max_tokens) == (4, 3)
    assert (found.footprint.state_bytes, found.footprint.read_positions) == (4, 3)
    for method in ("full_kv", "no_memory"):
        assert plan(method, budget=Budget(bytes=4)).footprint == plan(method).footprint


def test_a_state_dtype_makes_room_and_is_asked_of_whoever_has_numbers():
    found = plan("gradmem", budget=Budget(bytes=1000, state_dtype="int8"))
    # A vector of width 32 is 34 bytes.
    assert (found.fitted, found.footprint.state_bytes) == ({"memory_vectors": 29}, 29 * 34)
    assert found.budget == Budget(bytes=1000, state_dtype="int8")
    ceiling = plan("full_kv", budget=Budget(bytes=1000, state_dtype="int8"))
    assert (ceiling.budget, ceiling.fitted) == (Budget(state_dtype="int8"), {})
    assert ceiling.footprint.state_bytes == 6 * 2 * 34
    assert plan("no_memory", budget=Budget(bytes=1000, state_dtype="int8")).budget == Budget()
    assert plan("truncated_text", budget=Budget(bytes=4, state_dtype="int8")).budget == Budget(bytes=4)


def test_runs_that_differ_in_the_evaluation_alone_have_one_training():
    same = plan("gradmem", budget=Budget(positions=8)).training_hash
    for other in (
        plan("gradmem", budget=Budget(positions=8, state_dtype="int4")),
        plan("gradmem", budget=Budget(bytes=8 * 128)),
        plan("gradmem", limit=3),
    ):
        assert other.training_hash == same
    asked = plan("gradmem", "evaluation_inner_steps=3", budget=Budget(positions=8))
    assert asked.training_hash == same and asked.config_hash != plan("gradmem", budget=Budget(positions=8)).config_hash
    assert asked.parameters.evaluation_inner_steps == 3 and asked.trained_parameters.evaluation_inner_steps is None
    for other in (
        plan("gradmem", budget=Budget(positions=7)),
        plan("gradmem", "training.steps=9"),
        plan("gradmem", "task.noise=1"),
        plan("gradmem", seed=1),
        plan("gradmem", dtype="bfloat16"),
        plan("gradmem", backbone="llama-2x32"),
    ):
        assert other.training_hash != same


def test_a_budget_that_nothing_fits_is_refused():
    with pytest.raises(UserError, match="budget of 127 B holds no vector: one of width 32 in float32 is 128 B"):
        plan("gradmem", budget=Budget(bytes=127))
    assert plan("gradmem", budget=Budget(bytes=128)).parameters.memory_vectors == 1


# ------------------------------------------------------------------------------------- whose value counts


def of_ones_own(folder, base: str, body: str) -> str:
    """The YAML of a method that is its base but for its body."""
    (folder / "greedy_method.py").write_text(
        f"from gradmem_bench.methods.{base} as Base\n\n\nclass Greedy(Base):\n{body}"
    )
    (folder / "greedy.yaml").write_text("name: greedy\nclass: greedy_method:Greedy\n")
    return str(folder / "greedy.yaml")


def test_a_fit_that_does_not_keep_to_the_budget_is_refused_before_anything_is_trained(tmp_path, forgotten):
    fit = "    @classmethod\n    def fit(cls, parameters, budget, backbone):\n        return parameters\n"
    method = of_ones_own(tmp_path, "mean_pool import MeanPool", fit)
    with pytest.raises(UserError, match="greedy does not fit: by its footprint .* 1 KiB, over the budget of 100 B"):
        plan(method, budget=Budget(bytes=100))
    assert plan(method, budget=Budget(bytes=1024)).footprint.state_bytes == 1024


def test_a_class_that_lacks_what_a_method_needs_is_told_what(tmp_path, forgotten):
    method = of_ones_own(tmp_path, "base import MemoryMethod", "    read = footprint = None\n")
    with pytest.raises(UserError, match="greedy_method:Greedy has no fit and no write, which a method needs"):
        plan(method)


def test_what_is_set_stands_above_the_recipe_and_the_recipe_above_the_task(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "name: own\nclass: gradmem_bench.methods.gradmem:GradMem\nparameters: {memory_vectors: 3, inner_steps: 2}\n"
        "training: {learning_rate: 0.5, weight_decay: 0.25}\n"
    )
    found = plan(str(tmp_path / "own.yaml"), "inner_steps=4", "training.weight_decay=0.125")
    assert (found.parameters.memory_vectors, found.parameters.inner_steps) == (3, 4)
    assert found.parameters.order == "second"  # the class's own
    assert (found.training.learning_rate, found.training.weight_decay) == (0.5, 0.125)
    assert found.training.steps == 20_000  # the task's
    assert found.training.max_grad_norm == 1.0  # every training's


def test_a_setting_may_be_of_one_method_alone():
    settings = ("gradmem.memory_vectors=3", "gradmem.training.steps=7", "rmt.memory_vectors=5")
    named = {"methods": ("gradmem", "rmt")}
    assert plan("gradmem", *settings, **named).parameters.memory_vectors == 3
    assert plan("rmt", *settings, **named).parameters.memory_vectors == 5
    assert plan("gradmem", *settings, **named).training.steps == 7
    assert plan("rmt", *settings, **named).training.steps == 20_000


def test_no_steps_is_no_training():
    assert plan("gradmem", "training.steps=0").training is None
    assert plan("gradmem", train=False).training is None


# ------------------------------------------------------------------------- found before weights are read


def test_a_context_longer_than_the_positions_is_refused(tmp_path, local_task, model):
    write_rows(tmp_path / "test.jsonl", 10, words=60)
    with pytest.raises(UserError, match="own has 6. tokens, but gradmem has room for .* in the 64 positions of"):
        plan(task=local_task, backbone=str(model))
    local_task.write_text(local_task.read_text() + "  truncate_contexts: true\n")
    cut = plan(task=local_task, backbone=str(model))
    # Memory, query and answer (32 tokens and a quarter more of the query's two or three) take the rest, and the
    # context's last token is not run.
    assert cut.context_tokens[1] == cut.max_context_tokens == 64 - cut.parameters.memory_vectors + 1
    ceiling = plan("full_kv", task=local_task, backbone=str(model))
    assert ceiling.max_context_tokens < 64 - 32


@pytest.mark.parametrize(
    ("method", "settings", "budget"),
    [
        ("no_memory", [], Budget()),
        ("mean_pool", [], Budget(positions=4)),
        ("truncated_text", [], Budget(positions=8)),
        ("truncated_text", [], Budget(bytes=8)),
        ("armt", ["armt.segment_tokens=16", "armt.memory_vectors=4"], Budget()),
    ],
)
def test_a_context_may_be_longer_than_the_positions_where_no_sequence_is(
    tmp_path, local_task, model, method, settings, budget
):
    write_rows(tmp_path / "test.jsonl", 10, words=3000)
    found = plan(method, *settings, task=local_task, backbone=str(model), budget=budget)
    assert found.context_tokens[1] > 3000 and found.footprint.read_positions <= 9


def test_a_footprint_that_does_not_fit_at_length_has_as_much_room_as_positions(tmp_path, local_task, model):
    write_rows(tmp_path / "test.jsonl", 10, words=3000)
    for method, *settings in (("full_kv",), ("gradmem",), ("armt", "armt.segment_tokens=64"), ("truncated_text",)):
        with pytest.raises(UserError, match=f"300. tokens, but {method} has room for .. in the 64 positions"):
            plan(method, *settings, task=local_task, backbone=str(model))


def test_no_room_for_any_context_is_refused():
    with pytest.raises(UserError, match="12 positions of llama-1x32 leave no room for a context"):
        plan("gradmem", "backbone.max_positions=12")


def test_a_curriculum_is_checked_before_it_is_trained_on():
    with pytest.raises(UserError, match="has no key 'pears'. Did you mean 'pairs'"):
        plan("gradmem", "training.curriculum=[{task: {pears: 1}}]")
    with pytest.raises(UserError, match="has no key 'curriculum.0.tsk'. Did you mean 'task'"):
        plan("gradmem", "training.curriculum=[{tsk: {pairs: 1}}]")


def test_training_needs_data_to_train_on(tmp_path, local_task, model):
    local_task.write_text(local_task.read_text().replace("train: train.jsonl, ", ""))
    with pytest.raises(UserError, match="own.yaml has no data for 'train'"):
        plan(task=local_task, backbone=str(model))
    assert plan(task=local_task, backbone=str(model), train=False).training is None


def test_a_tokenizer_that_cannot_write_the_answers_is_refused(local_task):
    for split in ("train", "test"):
        rows = [{"context": f"{row}", "query": "?", "target": "§§"} for row in range(9)]
        (local_task.parent / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = command("run", "--method", "no_memory", "--task", local_task, "--backbone", "kv_recall", "--dry-run")
    assert done.code == 2
    assert "The tokenizer of kv_recall cannot write '§§' and 8 more of 9 answers of own" in done.errors


def test_answers_that_are_longer_than_what_may_be_generated_are_told(local_task):
    for split in ("train", "test"):
        rows = [{"context": f"{row}", "query": "?", "target": "a" * (28 + row)} for row in range(9)]
        (local_task.parent / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = command("run", "--method", "no_memory", "--task", local_task, "--backbone", "kv_recall", "--dry-run")
    # Of 28 to 36 characters, each a token behind the one of the delimiter.
    assert done.code == 0 and "5 of the 9 answers of own that were looked at are longer than the 32 tok" in done.errors

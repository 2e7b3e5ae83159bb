"""By what a run is known from any other."""

import json
from shutil import copytree

import pytest
from commands import command
from planned import SETTINGS, edit, make_model, make_task, plan, write_rows

from gradmem_bench.config import Budget
from gradmem_bench.experiment import Known, resolve
from gradmem_bench.hashing import file_hash
from gradmem_bench.plan import Options
from gradmem_bench.registry import resolve as find
from gradmem_bench.tasks.sources import DATA_VARIABLE


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def local_task(tmp_path):
    return make_task(tmp_path)


def test_a_run_has_a_folder_of_its_own_for_everything_that_its_result_depends_on(tmp_path):
    same = plan("gradmem").folder(tmp_path)
    assert plan("gradmem").folder(tmp_path) == same
    others = [
        plan("gradmem", "inner_steps=2"),
        plan("gradmem", "training.steps=9"),
        plan("gradmem", "task.noise=1"),
        plan("gradmem", "backbone.init_std=0.2"),
        plan("gradmem", backbone="llama-2x32"),
        plan("gradmem", seed=1),
        plan("gradmem", limit=5),
        plan("gradmem", dtype="bfloat16"),
        plan("gradmem", budget=Budget(positions=8)),
        plan("gradmem", budget=Budget(positions=8, state_dtype="int8")),
        plan("gradmem", train=False),
        plan("rmt"),
    ]
    folders = [other.folder(tmp_path) for other in others]
    assert len({same, *folders}) == len(others) + 1
    assert {folder.parent for folder in folders} == {tmp_path / "kv_retrieval"}


def test_what_plans_have_in_common_is_read_once_and_makes_the_same_plans():
    def planned(known, *settings, **options):
        given = Options("llama-1x32", settings=(*SETTINGS, *settings), **options)
        return resolve(find("method", "gradmem"), find("task", "kv_retrieval"), given, known)

    known = Known()
    first, second = planned(known), planned(known, budget=Budget(positions=3))
    assert second.task is first.task and second.shape is first.shape
    assert (first.config_hash, second.config_hash) == (
        plan("gradmem").config_hash,
        plan("gradmem", budget=Budget(positions=3)).config_hash,
    )
    for other in (planned(known, "task.alphabet=9"), planned(known, "backbone.init_std=0.3")):
        assert other.shape is not first.shape
        assert other.config_hash not in (first.config_hash, second.config_hash)


@pytest.mark.parametrize("changed", ["train.jsonl", "test.jsonl"])
def test_other_data_make_another_run(tmp_path, local_task, model, changed):
    before = plan(task=local_task, backbone=str(model)).config_hash
    assert plan(task=local_task, backbone=str(model)).config_hash == before
    write_rows(tmp_path / changed, 12)
    assert plan(task=local_task, backbone=str(model)).config_hash != before


def hashes(*arguments, **options) -> tuple[str, str]:
    """What names the run's folder, and what names its training."""
    found = plan(*arguments, **options)
    return found.config_hash, found.training_hash


@pytest.mark.parametrize(
    ("line", "trained_anew"),
    [
        ("doc_to_text: '{{query}}!'", True),
        ("target_delimiter: ''", True),
        ("generation_kwargs: {until: [], max_gen_toks: 8}", True),
        ("generation_kwargs: {until: ['|'], max_gen_toks: 32}", False),
        ("metadata: {normalize_answers: false}", False),
        ("metadata: {truncate_contexts: true}", True),
    ],
)
def test_an_edited_task_of_ones_own_is_another_run(local_task, model, line, trained_anew):
    edit(local_task, "metadata:\n  training: {steps: 3, batch_size: 4}\n", "")
    before = hashes(task=local_task, backbone=str(model))
    key = line.partition(":")[0]
    kept = [one for one in local_task.read_text().splitlines() if not one.startswith(f"{key}:")]
    local_task.write_text("\n".join([*kept, line, ""]))
    after = hashes(task=local_task, backbone=str(model))
    assert (after[0] != before[0], after[1] != before[1]) == (True, trained_anew)


def test_what_is_only_told_of_a_task_is_no_part_of_a_run(local_task, model):
    before = hashes(task=local_task, backbone=str(model))
    edit(local_task, "metadata:\n", "metadata:\n  description: boxes\n  citation: a paper\n")
    assert hashes(task=local_task, backbone=str(model)) == before


def test_another_validation_file_is_another_training(tmp_path, local_task, model):
    write_rows(tmp_path / "valid.jsonl", 5)
    edit(local_task, "test: test.jsonl}\n", "test: test.jsonl, valid: valid.jsonl}\nvalidation_split: valid\n")
    before = hashes(task=local_task, backbone=str(model))
    untrained = hashes(task=local_task, backbone=str(model), train=False)
    write_rows(tmp_path / "valid.jsonl", 6)
    after = hashes(task=local_task, backbone=str(model))
    assert after[0] != before[0] and after[1] != before[1]
    assert hashes(task=local_task, backbone=str(model), train=False) == untrained


@pytest.mark.parametrize("file", ["own_class.py", "own_prompt.py"])
def test_another_body_of_a_tasks_class_or_function_is_another_run(tmp_path, local_task, model, forgotten, file):
    (tmp_path / "own_class.py").write_text(
        "from gradmem_bench.tasks.documents import Documents\n\n\nclass Own(Documents):\n    pass\n"
    )
    (tmp_path / "own_prompt.py").write_text("def ask(row):\n    return row['query']\n")
    edit(local_task, "metadata:\n", "doc_to_text: !function own_prompt.ask\nmetadata:\n  class: own_class:Own\n")
    before = hashes(task=local_task, backbone=str(model))
    assert hashes(task=local_task, backbone=str(model)) == before
    (tmp_path / file).write_text((tmp_path / file).read_text() + "# changed\n")
    after = hashes(task=local_task, backbone=str(model))
    assert after[0] != before[0] and after[1] != before[1]


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer_config.json"])
def test_a_backbone_that_was_replaced_under_its_name_makes_another_run(tmp_path, local_task, model, file):
    folder = copytree(model, tmp_path / "lm")
    (folder / "model.safetensors").write_bytes(b"first")
    before = hashes(task=local_task, backbone=str(folder))
    (folder / "pretraining.json").write_text("{}")
    assert hashes(task=local_task, backbone=str(folder)) == before
    kept = (folder / file).read_bytes()
    (folder / file).write_bytes(kept + b" \n")
    after = hashes(task=local_task, backbone=str(folder))
    assert after[0] != before[0] and after[1] != before[1]
    (folder / file).write_bytes(kept)
    assert hashes(task=local_task, backbone=str(folder)) == before


def test_another_tokenizer_of_a_random_backbone_is_another_run(tmp_path, local_task, model):
    folder = copytree(model, tmp_path / "letters")
    given = ("gradmem", f"backbone.tokenizer={folder}")
    before = hashes(*given, task=local_task)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    assert hashes(*given, task=local_task)[1] != before[1]


def test_what_is_built_in_is_known_by_its_version():
    for found in (plan("gradmem"), plan("gradmem", backbone="kv_recall")):
        configuration = found.configuration()
        assert {"declaration", "validation_hash"}.isdisjoint(configuration["task"])
        assert (found.source_hash, found.task_hashes, found.backbone_contents) == (None, None, None)


def test_a_file_that_a_built_in_task_is_selected_on_alone_is_a_part_of_what_a_run_is(tmp_path, monkeypatch):
    folder = tmp_path / "yurakuratov" / "babilong_qa4_0k"
    folder.mkdir(parents=True)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    row = {"query": "What is north of the garden?", "target": "bedroom"}

    def given(*splits: str) -> dict:
        for split in splits:
            rows = [row | {"context": f"The {split} {number} is north of the garden."} for number in range(4)]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        return plan(task="babi_qa4", backbone="wiki_2m").configuration()["task"]

    # Without a test split, what is selected on is held out of what is trained on.
    assert "validation_hash" not in given("train", "valid")
    before = given("test")
    assert before["validation_hash"] == file_hash(folder / "valid.jsonl") != before["hash"]


def test_two_tasks_of_one_name_are_refused_in_one_command(tmp_path, local_task, model):
    given = ["--method=no_memory", "--backbone", model, "--output", tmp_path / "runs", "--dry-run"]
    other = copytree(tmp_path, tmp_path.with_name("others")) / local_task.name
    # One file under two names is one task.
    again = f"{tmp_path}/../{tmp_path.name}/{local_task.name}"
    done = command("run", *given, "--task", local_task, "--task", again)
    assert (done.code, done.errors) == (0, "")
    done = command("run", *given, "--task", local_task, "--task", other)
    assert done.code == 2
    told = " ".join(done.errors.split())
    assert f"{local_task} and {other} both declare a task 'own'" in told and "give one another name" in told

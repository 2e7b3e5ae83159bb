"""The very same YAML files, read by lm-eval."""

import json
from pathlib import Path

import pytest

from gradmem_bench.tasks.declaration import load_task

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install gradmem-bench[lm-eval]")

TASKS = Path(__file__).parents[2] / "tasks"
STORIES = [
    {"context": "Mary moved to the hall. ", "query": "Where is Mary? ", "target": "hall"},
    {"context": "John left. Mary went to the garden. ", "query": "Where is Mary? ", "target": "garden"},
    {"context": "Mary moved to the hall. ", "query": "Who moved? ", "target": "Mary"},
]
PARAGRAPHS = [
    {
        "id": "q1",
        "title": "Rome",
        "context": "Rome fell in 476. Goths had come.",
        "question": "When did Rome fall?",
        "answers": {"text": ["476", "in 476"], "answer_start": [13, 10]},
    }
]


@pytest.fixture(scope="module")
def manager():
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASKS), include_defaults=False)


def read_by_lm_eval(manager, name):
    return manager.load([name])["tasks"][name]


def local_variant(folder: Path, name: str, splits: dict[str, list[dict]]) -> Path:
    """The shipped file of a task, on local data."""
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = "\n".join(f"    {split}: {folder / split}.jsonl" for split in splits)
    path = folder / f"{name}_here.yaml"
    path.write_text(
        f"include: {TASKS / name}.yaml\ntask: {name}_here\ndataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n{files}\n"
    )
    return path


def assert_same(theirs, ours) -> None:
    """lm-eval's documents of the reported split are our queries, and are asked without their context."""
    queries = {query.id: (document, query) for document in ours.documents("test") for query in document.queries}
    rows = list(theirs.eval_docs)
    assert len(rows) == len(queries) > 0
    by_place = {(document.context, query.text, query.targets) for document, query in queries.values()}
    for row in rows:
        assert (row["context"], theirs.doc_to_text(row), tuple(theirs.doc_to_target(row))) in by_place
        assert theirs.config.target_delimiter == ours.target_delimiter
        prompt = theirs.fewshot_context(row, num_fewshot=0)
        assert prompt == theirs.doc_to_text(row)
        assert row["context"] not in prompt
    assert tuple(theirs.config.generation_kwargs["until"]) == ours.until
    assert theirs.config.generation_kwargs["max_gen_toks"] == ours.max_new_tokens


def test_lm_eval_finds_every_task_and_the_group_but_not_what_they_share(manager):
    assert set(manager.all_tasks) == {path.stem for path in TASKS.glob("*.yaml")}
    assert manager.all_groups == ["babi"]


def test_key_value_retrieval_is_the_same_in_both(manager):
    theirs = read_by_lm_eval(manager, "kv_retrieval")
    ours = load_task(TASKS / "kv_retrieval.yaml")
    assert_same(theirs, ours)
    rows = list(theirs.eval_docs)
    first = ours.documents("test")[0]
    assert [row["id"] for row in rows[:8]] == [query.id for query in first.queries]
    assert theirs.process_results(rows[0], [first.queries[0].targets[0]]) == {"exact_match": 1.0, "f1": 1.0}
    assert theirs.process_results(rows[0], ["~~"]) == {"exact_match": 0.0, "f1": 0.0}


def test_babi_on_local_data_is_the_same_in_both(manager, tmp_path):
    path = local_variant(tmp_path, "babi_qa1", {"train": STORIES, "valid": STORIES[:1], "test": STORIES})
    (theirs,) = manager.load([str(path)])["tasks"].values()
    ours = load_task(path)
    assert_same(theirs, ours)
    assert [len(document.queries) for document in ours.documents("test")] == [2, 1]
    row = list(theirs.eval_docs)[0]
    assert theirs.process_results(row, [" The hall."]) == {"exact_match": 1.0, "f1": 1.0}
    assert theirs.process_results(row, ["the great hall"])["exact_match"] == 0.0
    # Two shared words of one and two: precision 1/2, recall 1.
    assert theirs.process_results(row, ["the great hall"])["f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", ["squad_removed", "squad_removed_short"])
def test_squad_on_local_data_is_the_same_in_both(manager, tmp_path, name):
    path = local_variant(tmp_path, name, {"train": PARAGRAPHS, "validation": PARAGRAPHS})
    (theirs,) = manager.load([str(path)])["tasks"].values()
    assert_same(theirs, load_task(path))
    row = list(theirs.eval_docs)[0]
    assert theirs.process_results(row, ["In 476"]) == {"exact_match": 1.0, "f1": 1.0}

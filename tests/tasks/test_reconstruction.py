from pathlib import Path

import pytest
from datasets import Dataset

from gradmem_bench.tasks.declaration import load_task
from gradmem_bench.tasks.reconstruction import dataset, passages, words_8

TASKS = Path(__file__).parents[2] / "tasks"


@pytest.mark.parametrize("settings", [{}, {"pairs": 3, "value_length": 2, "noise": 1.0}])
def test_the_answer_is_the_context_and_fits_into_what_is_generated(settings):
    task = load_task(TASKS / "kv_rebuild.yaml", settings)
    tokenizer = task.tokenizer()
    for document in task.documents("test")[:50]:
        [query] = document.queries
        [target] = query.targets
        assert document.context == target + "|" and query.text == "|"
        assert task.max_new_tokens == len(tokenizer(target).input_ids) + 1
    assert task.source("test").rows == len(task.documents("test")) == 400
    assert task.independent_values is None


def test_other_programs_read_the_same_rows():
    rows = dataset(pairs=2, key_length=1, value_length=1, alphabet=16, test_contexts=5)["test"]
    documents = load_task(TASKS / "kv_rebuild.yaml", {"test_contexts": 5}).documents("test")
    assert [row["context"] for row in rows] == [document.context for document in documents]
    assert [row["targets"] for row in rows] == [list(document.queries[0].targets) for document in documents]


def test_passages_are_a_paragraph_s_words_so_many_at_a_time():
    paragraphs = ["", "Rome fell in 476 .\n", "a b  c\td e f g h i j", "a b c d e f g h and on", "Rome fell in 476 .\n"]
    found = words_8(Dataset.from_dict({"context": paragraphs}))
    assert found["context"] == ["a b c d e f g h"] and found["targets"] == [["a b c d e f g h"]]
    four = passages(Dataset.from_dict({"context": paragraphs}), 4)
    assert four["context"] == ["Rome fell in 476", "a b c d", "e f g h"]
    # One of every paragraph before a second of any.
    pairs = passages(Dataset.from_dict({"context": ["a b c d e", "f g h i"]}), 2)
    assert pairs["context"] == ["a b", "f g", "c d", "h i"]


@pytest.mark.parametrize("words", [8, 64])
def test_squad_s_paragraphs_are_taken_apart_and_held_out(words, shared, monkeypatch):
    monkeypatch.setenv("GRADMEM_BENCH_DATA", str(shared / "data"))
    task = load_task(TASKS / f"text_reconstruction_{words}.yaml")
    documents = {split: task.documents(split) for split in ("train", "validation", "test")}
    for split, found in documents.items():
        assert len({document.context for document in found}) == len(found) > 50, split
        assert all(len(document.context.split()) == words for document in found)
        assert all([query.targets for query in document.queries] == [(document.context,)] for document in found)
    assert not {one.context for one in documents["train"]} & {one.context for one in documents["validation"]}

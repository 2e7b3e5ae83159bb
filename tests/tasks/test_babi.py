import json
from pathlib import Path

import pytest

from gradmem_bench.tasks.declaration import load_task

TASKS = Path(__file__).parents[2] / "tasks"


def test_stories_lose_the_space_at_their_end_and_nothing_else(tmp_path, monkeypatch):
    folder = tmp_path / "yurakuratov" / "babilong_qa1_0k"
    folder.mkdir(parents=True)
    row = {"context": "Mary moved to the hall.  John left. ", "query": "Where is Mary? ", "target": "hall"}
    (folder / "test.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setenv("GRADMEM_BENCH_DATA", str(tmp_path))
    (document,) = load_task(TASKS / "babi_qa1.yaml").documents("test")
    (query,) = document.queries
    assert (document.context, query.text, query.targets) == (
        "Mary moved to the hall.  John left.",
        "Where is Mary?",
        ("hall",),
    )


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_the_real_stories(shared, monkeypatch, number):
    monkeypatch.setenv("GRADMEM_BENCH_DATA", str(shared / "data"))
    task = load_task(TASKS / f"babi_qa{number}.yaml")
    train, validation, test = (task.documents(split) for split in ("train", "validation", "test"))
    rows = {split: task.source(split).rows for split in ("train", "validation", "test")}
    assert rows["train"] + rows["validation"] == {3: 925}.get(number, 9000)
    assert rows["test"] == 1000
    assert task.source("test").location == f"yurakuratov/babilong_qa{number}_0k/valid.jsonl"
    contexts = [document.context for document in [*train, *validation]]
    assert len(contexts) == len(set(contexts))
    assert all(context == context.strip() for context in contexts)
    # Independent count: rows of the file by their stripped context.
    lines = (shared / f"data/yurakuratov/babilong_qa{number}_0k/train.jsonl").read_text().splitlines()
    assert set(contexts) == {json.loads(line)["context"].strip() for line in lines}
    # Questions one to three ask for a place, and the place is named in the story.
    if number <= 3:
        assert all(query.targets[0] in document.context for document in test for query in document.queries)

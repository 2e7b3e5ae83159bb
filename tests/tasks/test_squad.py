import json
from pathlib import Path

import pytest

from gradmem_bench.tasks.declaration import load_task
from gradmem_bench.tasks.squad import sentence

TASKS = Path(__file__).parents[2] / "tasks"
PARAGRAPH = (
    'Ann left. "Why?" Bob asked Dr. J. Li of the U.S. Navy. It cost 3.5 million (or more!) in 1969. She came back'
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Ann", "Ann left."),
        ("Why", '"Why?"'),
        ("Navy", "Bob asked Dr. J. Li of the U.S. Navy."),
        ("Dr. J. Li", "Bob asked Dr. J. Li of the U.S. Navy."),
        ("3.5 million", "It cost 3.5 million (or more!) in 1969."),
        ("1969", "It cost 3.5 million (or more!) in 1969."),
        ("back", "She came back"),
        ("1969. She", "It cost 3.5 million (or more!) in 1969. She came back"),
    ],
)
def test_the_sentence_around_an_answer(answer, expected):
    assert sentence(PARAGRAPH, PARAGRAPH.index(answer), len(answer)) == expected


def test_the_place_decides_where_an_answer_stands_twice():
    text = "Rome fell. Rome rose."
    assert sentence(text, 0, 4) == "Rome fell."
    assert sentence(text, 11, 4) == "Rome rose."


@pytest.fixture
def articles(tmp_path, monkeypatch):
    """Two paragraphs with three questions, in the hub's layout."""
    folder = tmp_path / "rajpurkar" / "squad"
    folder.mkdir(parents=True)
    rome, oslo = "Rome fell in 476. Goths had come.", "Oslo is cold."
    rows = [
        ("q1", rome, "When did Rome fall?", ["476", "in 476", "476"], [13, 10, 13]),
        ("q2", oslo, " How is Oslo?", ["cold"], [8]),
        ("q3", rome, "Who had come?", ["Goths"], [18]),
    ]
    columns = ("id", "context", "question", "answers")
    lines = [
        json.dumps(dict(zip(columns, (*row[:3], {"text": row[3], "answer_start": row[4]}), strict=True)))
        for row in rows
    ]
    (folder / "validation.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("GRADMEM_BENCH_DATA", str(tmp_path))


def test_questions_of_one_paragraph_share_its_document(articles):
    documents = load_task(TASKS / "squad_removed.yaml").documents("test")
    assert [document.context for document in documents] == ["Rome fell in 476. Goths had come.", "Oslo is cold."]
    assert [[query.id for query in document.queries] for document in documents] == [["q1", "q3"], ["q2"]]
    first, other = documents[0].queries[0], documents[1].queries[0]
    assert first.text == "Question: When did Rome fall?\nAnswer:"
    assert first.targets == ("476", "in 476")
    assert other.text == "Question: How is Oslo?\nAnswer:"


def test_the_short_task_keeps_the_answers_sentence_and_all_reference_answers(articles):
    documents = load_task(TASKS / "squad_removed_short.yaml").documents("test")
    assert [(document.context, document.queries[0].targets) for document in documents] == [
        ("Rome fell in 476.", ("476", "in 476")),
        ("Oslo is cold.", ("cold",)),
        ("Goths had come.", ("Goths",)),
    ]


@pytest.mark.parametrize("name", ["squad_removed", "squad_removed_short"])
def test_the_real_articles(shared, monkeypatch, name):
    monkeypatch.setenv("GRADMEM_BENCH_DATA", str(shared / "data"))
    task = load_task(TASKS / f"{name}.yaml")
    splits = {split: task.documents(split) for split in ("train", "validation", "test")}
    assert task.source("train").rows + task.source("validation").rows == 6620
    assert task.source("test").rows == 1811
    contexts = {split: {document.context for document in documents} for split, documents in splits.items()}
    assert not contexts["train"] & contexts["validation"]
    assert not contexts["train"] & contexts["test"]
    paragraphs = {
        row["context"]
        for split in ("train", "validation")
        for row in map(json.loads, (shared / f"data/rajpurkar/squad/{split}.jsonl").read_text().splitlines())
    }
    found = set().union(*contexts.values())
    answered = [
        query.targets[0] in document.context
        for documents in splits.values()
        for document in documents
        for query in document.queries
    ]
    assert all(answered)
    if name == "squad_removed":
        assert found == paragraphs
    else:
        assert sum(map(len, found)) / len(found) < 250  # characters; a paragraph has some 800
        assert all(any(context in paragraph for paragraph in paragraphs) for context in list(found)[:200])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("squad_context_question", "Rome fell in 476. Goths had come.\nQuestion: When did Rome fall?"),
        ("squad_question_context", "Question: When did Rome fall?\nRome fell in 476. Goths had come."),
    ],
)
def test_a_question_may_be_written_with_its_paragraph(articles, name, expected):
    documents = load_task(TASKS / f"{name}.yaml").documents("test")
    assert len(documents) == 3 and documents[0].context == expected
    # READ is asked nothing but for the answer.
    assert [query.text for document in documents for query in document.queries] == ["Answer:"] * 3
    assert documents[0].queries[0].targets == ("476", "in 476")

import hashlib
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from gradmem_bench.errors import UserError
from gradmem_bench.tasks.base import Document, Query
from gradmem_bench.tasks.declaration import load_task

ROWS = [
    {"context": "Ann is in Rome.", "query": "Where is Ann?", "target": "Rome"},
    {"context": "Bob has a cat.", "query": "What has Bob?", "target": "a cat"},
    {"context": "Ann is in Rome.", "query": "Who is in Rome?", "target": "Ann"},
]


def lines(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def stories(count: int, start: int = 0) -> list[dict]:
    return [
        {"context": f"Story {number}.", "query": f"Which {letter}?", "target": str(number)}
        for number in range(start, start + count)
        for letter in "ab"
    ]


def declare(folder: Path, **values) -> Path:
    path = folder / "mine.yaml"
    base = {"task": "mine", "training_split": "train", "validation_split": "valid", "test_split": "test"}
    base |= {"generation_kwargs": {"until": [], "max_gen_toks": 32}}
    path.write_text(yaml.safe_dump(base | values))
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of the data set `someone/mine` below the data folder, and no hub."""
    monkeypatch.setenv("GRADMEM_BENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = tmp_path / "data" / "someone" / "mine"
    path.mkdir(parents=True)
    return path


def local_task(folder: Path, train: str = lines(ROWS), **values):
    """A task on one local file that is train, written as `train`."""
    (folder / "train.jsonl").write_text(train)
    return load_task(
        declare(
            folder,
            dataset_path="json",
            dataset_kwargs={"data_files": {"train": "train.jsonl"}},
            test_split="train",
            validation_split="train",
            **values,
        )
    )


# ------------------------------------------------------------------------------------------- grouping


def test_rows_of_one_context_are_one_document_in_order_of_appearance(tmp_path):
    rome = hashlib.sha256(b"Ann is in Rome.").hexdigest()[:16]
    cat = hashlib.sha256(b"Bob has a cat.").hexdigest()[:16]
    assert local_task(tmp_path).documents("test") == [
        Document(
            rome,
            "Ann is in Rome.",
            (Query("train-0", "Where is Ann?", ("Rome",)), Query("train-2", "Who is in Rome?", ("Ann",))),
        ),
        Document(cat, "Bob has a cat.", (Query("train-1", "What has Bob?", ("a cat",)),)),
    ]


def test_the_rows_own_ids_and_every_target_are_kept(tmp_path):
    row = {"id": 7, "context": "c ", "query": "q ", "targets": ["x", " y"]}
    (document,) = local_task(tmp_path, lines([row])).documents("test")
    assert document.queries == (Query("7", "q ", ("x", " y")),)
    assert document.context == "c "


@pytest.mark.parametrize(
    ("values", "text", "targets"),
    [
        ({"doc_to_text": "Q: {{query}}\n{{asked_by}}:\n"}, "Q: Where?\nEve:\n", ("here", "there")),
        ({"doc_to_text": "asked_by"}, "Eve", ("here", "there")),
        ({"doc_to_target": "best"}, "Where?", ("there",)),
        ({"doc_to_target": "in {{best}}"}, "Where?", ("in there",)),
        ({"doc_to_target": "{{targets}}"}, "Where?", ("here", "there")),
    ],
)
def test_templates_and_columns_mean_what_they_mean_in_lm_eval(tmp_path, values, text, targets):
    row = {"context": "c", "query": "Where?", "asked_by": "Eve", "targets": ["here", "there"], "best": "there"}
    (document,) = local_task(tmp_path, lines([row]), **values).documents("test")
    assert (document.queries[0].text, document.queries[0].targets) == (text, targets)


@pytest.mark.parametrize("beside", [True, False], ids=["beside the YAML", "importable"])
def test_functions_are_found_beside_the_yaml_first_and_then_as_modules(tmp_path, monkeypatch, beside):
    module = "def process(dataset):\n    return dataset.map(lambda row: {{'targets': [row['target'] + ' ({})']}})\n"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "own_rules.py").write_text(module.format("module"))
    if beside:
        (tmp_path / "own_rules.py").write_text(module.format("file"))
    monkeypatch.syspath_prepend(elsewhere)
    local_task(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(path.read_text() + "process_docs: !function own_rules.process\n")
    expected = "Rome (file)" if beside else "Rome (module)"
    assert load_task(path).documents("test")[0].queries[0].targets == (expected,)


# --------------------------------------------------------------------------------------------- splits


def test_with_all_three_splits_each_is_the_datas_own(folder, tmp_path):
    for split, count in {"train": 40, "valid": 3, "test": 2}.items():
        (folder / f"{split}.jsonl").write_text(lines(stories(count)))
    task = load_task(declare(tmp_path, dataset_path="someone/mine"))
    assert [len(task.documents(split)) for split in ("train", "validation", "test")] == [40, 3, 2]
    assert task.source("validation").location == "someone/mine/valid.jsonl"
    content = hashlib.sha256((folder / "valid.jsonl").read_bytes()).hexdigest()
    assert (task.source("validation").content_hash, task.source("validation").rows) == (content, 6)
    assert task.source("validation").revision is None


@pytest.mark.parametrize("declared", [None, "test"], ids=["none declared", "file missing"])
def test_without_a_test_split_validation_is_held_out_of_train(folder, tmp_path, declared):
    (folder / "train.jsonl").write_text(lines(stories(200)))
    (folder / "valid.jsonl").write_text(lines(stories(30, start=1000)))
    task = load_task(declare(tmp_path, dataset_path="someone/mine", test_split=declared))
    train, validation, test = (task.documents(split) for split in ("train", "validation", "test"))
    assert {document.context for document in test} == {f"Story {number}." for number in range(1000, 1030)}
    by_hash = sorted((f"Story {n}." for n in range(200)), key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    assert {document.context for document in validation} == set(by_hash[:10])
    assert {document.context for document in train} == set(by_hash[10:])
    assert all(len(document.queries) == 2 for document in [*train, *validation])
    assert task.source("test").location == "someone/mine/valid.jsonl"
    assert task.source("validation").location == "someone/mine/train.jsonl (held-out part)"
    assert task.source("train").rows + task.source("validation").rows == 400


def test_at_most_500_documents_are_held_out_and_at_least_one(folder, tmp_path):
    (folder / "valid.jsonl").write_text(lines(stories(1)))
    (folder / "train.jsonl").write_text(lines(stories(11_000)))
    path = declare(tmp_path, dataset_path="someone/mine")
    assert len(load_task(path).documents("validation")) == 500
    (folder / "train.jsonl").write_text(lines(stories(3)))
    assert len(load_task(path).documents("validation")) == 1
    (folder / "train.jsonl").write_text(lines(stories(1)))
    with pytest.raises(UserError, match="'train' has 1 context, too few"):
        load_task(path).documents("validation")


def test_a_task_without_training_data_can_be_evaluated_and_says_why_it_cannot_be_trained(folder, tmp_path):
    (folder / "test.jsonl").write_text(lines(ROWS))
    task = load_task(declare(tmp_path, dataset_path="someone/mine", training_split=None))
    assert len(task.documents("test")) == 2
    with pytest.raises(UserError, match="no data for 'train': it declares no training_split"):
        task.documents("train")
    task = load_task(declare(tmp_path, dataset_path="someone/mine"))
    with pytest.raises(UserError, match=r"no file for its training_split 'train' .*someone/mine/train"):
        task.documents("validation")


def test_data_that_are_nowhere_are_one_sentence_with_both_places(folder, tmp_path, monkeypatch):
    path = declare(tmp_path, dataset_path="someone/no-such-data")
    with pytest.raises(UserError) as error:
        load_task(path).documents("train")
    for part in (f"{tmp_path}/data/someone/no-such-data/train", "hub", "set GRADMEM_BENCH_DATA", "go online"):
        assert part in str(error.value)
    monkeypatch.delenv("GRADMEM_BENCH_DATA")
    with pytest.raises(UserError, match="GRADMEM_BENCH_DATA is not set"):
        load_task(path).documents("train")


# ---------------------------------------------------------------------------------------------- files


def test_jsonl_its_compressed_form_and_parquet_give_the_same_documents(folder, tmp_path):
    path = declare(tmp_path, dataset_path="someone/mine", test_split="train", validation_split="train")
    found = []
    for write in ("jsonl", "xz", "parquet"):
        for old in folder.iterdir():
            old.unlink()
        if write == "jsonl":
            (folder / "train.jsonl").write_text(lines(ROWS))
        elif write == "xz":
            (folder / "train.jsonl.xz").write_bytes(lzma.compress(lines(ROWS).encode()))
        else:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "train.parquet")
        task = load_task(path)
        found.append(task.documents("test"))
        (file,) = folder.iterdir()
        assert task.source("test").location == f"someone/mine/{file.name}"
        assert task.source("test").content_hash == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 2


def test_a_file_that_was_written_anew_gets_its_new_hash(folder, tmp_path):
    path = declare(tmp_path, dataset_path="someone/mine", test_split="train", validation_split="train")
    (folder / "train.jsonl").write_text(lines(ROWS))
    before = load_task(path).source("test").content_hash
    (folder / "train.jsonl").write_text(lines(ROWS[:2]))
    assert load_task(path).source("test").content_hash != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "train.jsonl holds no rows"),
        (lines(ROWS) + '{"context": "half a li', "train.jsonl, line 4 is not a JSON object"),
        (lines(ROWS) + "\n" + lines(ROWS), "train.jsonl, line 4 is not a JSON object"),
        (lines([ROWS]), "train.jsonl, line 1: a JSON object was expected, and this is a list"),
        (lines([*ROWS, {"context": "c", "query": "q"}]), "train.jsonl, line 4: the column 'target'"),
        (lines([{"text": "c", "query": "q", "target": "t"}]), "line 1: the column 'context' should hold a text"),
        (lines([{"context": "c", "query": "q", "answer": "t"}]), "line 1: 'targets' (or 'target') should hold a text"),
        (lines([ROWS[0], {**ROWS[1], "context": None}]), "'context' should hold a text, and holds None"),
        (lines([{"context": "c", "query": "q", "targets": []}]), "line 1: 'targets' should hold"),
        (lines([{"context": "c", "query": "q", "targets": ["a", 3]}]), "line 1: 'targets' should hold"),
        (lines([{"context": "c", "target": "t"}]), "line 1: doc_to_text is '{{query}}', but 'query' is undefined"),
        (lines([{"id": 1, **row} for row in ROWS]), "line 2: the id '1' stands at line 1 already"),
    ],
)  # fmt: skip
def test_damaged_rows_name_their_file_and_line(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        local_task(tmp_path, text).documents("test")
    assert message in str(error.value)
    assert "train.jsonl" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", b'{"context": "\xff"}\n', "line 1 is not UTF-8"),
        ("train.jsonl.xz", lzma.compress(lines(ROWS * 5000).encode())[:-200], "is damaged"),
        ("train.jsonl.xz", b"no xz at all", "is damaged"),
        ("train.parquet", b"PAR1 and nothing else", "is no Parquet file"),
    ],
)
def test_damaged_files_are_named(folder, tmp_path, name, content, message):
    (folder / name).write_bytes(content)
    task = load_task(declare(tmp_path, dataset_path="someone/mine", test_split="train"))
    with pytest.raises(UserError) as error:
        task.documents("test")
    assert message in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("key", ["doc_to_text", "doc_to_target"])
def test_a_column_that_is_not_there_is_not_taken_for_the_text(tmp_path, key):
    with pytest.raises(
        UserError, match=f"train.jsonl, line 1: {key} names the column 'answr'; the columns are .*query"
    ):
        local_task(tmp_path, **{key: "answr"}).documents("test")


def test_a_column_that_process_docs_needs_and_a_file_that_is_missing_are_named(tmp_path):
    local_task(tmp_path, lines([{"context": "c", "query": "q", "answer": "t"}]))
    path = tmp_path / "mine.yaml"
    plain = path.read_text()
    path.write_text(plain + "process_docs: !function gradmem_bench.tasks.babi.process_docs\n")
    with pytest.raises(UserError, match="train.jsonl has no column 'target'"):
        load_task(path).documents("test")
    path.write_text(plain + "process_docs: !function gradmem_bench.tasks.babi.process_doc\n")
    with pytest.raises(UserError, match="process_docs names the function 'gradmem_bench.tasks.babi.process_doc'"):
        load_task(path).documents("test")
    path.write_text(plain + "process_docs: gradmem_bench.tasks.babi.process_docs\n")
    with pytest.raises(UserError, match="a function was expected"):
        load_task(path).documents("test")
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(UserError, match="There is no data file .*train.jsonl"):
        load_task(path).documents("test")


def test_a_template_that_is_none_is_named(tmp_path):
    with pytest.raises(UserError, match="mine.yaml: doc_to_text is no jinja2 template"):
        local_task(tmp_path, doc_to_text="{{query").documents("test")


@pytest.mark.parametrize("text", ["context", "{{context}} {{query}}", "{% if query %}{{ context | upper }}{% endif %}"])
def test_a_query_that_holds_its_context_is_refused(tmp_path, text):
    with pytest.raises(UserError, match="mine.yaml: doc_to_text holds the context, which is removed before a query"):
        local_task(tmp_path, doc_to_text=text).documents("test")


@pytest.mark.parametrize(
    ("row", "declared", "message"),
    [
        ({"target": {"text": ["Rome"], "answer_start": [3]}}, {}, "line 1: 'targets' .* and holds {'text'"),
        ({"answers": {"text": ["Rome"]}}, {"doc_to_target": "answers"}, "'doc_to_target' should hold .* gives {'text'"),
        ({"target": 7}, {}, "'targets' .* should hold a text or a list of texts, and holds 7"),
        ({"targets": True}, {}, "'targets' should hold a text or a list of texts, and holds True"),
        ({"target": "Rome"}, {"doc_to_text": "{{query + 3}}"}, "line 1: doc_to_text is '{{query \\+ 3}}', which fails"),
        ({"target": "Rome", "query": "Ann is in Rome. Where is Ann?"}, {}, "line 1: the query holds the context"),
    ],
)
def test_what_is_no_answer_and_no_query_is_told_with_its_line(tmp_path, row, declared, message):
    rows = [{key: value for key, value in ROWS[0].items() if key != "target"} | row]
    with pytest.raises(UserError, match=message):
        local_task(tmp_path, lines(rows), **declared).documents("test")


def test_a_function_that_needs_a_column_and_a_file_that_is_no_python_are_named(tmp_path):
    local_task(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(path.read_text() + "doc_to_text: !function asks.ask\n")
    (tmp_path / "asks.py").write_text("def ask(doc):\n    return doc['question']\n")
    with pytest.raises(UserError, match="line 1 has no column 'question', which doc_to_text \\(asks.ask\\) needs"):
        load_task(path).documents("test")
    (tmp_path / "asks.py").write_text("def ask(doc)\n")
    with pytest.raises(UserError, match="doc_to_text names the function 'asks.ask', which cannot be imported"):
        load_task(path).documents("test")


def test_a_query_is_seen_where_train_has_it_with_its_context_and_what_is_held_out_is_not_train(folder):
    train = stories(40)
    again = [train[index] | {"target": "whatever"} for index in range(0, 80, 3)]
    (folder / "train.jsonl").write_text(lines(train))
    (folder / "valid.jsonl").write_text(lines([*again, *stories(2, start=100), train[0] | {"query": "Which c?"}]))
    task = load_task(declare(folder.parent, dataset_path="someone/mine", test_split=None))
    trained = {document.context for document in task.documents("train")}
    assert 0 < len(trained) < 40
    expected = {f"valid-{number}" for number, row in enumerate(again) if row["context"] in trained}
    assert task.seen_in_training("test") == expected
    assert not task.seen_in_training("validation")


def test_what_was_seen_is_not_known_without_training_data(tmp_path):
    (tmp_path / "test.jsonl").write_text(lines(ROWS))
    files = {"data_files": {"test": "test.jsonl"}}
    task = load_task(declare(tmp_path, dataset_path="json", dataset_kwargs=files, training_split=None))
    assert task.seen_in_training("test") is None

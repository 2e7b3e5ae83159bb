import json
import lzma
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest
from methods.matrix import byte_tokenizer

from gradmem_bench.corpus import Stream, read_texts, stream, text_files
from gradmem_bench.errors import UserError


def write_rows(path, texts, column="text"):
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))


def test_every_kind_of_file_is_read(tmp_path):
    texts = ["one, é", "two\nlines", "three"]
    write_rows(tmp_path / "a.jsonl", texts)
    write_rows(tmp_path / "b.json", [*texts, ""])
    (tmp_path / "c.jsonl.xz").write_bytes(lzma.compress((tmp_path / "a.jsonl").read_bytes()))
    pd.DataFrame({"title": ["x", "y", "z"], "text": texts}).to_parquet(tmp_path / "d.parquet")
    (tmp_path / "e.txt").write_text("one, é\n\n\ntwo\nlines\n\nthree\n", encoding="utf-8")
    (tmp_path / "ignored.md").write_text("not text")
    files = text_files(tmp_path)
    assert [file.name for file in files.training] == ["a.jsonl", "b.json", "c.jsonl.xz", "d.parquet", "e.txt"]
    assert all(read_texts(file) == texts for file in files.training)
    assert files.hashes()["e.txt"] == sha256((tmp_path / "e.txt").read_bytes()).hexdigest()


def test_files_named_for_it_are_held_out(tmp_path):
    write_rows(tmp_path / "train-0.jsonl", ["a"])
    write_rows(tmp_path / "train-1.jsonl", ["b"])
    write_rows(tmp_path / "validation.jsonl", ["c"])
    write_rows(tmp_path / "test.jsonl", ["d"])
    files = text_files(tmp_path)
    assert list(files.documents(held_out=False)) == [["a"], ["b"]]
    assert list(files.documents(held_out=True)) == [["d"], ["c"]]
    # A file that is named alone is what it is asked to be.
    assert text_files(tmp_path / "validation.jsonl").training == (tmp_path / "validation.jsonl",)


def test_else_every_hundredth_document_is_held_out_across_files(tmp_path):
    write_rows(tmp_path / "a.jsonl", [f"a{row}" for row in range(130)])
    write_rows(tmp_path / "b.jsonl", [f"b{row}" for row in range(90)])
    files = text_files(tmp_path)
    held_out, trained = ([text for part in files.documents(side) for text in part] for side in (True, False))
    assert held_out == ["a99", "b69"]
    assert len(trained) == 218 and not set(held_out) & set(trained)


def test_too_little_or_wrong_text_is_refused_in_a_sentence(tmp_path):
    write_rows(tmp_path / "few.jsonl", [f"{row}" for row in range(99)])
    with pytest.raises(UserError, match="few.jsonl and its neighbours have no documents to hold out: give 100 or more"):
        list(text_files(tmp_path / "few.jsonl").documents(held_out=True))
    write_rows(tmp_path / "other.jsonl", ["a"], column="story")
    with pytest.raises(UserError, match="other.jsonl has no column 'text', only 'story'"):
        read_texts(tmp_path / "other.jsonl")
    write_rows(tmp_path / "numbers.jsonl", ["a", 5])
    with pytest.raises(UserError, match="numbers.jsonl, row 2: the column 'text' is no text"):
        read_texts(tmp_path / "numbers.jsonl")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(UserError, match="latin.txt is not UTF-8 text"):
        read_texts(tmp_path / "latin.txt")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty", tmp_path / "methods.py"):
        with pytest.raises(UserError, match=f"--data {path}"):
            text_files(path)


def test_documents_follow_one_another_behind_their_ends_and_each_token_is_predicted_once():
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    texts = ["abc", "é", "hello"]
    found = stream(iter([texts[:1], texts[1:]]), tokenizer)
    ids = [token for text in texts for token in (end, *tokenizer(text, add_special_tokens=False).input_ids)] + [end]
    assert found.ids.tolist() == ids and found.ids.dtype == np.uint16
    # é is two bytes.
    assert (found.documents, found.text_bytes, len(ids)) == (3, 10, 10 + 3 + 1)
    predicted, before = [], []
    for window in range(found.windows(4)):
        batch = found.batch([window], 4)
        assert batch.contexts.ids.shape == (1, 0)
        predicted += batch.targets.rows()[0]
        before += batch.queries.rows()[0]
    assert predicted == ids[1:]
    assert before == ids[0:-1:4]
    # Windows of several lengths make one batch, padded.
    batch = found.batch([0, 3], 4)
    assert batch.targets.rows() == [ids[1:5], ids[13:]]
    assert batch.context_of.tolist() == [0, 1]


def test_the_first_documents_that_make_so_many_tokens():
    found = stream(iter([["abc", "defg", "hi"]]), byte_tokenizer(), at_least=5)
    assert (found.documents, found.text_bytes, len(found.ids)) == (2, 7, 10)
    assert isinstance(found, Stream)

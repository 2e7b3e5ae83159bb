import itertools
import re
from collections import Counter
from pathlib import Path

import pytest
from scipy.stats import chisquare

from gradmem_bench.errors import UserError
from gradmem_bench.tasks.declaration import load_task
from gradmem_bench.tasks.kv_retrieval import SYMBOLS, dataset

PATH = Path(__file__).parents[2] / "tasks" / "kv_retrieval.yaml"


def task(**settings):
    return load_task(PATH, settings)


def parse(context: str, key_length: int, value_length: int) -> list[tuple[str, str]]:
    """The pairs of a context, read with a pattern rather than as they were made."""
    return re.findall(f"!([^!:|]{{{key_length}}}):([^!:|]{{{value_length}}})!", context)


@pytest.mark.parametrize(("pairs", "characters"), [(1, 8), (8, 57), (96, 673)])
def test_a_context_is_7_n_plus_1_characters(pairs, characters):
    (document,) = task(pairs=pairs).documents("test")[:1]
    assert len(document.context) == characters
    assert re.fullmatch(rf"(![0-9a-zA-Z]{{2}}:[0-9a-zA-Z]{{2}}!){{{pairs}}}\|", document.context)


@pytest.mark.parametrize("settings", [{}, {"key_length": 3, "value_length": 1, "alphabet": 16, "noise": 0.75}])
def test_every_pair_is_asked_once_and_answered_by_its_value(settings):
    lengths = settings.get("key_length", 2), settings.get("value_length", 2)
    for document in task(**settings).documents("train")[100:200]:
        pairs = parse(document.context, *lengths)
        assert len(pairs) == 8 == len(dict(pairs))
        asked = [(query.text, query.targets) for query in document.queries]
        assert asked == [(f"?!{key}:", (value,)) for key, value in pairs]
        assert set(document.context) <= set(SYMBOLS[: settings.get("alphabet", 62)]) | set("!:|")


def test_junk_is_of_the_declared_length_and_stands_anywhere():
    documents = task(pairs=4, noise=0.75, alphabet=10).documents("train")[:640]
    places = Counter()
    for document in documents:
        assert len(document.context) == (4 + 3) * 7 + 1
        segments = [document.context[start : start + 7] for start in range(0, 49, 7)]
        junk = [number for number, segment in enumerate(segments) if re.fullmatch("[0-9]{7}", segment)]
        assert len(junk) == 3
        assert len(parse(document.context, 2, 2)) == 4
        places.update(junk)
    # Seven places, three of them junk: each with probability 3/7.
    assert all(abs(places[place] / 640 - 3 / 7) < 0.08 for place in range(7))


def test_a_document_depends_on_its_place_alone():
    whole = task().documents("train")[:200]
    documents = task().documents("train")
    assert documents[130] == whole[130]
    assert documents[50:70] == whole[50:70]
    assert documents[5:150:60] == whole[5:150:60]
    last = documents[len(documents) - 1]
    assert last == documents[-1] and last.id == f"train-{2**31 - 2}"
    with pytest.raises(IndexError):
        task(test_contexts=10).documents("test")[10]
    assert len(task(test_contexts=10).documents("test")[:64]) == 10


def test_fewer_questions_leave_the_contexts_as_they_are():
    few, all_ = (task(queries_per_context=count).documents("train")[:128] for count in (3, None))
    assert [document.context for document in few] == [document.context for document in all_]
    positions = Counter()
    for one, other in zip(few, all_, strict=True):
        assert len({query.text for query in one.queries}) == 3
        answers = {query.text: query.targets for query in other.queries}
        assert all(answers[query.text] == query.targets for query in one.queries)
        order = list(answers)
        positions.update(order.index(query.text) for query in one.queries)
    assert set(positions) == set(range(8))  # asked at random, not always the first
    assert len(task(pairs=2, queries_per_context=5).documents("test")[0].queries) == 2


def test_the_streams_are_disjoint_and_the_seed_changes_train_alone():
    streams = {
        (split, seed): [document.context for document in task(seed=seed).documents(split)[:1000]]
        for split in ("train", "validation", "test")
        for seed in (0, 1)
    }
    assert streams["validation", 0] == streams["validation", 1]
    assert streams["test", 0] == streams["test", 1]
    different = [set(streams[key]) for key in [("train", 0), ("train", 1), ("validation", 0), ("test", 0)]]
    assert all(len(contexts) == 1000 for contexts in different)
    assert not any(one & other for one, other in itertools.combinations(different, 2))
    assert task(seed=0).source("test") == task(seed=1).source("test")
    assert task(seed=0).source("train").content_hash != task(seed=1).source("train").content_hash
    assert task(pairs=9).source("test").content_hash != task().source("test").content_hash
    assert task(pairs=9).source("test").rows == 9000


@pytest.mark.parametrize(
    ("settings", "space"),
    [({"alphabet": 4, "key_length": 1}, 4), ({"alphabet": 3, "key_length": 2}, 9)],
    ids=["all keys shuffled", "equal keys drawn again"],
)
def test_every_ordered_choice_of_distinct_keys_is_equally_likely(settings, space):
    documents = task(pairs=2, value_length=1, **settings).documents("train")[:6400]
    chosen = Counter(tuple(query.text for query in document.queries) for document in documents)
    assert len(chosen) == space * (space - 1)
    assert chisquare(list(chosen.values())).pvalue > 1e-3


def test_values_are_uniform_and_repeat():
    values = [query.targets[0] for document in task().documents("train")[:2000] for query in document.queries]
    for place in (0, 1):
        counts = Counter(value[place] for value in values)
        assert len(counts) == 62
        assert chisquare(list(counts.values())).pvalue > 1e-3
    assert len(set(values)) < 62**2 + 1 and len(values) > len(set(values))


def test_as_many_pairs_as_there_are_keys_fit_and_more_are_refused():
    documents = task(pairs=16, key_length=1, alphabet=16).documents("test")
    assert {query.text for query in documents[0].queries} == {f"?!{symbol}:" for symbol in SYMBOLS[:16]}
    with pytest.raises(UserError, match="17 pairs need as many distinct keys, but keys of 1 out of 16 symbols are 16"):
        task(pairs=17, key_length=1, alphabet=16)


def test_the_data_stay_what_they_were():
    # Results are compared across versions of this project and of numpy: whoever changes a document changes the
    # generator's name in `source` and the task's version too.
    test, train = task().documents("test")[0], task(seed=3, noise=0.5, pairs=2).documents("train")[65]
    assert test.context == "!iI:lt!!rs:L9!!9M:NU!!ow:n6!!Nv:IU!!Z7:ZM!!EG:To!!Zw:ZP!|"
    assert train.context == "nOVWUwa!8t:eE!!e7:mY!|"


def test_the_tokenizer_is_one_token_a_character_and_back():
    tokenizer = task().tokenizer()
    assert len(tokenizer) == 70
    for document in task(pairs=32).documents("test")[:20]:
        ids = tokenizer.encode(document.context)
        assert len(ids) == len(document.context) == len(tokenizer.encode(document.context, add_special_tokens=True))
        assert tokenizer.decode(ids) == document.context
        query = document.queries[0]
        together = tokenizer.encode(query.text + query.targets[0])
        assert together == tokenizer.encode(query.text) + tokenizer.encode(query.targets[0])
    everything = SYMBOLS + "!:?|"
    assert sorted(tokenizer.encode(everything)) == list(range(4, 70))
    answer = [*tokenizer.encode("aZ"), tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "aZ"
    assert tokenizer.encode("é") == [tokenizer.unk_token_id]
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}) == 4


def test_a_smaller_alphabets_ids_are_the_same():
    small = task(alphabet=16).tokenizer()
    assert len(small) == 24
    assert small.encode("?!0f:") == task().tokenizer().encode("?!0f:")


def test_the_tokenizer_survives_being_saved(tmp_path):
    from transformers import AutoTokenizer

    task().tokenizer().save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    context = task().documents("test")[0].context
    assert again.encode(context) == task().tokenizer().encode(context)
    assert again.decode(again.encode(context)) == context
    assert again.eos_token_id == task().tokenizer().eos_token_id


def test_lm_evals_data_are_the_same_documents():
    found = dataset(pairs=3, test_contexts=5, validation_contexts=4, version=1.0, config_source="elsewhere")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 15, "validation": 12, "test": 15}
    rows = found["test"].to_list()
    expected = [
        {"id": query.id, "context": document.context, "query": query.text, "targets": list(query.targets)}
        for document in task(pairs=3, test_contexts=5).documents("test")
        for query in document.queries
    ]
    assert rows == expected

import numpy as np
import pytest
from methods.matrix import byte_tokenizer, key_value_task
from tokenizers.pre_tokenizers import ByteLevel

from gradmem_bench.backbone import Backbone
from gradmem_bench.config import BackboneConfig
from gradmem_bench.errors import UserError
from gradmem_bench.loading import load_backbone
from gradmem_bench.tasks.base import Document, Query
from gradmem_bench.tasks.batching import asked_of, check_contexts, encode_documents, training_batch

# What a space and an h are together in byte-level BPE, and a word that ends where another could have gone on.
MERGES = (("Ġ", "h"), ("b", "c"))


def backbone(begin: bool = False) -> Backbone:
    return load_backbone(BackboneConfig(name="llama-1x32"), byte_tokenizer(MERGES, begin), "meta", 0)


def document(name: str, context: str, *queries: tuple[str, str]) -> Document:
    return Document(
        name, context, tuple(Query(f"{name}-{n}", text, (target, "other")) for n, (text, target) in enumerate(queries))
    )


def tokens(on: Backbone, ids: list[int]) -> list[str]:
    return on.tokenizer.convert_ids_to_tokens(ids)


def test_a_target_is_encoded_where_it_stands():
    on, task = backbone(), key_value_task(target_delimiter=" ")
    (encoded,) = encode_documents([document("d", "ab", ("a?", "hb"))], task, on)
    assert tokens(on, encoded.context) == ["a", "b"]
    assert tokens(on, encoded.queries[0]) == ["a", "?"]
    # One token of delimiter and first letter, as in running text; neither the start nor the end of a text.
    assert tokens(on, encoded.targets[0]) == ["Ġh", "b"]
    assert not encoded.truncated


def test_a_tokenizer_that_begins_words_of_its_own_does_not_begin_one_in_a_target():
    tokenizer = byte_tokenizer(MERGES)
    # Every text is encoded as if it began a word, as Llama's first tokenizers did.
    tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True, use_regex=False)
    on = load_backbone(BackboneConfig(name="llama-1x32"), tokenizer, "meta", 0)
    (encoded,) = encode_documents([document("d", "x", ("a?", "hb"))], key_value_task(target_delimiter=""), on)
    assert tokens(on, on.encode(["hb"])[0]) == ["Ġh", "b"]
    assert tokens(on, encoded.queries[0]) == ["Ġ", "a", "?"] and tokens(on, encoded.targets[0]) == ["h", "b"]


def test_a_target_that_would_melt_into_its_query_is_encoded_alone():
    on, task = backbone(), key_value_task(target_delimiter="")
    (encoded,) = encode_documents([document("d", "x", ("ab", "cd"))], task, on)
    assert tokens(on, on.encode(["abcd"])[0]) == ["a", "bc", "d"]
    assert tokens(on, encoded.queries[0]) == ["a", "b"] and tokens(on, encoded.targets[0]) == ["c", "d"]


def test_a_start_token_stands_before_contexts_only():
    on = backbone(begin=True)
    (encoded,) = encode_documents([document("d", "ab", ("a?", "hb"))], key_value_task(target_delimiter=" "), on)
    assert tokens(on, encoded.context) == ["<s>", "a", "b"]
    assert tokens(on, encoded.queries[0]) == ["a", "?"] and tokens(on, encoded.targets[0]) == ["Ġh", "b"]


def test_each_document_keeps_its_own_queries_in_their_order():
    on, task = backbone(), key_value_task()
    documents = [
        document("one", "x", ("q", "1"), ("qq", "2")),
        document("none", "yy"),
        document("two", "zzz", ("qqq", "3")),
    ]
    encoded = encode_documents(documents, task, on)
    assert [one.document.id for one in encoded] == ["one", "none", "two"]
    assert [[on.decode(ids) for ids in one.queries] for one in encoded] == [["q", "qq"], [], ["qqq"]]
    assert [[on.decode(ids) for ids in one.targets] for one in encoded] == [["1", "2"], [], ["3"]]
    assert encode_documents([], task, on) == []


def test_a_context_that_is_too_long_is_refused_or_cut_and_marked():
    on = backbone()
    documents = [document("short", "aaaa", ("q", "1")), document("long", "aaaaabcc", ("q", "1"))]
    with pytest.raises(UserError, match="'long' of kv_retrieval has 7 tokens, but at most 5 fit .* 1024 positions"):
        encode_documents(documents, key_value_task(), on, 5)
    cut = encode_documents(documents, key_value_task(metadata={"truncate_contexts": True}), on, 5)
    assert [tokens(on, one.context) for one in cut] == [["a"] * 4, ["a"] * 5]
    assert [one.truncated for one in cut] == [False, True]
    exact = encode_documents(documents, key_value_task(), on, 7)
    assert [one.truncated for one in exact] == [False, False] and len(exact[1].context) == 7


@pytest.mark.parametrize("begin", [False, True])
def test_the_lengths_of_contexts_are_looked_at_by_themselves(begin):
    on, task = backbone(begin), key_value_task()
    # Seven tokens of eight bytes, and twelve of as many; a start token is one more.
    documents = [document("ascii", "aaaaabcc", ("q", "1")), document("wide", "éééééé", ("q", "1"))]
    documents += [document(f"short-{row}", "a", ("q", "1")) for row in range(1500)]
    longest = max(len(ids) for ids in on.encode_contexts([one.context for one in documents]))
    check_contexts(documents, task, on, longest)
    with pytest.raises(UserError) as refused:
        check_contexts(documents, task, on, longest - 1)
    with pytest.raises(UserError) as encoded:
        encode_documents(documents, task, on, longest - 1)
    assert str(refused.value) == str(encoded.value)


def test_a_query_without_tokens_is_refused():
    with pytest.raises(UserError, match="The query 'd-1' of kv_retrieval has no tokens"):
        encode_documents([document("d", "x", ("q", "1"), ("", "2"))], key_value_task(), backbone())


def test_a_training_batch_holds_every_query_with_its_own_context_and_an_end():
    on = backbone()
    documents = [document("a", "xx", ("q1", "1"), ("q2", "2")), document("b", "yyy", ("q3", "33"))]
    batch = training_batch(encode_documents(documents, key_value_task(), on), 1)
    assert [on.decode(row) for row in batch.contexts.rows()] == ["xx", "yyy"]
    assert [on.decode(row) for row in batch.queries.rows()] == ["q1", "q2", "q3"]
    assert [tokens(on, row) for row in batch.targets.rows()] == [["1", "</s>"], ["2", "</s>"], ["3", "3", "</s>"]]
    assert batch.context_of.tolist() == [0, 0, 1]


def test_queries_are_drawn_evenly_and_never_twice():
    five = document("a", "x", *((f"{number}?", str(number)) for number in range(5)))
    one = document("b", "y", ("0?", "0"))
    generator, seen = np.random.default_rng(0), np.zeros(5)
    for _ in range(500):
        drawn = asked_of(five, 2, generator)
        assert (drawn.id, drawn.context, len(set(drawn.queries))) == ("a", "x", 2)
        for query in drawn.queries:
            assert query in five.queries
            seen[int(query.targets[0])] += 1
        assert asked_of(one, 2, generator) == one
    # 200 expected of each, with a standard deviation of 11.
    assert seen.sum() == 1000 and abs(seen - 200).max() < 55
    assert asked_of(five, 2, np.random.default_rng(7)) == asked_of(five, 2, np.random.default_rng(7))
    assert asked_of(five, None, generator) == asked_of(five, 5, generator) == five

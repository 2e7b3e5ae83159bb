"""The swap test on a small model that really answers from its context."""

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from commands import command, only_run
from methods.matrix import build, key_value_task

from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Tokens
from gradmem_bench.config import BackboneConfig
from gradmem_bench.errors import UserError
from gradmem_bench.evaluation import Evaluator
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.full_kv import FullKV
from gradmem_bench.methods.no_memory import NoMemory
from gradmem_bench.methods.truncated_text import TruncatedText, TruncatedTextParameters
from gradmem_bench.prefix import Prefix
from gradmem_bench.results import read_record
from gradmem_bench.state import MemoryState
from gradmem_bench.swap import closed_book, random_states, swap_test
from gradmem_bench.tasks.base import Document, Query
from gradmem_bench.tasks.batching import encode_documents, training_batch

# One pair of single symbols: the answer stands at the same place in every context, which is learned in seconds.
TASK = key_value_task(
    dataset_kwargs={"pairs": 1, "key_length": 1, "value_length": 1, "alphabet": 8},
    generation_kwargs={"max_gen_toks": 3}, metadata={"normalize_answers": False},
)  # fmt: skip


@pytest.fixture(scope="module")
def answering() -> Backbone:
    """A backbone that copies the value of its context; trained as the full KV cache."""
    shape = BackboneConfig(name="gpt2-1x32", heads=2, max_positions=32, init_std=0.1)
    on = load_backbone(shape, TASK.tokenizer(), "cpu", 0)
    method, train = build("full_kv", on).train(), TASK.documents("train")
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(600):
        encoded = encode_documents(train[64 * step : 64 * step + 64], TASK, on)
        loss = method.loss(training_batch(encoded, on.end_id)).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.01:
            return on.requires_grad_(False)
    pytest.fail(f"the model did not learn to copy: its loss is {float(loss)}")


def swapped(method, documents=None, count: int = 48, batch_size: int = 16):
    encoded = encode_documents(documents or TASK.documents("test")[:count], TASK, method.backbone)
    evaluator = Evaluator(method, TASK, batch_size)
    return swap_test(evaluator, encoded, closed_book(evaluator, encoded))


class Remembering(TruncatedText):
    """Keeps the contexts on itself, and answers from them in the order in which it is asked."""

    def __init__(self, backbone, share: float = 1.0) -> None:
        super().__init__(backbone, TruncatedTextParameters())
        self.kept, self.asked, self.share = [], 0, share

    def write(self, contexts):
        states = super().write(contexts)
        self.kept += states.texts()
        return states

    def read(self, state):
        texts = state.texts()
        for row in range(len(texts)):
            if (self.asked * 7) % 20 < 20 * self.share:
                texts[row] = self.kept[self.asked % len(self.kept)]
            self.asked += 1
        return super().read(MemoryState.from_texts(texts))


@pytest.mark.parametrize("name", ["full_kv", "truncated_text"])
def test_a_method_that_answers_from_its_state_passes(answering, name):
    outcome = swapped(build(name, answering))
    assert outcome.passed and outcome.contexts == 48 and outcome.queries == 48
    assert outcome.own_score == 1.0
    # One of eight values, whichever the key.
    assert outcome.swapped_score < 0.4 and outcome.chance_score == pytest.approx(1 / 8, abs=0.1)
    assert outcome.outcome.startswith("passed") and "1.000" in outcome.outcome


@pytest.mark.parametrize("share", [1.0, 0.7])
def test_a_method_that_keeps_the_contexts_on_itself_fails(answering, share):
    outcome = swapped(Remembering(answering, share))
    assert outcome.passed is False and outcome.own_score == 1.0
    assert outcome.swapped_score > 0.6 * share and outcome.outcome.startswith("FAILED")


def test_the_cheat_is_found_on_few_contexts_too(answering):
    assert swapped(Remembering(answering), count=4).passed is False
    # The same few from an honest method are no reason to cry foul.
    assert swapped(FullKV(answering, FullKV.Parameters()), count=4).passed


def test_the_floor_passes(answering):
    outcome = swapped(build("no_memory", answering))
    assert outcome.passed is None and outcome.own_score == outcome.swapped_score < 0.5


def test_every_state_goes_to_a_foreign_context(answering):
    """Hand-worked: values 0 and 1 by turns, one key. Half the sample away stands the other value or the same."""

    def outcome(values: str):
        made = [Document(f"d{n}", f"!a:{v}!|", (Query(f"q{n}", "?!a:", (v,)),)) for n, v in enumerate(values)]
        encoded = encode_documents(made, TASK, answering)
        return swap_test(Evaluator(build("full_kv", answering), TASK, 4), encoded, known=0.0)

    # Three away is always the other value: never right, though 3 of the 5 others have that other value.
    alternating = outcome("010101")
    assert (alternating.own_score, alternating.swapped_score) == (1.0, 0.0)
    assert alternating.chance_score == pytest.approx(3 / 5) and alternating.passed
    # Two away is always the same value: always right, and 1 of the 3 others would be right as well. Four are too few
    # to tell that from chance.
    pairs = outcome("0101")
    assert (pairs.swapped_score, pairs.chance_score) == (1.0, pytest.approx(1 / 3)) and pairs.passed
    # All equal: what is right for each is right for all, and no fault of the method.
    equal = outcome("2222222222")
    assert (equal.own_score, equal.swapped_score, equal.chance_score, equal.passed) == (1.0, 1.0, 1.0, None)


# ------------------------------------------------------------------------------ what the weights know


class Prompted(NoMemory):
    """A floor that puts something of its own before its queries."""

    def read(self, state):
        tokens = Tokens.from_lists(self.backbone.encode(["|"] * len(state)))
        return Prefix(tokens.mask, embeddings=self.backbone.embed(tokens.ids))


@pytest.fixture(scope="module")
def knowing() -> tuple[Backbone, list[Document]]:
    """A backbone that copies the value of its context and, where there is none, answers the key's first symbol, or its
    second behind a prompt; and 128 contexts, each with a question of its own, half of which it knows that way."""
    shape = BackboneConfig(name="gpt2-1x32", heads=2, max_positions=32, init_std=0.1)
    on, draw, symbols = load_backbone(shape, TASK.tokenizer(), "cpu", 0), random.Random(0), "01234567"
    keys = draw.sample(["".join(key) for key in product(symbols, repeat=3)], 512)

    def documents(value: Callable[[str], str], keys: list[str]) -> list[Document]:
        pairs = [(key, value(key)) for key in keys]
        return [Document(key, f"!{key}:{one}!|", (Query(key, f"?!{key}:", (one,)),)) for key, one in pairs]

    skills = {FullKV: lambda key: draw.choice(symbols), NoMemory: lambda key: key[0], Prompted: lambda key: key[1]}
    taught = [(method(on, method.Parameters()).train(), value) for method, value in skills.items()]
    optimizer = torch.optim.AdamW(on.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(200):
        batches = [
            (method, encode_documents(documents(value, draw.sample(keys, 64)), TASK, on)) for method, value in taught
        ]
        loss = sum(method.loss(training_batch(encoded, on.end_id)).total for method, encoded in batches)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.03:
            known = documents(lambda key: key[0], keys[:64])
            unknown = documents(lambda key: draw.choice(symbols.replace(key[0], "")), keys[64:128])
            return on.requires_grad_(False), [*known, *unknown]
    pytest.fail(f"the model did not learn to answer: its loss is {float(loss)}")


def test_what_the_weights_know_is_no_fault_of_the_floor(knowing):
    on, documents = knowing
    outcome = swapped(NoMemory(on, NoMemory.Parameters()), documents)
    # By other contexts' examples, chance were one in eight.
    assert outcome.own_score == outcome.swapped_score == outcome.chance_score == pytest.approx(0.5, abs=0.05)
    assert outcome.passed is None and outcome.outcome.startswith("without a verdict")


class KeepsHalf(TruncatedText):
    """Keeps a context whose value is even, and nothing of the others."""

    def write(self, contexts):
        texts = super().write(contexts).texts()
        return MemoryState.from_texts([text if int(text[5]) % 2 == 0 else "" for text in texts])


def test_what_the_weights_know_is_no_fault_of_a_memory_either(knowing):
    on, documents = knowing
    outcome = swapped(KeepsHalf(on, TruncatedTextParameters()), documents)
    assert outcome.passed and outcome.own_score > 0.7
    assert 0.2 < outcome.swapped_score < outcome.chance_score == pytest.approx(0.5, abs=0.05)


def test_a_floor_may_know_more_than_its_weights_alone(knowing):
    on, documents = knowing
    asked = [replace(one, queries=(replace(one.queries[0], targets=(one.id[1],)),)) for one in documents]
    assert swapped(NoMemory(on, NoMemory.Parameters()), asked).own_score < 0.3
    outcome = swapped(Prompted(on, NoMemory.Parameters()), asked)
    assert outcome.own_score == outcome.swapped_score == outcome.chance_score > 0.9 and outcome.passed is None


class LearnsByHeart(NoMemory):
    """Its WRITE trains the weights on what will be asked, and they stay as they are then."""

    role = "method"

    def write(self, contexts):
        texts = [text for text in map(self.backbone.decode, contexts.rows()) if text]
        optimizer = torch.optim.AdamW(self.backbone.requires_grad_(True).parameters(), lr=1e-2, weight_decay=0.0)
        for _ in range(200 if texts else 0):
            asked = Tokens.from_lists(self.backbone.encode([f"?{text[:5]}" for text in texts]))
            wanted = Tokens.from_lists([[*self.backbone.encode([text[5]])[0], self.backbone.end_id] for text in texts])
            with torch.enable_grad():
                loss = self.backbone.target_loss(self.backbone.start(len(texts)), asked, wanted)
            if loss < 0.02:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return super().write(contexts)


class LearnsByHeartAsTheFloor(LearnsByHeart):
    role = "floor"


@pytest.mark.parametrize("cheat", [LearnsByHeart, LearnsByHeartAsTheFloor])
def test_what_write_taught_the_weights_was_not_known(tmp_path, cheat):
    (tmp_path / "cheat.yaml").write_text(f"name: cheat\nclass: test_swap:{cheat.__name__}\n")
    settings = ["--set=task.pairs=1", "--set=task.key_length=3", "--set=task.value_length=1", "--set=task.alphabet=8"]
    run = ["run", "--method", tmp_path / "cheat.yaml", "--task=kv_retrieval", *settings, "--backbone=llama-1x32"]
    done = command(*run, "--no-train", "--limit=16", "--output", tmp_path / "runs")
    assert (done.code, done.errors) == (0, "")
    outcome = read_record(only_run(tmp_path / "runs") / "run.json").swap_test
    assert outcome.own_score == outcome.swapped_score > 0.8 and outcome.chance_score < 0.4
    assert outcome.passed is False and "swap test FAILED" in done.output


def test_one_context_alone_cannot_be_swapped(answering):
    outcome = swapped(build("full_kv", answering), count=1)
    assert outcome.passed is None and outcome.own_score is None and "two contexts" in outcome.outcome


def test_at_most_four_queries_of_a_context_are_asked(answering):
    queries = tuple(Query(f"q{n}", "?!a:", ("1",)) for n in range(6))
    made = [Document("six", "!a:1!|", queries), Document("one", "!a:2!|", (Query("only", "?!a:", ("2",)),))]
    outcome = swapped(build("full_kv", answering), made)
    assert outcome.queries == 5 and outcome.own_score == 1.0 and outcome.swapped_score == 0.0


def test_random_states_are_of_the_same_kind_and_know_nothing(answering):
    outcome = swapped(build("full_kv", answering))
    assert outcome.own_score == 1.0 and outcome.random_score < 0.5
    for name in ("truncated_text", "no_memory"):
        assert swapped(build(name, answering)).random_score is None


class BeginningWithTheFirst(FullKV):
    """Says that it begins with what it has of the first context that it is given."""

    def write(self, contexts: Tokens) -> MemoryState:
        written = super().write(contexts)
        self.first = getattr(self, "first", written.to_bytes("float32")[0])
        return written

    def blank(self, count: int) -> MemoryState:
        return MemoryState.from_bytes([self.first] * count, self.backbone.device)


def test_the_state_that_write_begins_with_is_asked_what_the_others_are(answering):
    made = [Document(f"{n}", f"!a:{n % 4}!|", (Query(f"q{n}", "?!a:", (f"{n % 4}",)),)) for n in range(8)]
    assert swapped(BeginningWithTheFirst(answering, FullKV.Parameters()), made).blank_score == 0.25
    assert swapped(build("full_kv", answering), made).blank_score is None


def test_a_blank_state_of_another_kind_than_what_is_written_is_refused(answering):
    class Longer(FullKV):
        def blank(self, count: int) -> MemoryState:
            return MemoryState({"memory": torch.zeros(count, 3)})

    with pytest.raises(UserError, match="Longer.blank gave a state of other names, dtypes or shapes than write does"):
        swapped(Longer(answering, FullKV.Parameters()))


def test_random_states_have_the_shapes_and_the_scale_of_those_written():
    vectors = torch.randn(200, 4, 8) * 3 + 1
    padded = torch.cat([torch.full((200, 2, 5), 2.0), torch.zeros(200, 1, 5)], dim=1)
    padded[:, 1] = -2.0
    state = MemoryState(
        {"memory": vectors, "ids": torch.arange(200)[:, None], "cache": padded},
        frozenset({"cache"}),
        torch.full((200,), 2),
    )
    drawn = MemoryState.from_bytes(random_states(state.to_bytes(), "float32"))
    assert drawn.tensors["memory"].shape == vectors.shape and drawn.tensors["cache"].shape == (200, 2, 5)
    assert torch.equal(drawn.tensors["ids"], state.tensors["ids"])
    assert not torch.isclose(drawn.tensors["memory"], vectors).all(dim=(1, 2)).any()
    memory, cache = drawn.tensors["memory"], drawn.tensors["cache"]
    assert (memory.mean(), memory.std()) == (pytest.approx(1, abs=0.2), pytest.approx(3, abs=0.2))
    # Padding is no part of the state: the numbers are 2 and -2, and the 0 behind them is none of them.
    assert (cache.mean(), cache.std()) == (pytest.approx(0, abs=0.2), pytest.approx(2, abs=0.2))
    assert random_states(state.to_bytes(), "float32") == random_states(state.to_bytes(), "float32")

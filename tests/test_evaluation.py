import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from methods.matrix import METHODS, backbone, build, byte_tokenizer, families, key_value_task

from gradmem_bench.batch import Tokens
from gradmem_bench.config import BackboneConfig, Budget
from gradmem_bench.errors import UserError
from gradmem_bench.evaluation import Evaluator
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.truncated_text import TruncatedText, TruncatedTextParameters
from gradmem_bench.state import MemoryState
from gradmem_bench.tasks.base import Document, Query
from gradmem_bench.tasks.batching import encode_documents, training_batch

TASK = key_value_task(
    dataset_kwargs={"pairs": 3, "value_length": 3, "alphabet": 6}, metadata={"normalize_answers": False},
    generation_kwargs={"max_gen_toks": 6, "until": ["!"]},
)  # fmt: skip


def documents(on):
    """Contexts of 1 to 3 pairs, of 8, 16 and 24 tokens, with one or two queries each."""
    made = []
    for row, whole in enumerate(TASK.documents("test")[:9]):
        cut = whole.context[: 8 * (1 + row % 3)]
        made.append(Document(whole.id, cut, whole.queries[: 1 + row % 2]))
    return encode_documents(made, TASK, on)


def rows_of(evaluator, encoded) -> dict:
    return {row.example_id: row for batch in evaluator.batches(encoded) for row in evaluator.rows(batch)}


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        (torch.zeros(2, 4), "Wrong.write gave Tensor, and no MemoryState."),
        (
            MemoryState({"text": torch.zeros(2, 7)}),
            r"gave 'text' of shape \(2, 7\) for 3 contexts, over which the",
        ),
    ],
    ids=["no state", "two rows"],
)
def test_states_of_another_number_of_contexts_are_refused(written, sentence):
    class Wrong(TruncatedText):
        def write(self, contexts):
            return written

    on = backbone("llama")
    method = Wrong(on, TruncatedTextParameters())
    with pytest.raises(UserError, match=sentence):
        Evaluator(method, TASK, batch_size=3).write(documents(on)[:3])
    with pytest.raises(UserError, match=sentence):
        method.loss(training_batch(documents(on)[:3], on.end_id))


@pytest.mark.parametrize("name", ["full_kv", "truncated_text", "no_memory"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rows_are_what_the_plain_model_says_of_the_whole_sequence(family, name):
    on = backbone(family)
    encoded = documents(on)
    # Answers that the model does give, so that not every score is zero: another target for every second query.
    model = on.model
    with torch.no_grad():
        for place, document in enumerate(encoded):
            start = [] if name == "no_memory" else document.context
            sequence = torch.tensor([start + document.queries[0]])
            options = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
            if place % 2:
                made = model.generate(sequence, attention_mask=torch.ones_like(sequence), **options)[0]
                document.targets[0][:] = [*made[sequence.shape[1] :].tolist(), 5]
    rows = rows_of(Evaluator(build(name, on), TASK, batch_size=4), encoded)
    assert len(rows) == sum(len(document.queries) for document in encoded)
    accuracies = set()
    for document in encoded:
        start = [] if name == "no_memory" else document.context
        for asked, query, target in zip(document.document.queries, document.queries, document.targets, strict=True):
            row = rows[asked.id]
            sequence = torch.tensor([start + query + target])
            with torch.no_grad():
                logits = model(sequence).logits[0, -len(target) - 1 : -1]
            right = logits.argmax(dim=-1) == torch.tensor(target)
            bits = F.cross_entropy(logits, torch.tensor(target)).item() / math.log(2)
            assert row.teacher_forced_exact_match == bool(right.all())
            assert row.token_accuracy == pytest.approx(right.float().mean().item())
            assert row.target_bits_per_token == pytest.approx(bits, rel=1e-4)
            # Greedy, token by token, up to the end of the text, the end of an answer or six tokens.
            prediction = ""
            grown = start + query
            for _ in range(6):
                with torch.no_grad():
                    token = int(model(torch.tensor([grown])).logits[0, -1].argmax())
                if token == on.end_id:
                    break
                grown = [*grown, token]
                prediction += on.decode([token])
            prediction = prediction.split("!")[0]
            assert row.prediction == prediction
            assert row.exact_match == (prediction.strip() == asked.targets[0])
            assert row.targets == list(asked.targets) and row.context_id == document.document.id
            assert row.target_tokens == len(target) == 3
            assert row.context_tokens == len(document.context) and not row.context_truncated
            assert row.read_positions == len(start)
            accuracies.add(round(row.token_accuracy, 2))
    assert len(accuracies) > 1


@pytest.mark.parametrize("name", METHODS)
def test_the_batch_size_changes_no_row(name):
    on = backbone(next(family for family in ("llama", "mamba") if family in families(name)))
    encoded = documents(on)
    single, batched = (rows_of(Evaluator(build(name, on), TASK, batch_size=size), encoded) for size in (1, 8))
    assert single.keys() == batched.keys()
    for key, row in single.items():
        other = batched[key]
        for field, value in row.model_dump().items():
            if isinstance(value, float):
                assert getattr(other, field) == pytest.approx(value, rel=1e-3, abs=1e-4), field
            else:
                assert getattr(other, field) == value, field


@pytest.mark.parametrize("name", METHODS)
def test_the_teacher_forced_score_is_the_mean_of_the_rows(name):
    on = backbone(families(name)[0])
    encoded = documents(on)
    evaluator = Evaluator(build(name, on), TASK, batch_size=4)
    for document in encoded[::2]:
        # What the model says first, so that some are right.
        written = evaluator.write([document], reconstruct=False)
        (answer,) = [
            ids for _, _, ids, _ in evaluator.read(written.states, document.queries[:1], document.targets[:1], True)
        ]
        if answer:
            document.targets[0][:] = answer[:1]
    rows = rows_of(evaluator, encoded).values()
    expected = sum(row.teacher_forced_exact_match for row in rows) / len(rows)
    assert 0 < expected < 1
    assert evaluator.teacher_forced_score(encoded) == pytest.approx(expected)


def test_the_reconstruction_loss_is_of_the_state_that_crossed():
    on = backbone("llama")
    (document, *_) = documents(on)
    method = build("rmt", on, projection="none")
    rows = Evaluator(method, TASK, batch_size=4).rows([document])
    with torch.no_grad():
        contexts = Tokens.from_lists([document.context])
        memory = method.write(contexts).tensors["memory"][0]
        logits = on.model(inputs_embeds=torch.cat([memory, on.embed(contexts.ids[0])])[None]).logits[0, 2:-1]
    expected = F.cross_entropy(logits, contexts.ids[0]).item()
    assert [row.reconstruction_nats_per_token for row in rows] == pytest.approx([expected] * len(rows), rel=1e-4)
    for name in ("full_kv", "truncated_text", "no_memory"):
        (row, *_) = Evaluator(build(name, on), TASK, batch_size=4).rows([document])
        assert row.reconstruction_nats_per_token is None


# ------------------------------------------------------------------------------------------------ laws


@dataclass(frozen=True)
class Smuggled(MemoryState):
    """A state with the context in its pocket."""

    contexts: tuple = ()


class Smuggler(TruncatedText):
    """Writes an empty state, and looks in READ for what is beside its bytes."""

    def write(self, contexts):
        empty = MemoryState.from_texts([""] * len(contexts))
        return Smuggled(empty.tensors, empty.ragged, empty.lengths, tuple(map(tuple, contexts.rows())))

    def read(self, state):
        assert len(state) and not state.texts()[0]
        contexts = getattr(state, "contexts", None)
        return super().read(state if contexts is None else MemoryState.from_texts(map(self.backbone.decode, contexts)))


def test_only_bytes_cross():
    """What a state carries beside its tensors is gone at READ: the smuggler scores what no memory scores."""
    on = backbone("llama")
    encoded = documents(on)
    smuggled = rows_of(Evaluator(Smuggler(on, TruncatedTextParameters()), TASK, 4), encoded)
    floor = rows_of(Evaluator(build("no_memory", on), TASK, 4), encoded)
    ceiling = rows_of(Evaluator(build("truncated_text", on), TASK, 4), encoded)

    def bits(rows):
        return [row.target_bits_per_token for row in rows.values()]

    assert bits(smuggled) == pytest.approx(bits(floor), rel=1e-4)
    assert bits(ceiling) != pytest.approx(bits(floor), rel=1e-2)


def test_a_state_over_its_budget_stops_the_evaluation():
    on = backbone("llama")
    encoded = documents(on)
    # 3 vectors of 32 numbers of 4 bytes.
    method = build("gradmem", on)
    rows = rows_of(Evaluator(method, TASK, 4, Budget(bytes=384, positions=3)), encoded)
    assert {(row.state_bytes, row.read_positions) for row in rows.values()} == {(384, 3)}
    with pytest.raises(UserError, match="state of 384 B, over its budget of 383 B"):
        rows_of(Evaluator(method, TASK, 4, Budget(bytes=383)), encoded)
    with pytest.raises(UserError, match="READ takes 3 positions, over the budget of 2"):
        rows_of(Evaluator(method, TASK, 4, Budget(positions=2)), encoded)
    # One state over it is enough: in one WRITE of all, most texts are shorter.
    longest = max(len(document.document.context) for document in encoded)
    text = build("truncated_text", on)
    rows_of(Evaluator(text, TASK, 9, Budget(bytes=longest)), encoded)
    with pytest.raises(UserError, match=f"{longest} B, over its budget of {longest - 1} B"):
        rows_of(Evaluator(text, TASK, 9, Budget(bytes=longest - 1)), encoded)


@pytest.mark.parametrize("name", ["full_kv", "no_memory"])
def test_no_budget_is_asked_of_floor_and_ceiling(name):
    on = backbone("llama")
    assert len(rows_of(Evaluator(build(name, on), TASK, 4, Budget(bytes=1, positions=1)), documents(on))) == 13


def test_a_cut_context_is_counted_as_such():
    on = backbone("llama")
    task = key_value_task(metadata={"truncate_contexts": True})
    whole = Document("d", "!ab:cd!!ef:gh!|", (Query("q", "?!ab:", ("cd",)),))
    (row,) = Evaluator(build("truncated_text", on), task, 4).rows(encode_documents([whole], task, on, 9))
    assert row.context_truncated and row.context_tokens == row.state_bytes == row.read_positions == 9


# --------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("until", "normalize", "generated", "answer"),
    [
        ([], True, " the hall \n", "the hall"),
        ([], False, " the hall \n", " the hall \n"),
        (["\n"], True, " hall\nWhere?", "hall"),
        # The delimiter's white space is no end; the next of its kind is one.
        (["\n"], True, "\n hall\nWhere?", "hall"),
        (["\n"], False, "\n hall\nWhere?", "\n hall"),
        ([" "], True, " hall way", "hall"),
        (["\n", "."], True, " hall. It\nis", "hall"),
        ([".", "\n"], True, " hall\nis. It", "hall"),
        (["!"], False, "VV!!KK", "VV"),
        (["!"], False, "!VV", ""),
        (["\n"], True, " \n ", ""),
        (["\n\n"], True, "a\nb\n\nc", "a\nb"),
        (["END"], True, "the EN END of", "the EN"),
        (["\n"], True, "", ""),
    ],
)
def test_an_answer_ends_at_the_first_of_the_task_s_ends(until, normalize, generated, answer):
    on = load_backbone(BackboneConfig(name="gpt2-1x32"), byte_tokenizer(), "cpu", 0)
    task = key_value_task(generation_kwargs={"until": until}, metadata={"normalize_answers": normalize})
    evaluator = Evaluator(build("no_memory", on), task, 1)
    assert evaluator.answer_text(on.encode([generated])[0]) == answer

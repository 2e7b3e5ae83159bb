"""What else is in the batch never changes a result: generation behind each kind of prefix, gradients, empty texts.

That it changes no state, no answer's loss and no reconstruction of any method is a law: see test_laws.py.
"""

import pytest
import torch
from methods.matrix import (
    EVERY_BACKBONE,
    METHODS,
    PAIRS,
    RECURRENT,
    backbone,
    build,
    byte_tokenizer,
    families,
    ids_of,
    text_of,
)

from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.config import BackboneConfig
from gradmem_bench.loading import load_backbone
from gradmem_bench.state import MemoryState

CONTEXTS, QUERIES, TARGETS = (3, 19, 8), (6, 1, 3), (1, 4, 2)
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def with_other_padding(tokens: Tokens) -> Tokens:
    """The same sequences, with other ids where nothing stands."""
    return Tokens(torch.where(tokens.mask, tokens.ids, torch.full_like(tokens.ids, 9)), tokens.mask)


def outcome(method, contexts: Tokens, queries: Tokens, targets: Tokens) -> list[dict]:
    """All that a method gives for each row, taken out of its padding."""
    with torch.no_grad():
        state = method.write(contexts)
        rebuilt = method.reconstruction_loss(state, contexts)
        prefix = method.read(MemoryState.from_bytes(state.to_bytes()))
        losses, right = method.backbone.token_losses(prefix, queries, targets)
        text_losses = method.backbone.text_loss(prefix, targets)
        answers = method.backbone.generate(prefix, queries, 5)
    return [
        {
            "state": MemoryState.from_bytes([data]).tensors,
            "rebuilt": None if rebuilt is None else rebuilt[row],
            "losses": losses[row, :length],
            "right": right[row, :length].tolist(),
            "text_loss": text_losses[row],
            "positions": int(prefix.positions[row]),
            "answer": answers[row],
        }
        for row, (data, length) in enumerate(zip(state.to_bytes(), targets.lengths.tolist(), strict=True))
    ]


def assert_same(one: dict, other: dict) -> None:
    assert one["answer"] == other["answer"]
    assert one["right"] == other["right"]
    assert one["positions"] == other["positions"]
    for name, tensor in one["state"].items():
        assert tensor.shape == other["state"][name].shape
        torch.testing.assert_close(tensor.float(), other["state"][name].float(), **CLOSE)
    for name in ("rebuilt", "losses", "text_loss"):
        if one[name] is not None:
            torch.testing.assert_close(one[name], other[name], **CLOSE)


KINDS = {"gradmem-knobs", "full_kv", "mamba"}
"""Of each kind of prefix one method: vectors between control tokens, a cache, a recurrent state."""


@pytest.mark.parametrize(("family", "method_name"), [pair for pair in PAIRS if pair[1] in KINDS])
def test_a_row_gives_in_a_batch_what_it_gives_alone(family, method_name):
    on = backbone(family)
    method = build(method_name, on)
    contexts, queries, targets = (
        ids_of(on, *lengths, seed=seed) for seed, lengths in enumerate((CONTEXTS, QUERIES, TARGETS))
    )
    parts = [Tokens.from_lists(rows) for rows in (contexts, queries, targets)]
    together = outcome(method, *parts)
    otherwise_padded = outcome(method, *(with_other_padding(part) for part in parts))
    for row, (context, query, target) in enumerate(zip(contexts, queries, targets, strict=True)):
        (alone,) = outcome(method, *(Tokens.from_lists([ids]) for ids in (context, query, target)))
        assert_same(together[row], alone)
        assert_same(otherwise_padded[row], alone)
    # The rows do differ, so that being equal says something.
    assert len({tuple(row["answer"]) for row in together}) > 1


@pytest.mark.parametrize("family", EVERY_BACKBONE)
def test_a_state_without_any_text_beside_one_with_text(family):
    on = backbone(family)
    method = build("truncated_text", on).train()
    texts = ["", text_of(12, 1)]
    queries, targets = Tokens.from_lists(ids_of(on, 2, 5)), Tokens.from_lists(ids_of(on, 3, 2, seed=1))

    def read(rows: slice):
        prefix = method.read(MemoryState.from_texts(texts[rows]))
        asked, wanted = queries.select(rows), targets.select(rows)
        losses, right = on.token_losses(prefix, asked, wanted)
        return losses, right, on.generate(prefix, asked, 5)

    losses, right, answers = read(slice(0, 2))
    for row, length in enumerate(targets.lengths.tolist()):
        alone = read(slice(row, row + 1))
        torch.testing.assert_close(losses[row, :length], alone[0][0], **CLOSE)
        assert right[row, :length].tolist() == alone[1][0].tolist()
        assert answers[row] == alone[2][0]
    # Nothing stands before the first row's query: it is what the model says of query and target alone.
    sequence = torch.tensor([queries.rows()[0] + targets.rows()[0]])
    plain = torch.nn.functional.cross_entropy(on.model(sequence).logits[0, 1:-1], sequence[0, 2:], reduction="none")
    torch.testing.assert_close(losses[0, :3], plain, **CLOSE)


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("family", EVERY_BACKBONE)
def test_gradients_do_not_depend_on_padding_either(family, order):
    """The gradient of a batch is the sum of its rows' gradients, through GradMem's steps too."""
    on = load_backbone(EVERY_BACKBONE[family], backbone(family).tokenizer, "cpu", seed=3)
    method = build("gradmem", on, order=order, reconstruction_weight=0.5).train()
    contexts, queries, targets = (
        ids_of(on, *lengths, seed=seed) for seed, lengths in enumerate((CONTEXTS, QUERIES, (2, 2, 2)))
    )

    def gradients(rows: slice) -> dict[str, torch.Tensor]:
        method.zero_grad()
        parts = [Tokens.from_lists(part[rows]) for part in (contexts, queries, targets)]
        method.loss(Batch(*parts, torch.arange(len(parts[0])))).total.backward()
        return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}

    together = gradients(slice(0, 3))
    alone = [gradients(slice(row, row + 1)) for row in range(3)]
    for name, gradient in together.items():
        mean = sum(one[name] for one in alone) / 3
        torch.testing.assert_close(gradient, mean, atol=1e-4 * float(mean.abs().max()) + 1e-6, rtol=1e-3)


def test_training_on_a_batch_with_an_empty_text_gives_finite_gradients():
    on = load_backbone(EVERY_BACKBONE["llama"], backbone("llama").tokenizer, "cpu", seed=3)
    method = build("truncated_text", on).train()
    prefix = method.read(MemoryState.from_texts(["", text_of(12, 1)]))
    on.target_loss(prefix, Tokens.from_lists(ids_of(on, 2, 5)), Tokens.from_lists(ids_of(on, 3, 2))).backward()
    gradients = [parameter.grad for parameter in on.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0


@pytest.mark.parametrize("method_name", METHODS)
def test_a_tokenizer_with_a_start_token(method_name):
    """Contexts then begin with it; the floor and a text that was cut to nothing still stand behind it."""
    tokenizer = byte_tokenizer(begin=True)
    name = "mamba-1x32" if families(method_name) == [*RECURRENT] else "llama-1x32"
    on: Backbone = load_backbone(BackboneConfig(name=name, init_std=0.2), tokenizer, "cpu", 0)
    assert on.start_ids == [0]
    method = build(method_name, on.requires_grad_(False))
    contexts = on.encode_contexts(["a short one", "é, and one that is longer"])
    assert [row[0] for row in contexts] == [0, 0]
    queries, targets = on.encode(["what?", "why, then"]), on.encode([" this", " so"])
    together = outcome(method, *(Tokens.from_lists(rows) for rows in (contexts, queries, targets)))
    for row, parts in enumerate(zip(contexts, queries, targets, strict=True)):
        (alone,) = outcome(method, *(Tokens.from_lists([ids]) for ids in parts))
        assert_same(together[row], alone)
    if method_name in ("truncated_text", "no_memory"):
        kept = "" if method_name == "no_memory" else "a short one"
        sequence = (
            torch.tensor([[0, *on.encode([kept])[0], *queries[0], *targets[0]]])
            if kept
            else torch.tensor([[0, *queries[0], *targets[0]]])
        )
        plain = torch.nn.functional.cross_entropy(on.model(sequence).logits[0, :-1], sequence[0, 1:], reduction="none")
        torch.testing.assert_close(together[0]["losses"], plain[-len(targets[0]) :], **CLOSE)

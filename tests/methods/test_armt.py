"""WRITE and READ against plain loops over layers, tokens and features; the form that crosses; what fills a budget."""

import copy

import pytest
import torch
import torch.nn.functional as F
from methods.matrix import backbone, build, ids_of, key_value_task

from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.config import BackboneConfig, Budget
from gradmem_bench.errors import UserError
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.armt import ARMT, ARMTParameters, key_features
from gradmem_bench.state import MemoryState

CLOSE = {"atol": 2e-5, "rtol": 1e-3}


def plain_features(key: torch.Tensor) -> torch.Tensor:
    """DPFP-3, one feature after another."""
    signed = [F.relu(number) for number in key] + [F.relu(-number) for number in key]
    count = len(signed)
    products = [signed[place] * signed[(place - shift) % count] for shift in (1, 2, 3) for place in range(count)]
    return F.normalize(torch.stack(products), dim=0)


class PlainARMT:
    """One context at a time: the layers called by hand, and A and z updated for one memory token after another."""

    def __init__(self, method: ARMT) -> None:
        self.method, self.model = method, method.backbone.model
        layers, d = method.backbone.layers, method.backbone.width
        features = 6 * method.settings.memory_dimension
        self.matrices = [method.queries.new_zeros(d, features) for _ in range(layers)]
        self.normalizers = [method.queries.new_zeros(features) for _ in range(layers)]

    def recalled(self, layer: int, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = plain_features(key)
        norm = self.normalizers[layer] @ features
        return self.matrices[layer] @ features / (norm + 1e-5), norm

    def run(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The last hidden states of (T, d), and every layer's output."""
        base, positions = self.model.base_model, torch.arange(len(embeddings))[None]
        hidden, outputs = embeddings[None], []
        gpt2 = self.model.config.model_type == "gpt2"
        if gpt2:
            hidden = hidden + base.wpe(positions)
        for layer, block in enumerate(base.h if gpt2 else base.layers):
            asked = hidden[0] @ self.method.queries[layer].T
            hidden = hidden + torch.stack([self.recalled(layer, query)[0] for query in asked])
            hidden = block(hidden) if gpt2 else block(hidden, position_embeddings=base.rotary_emb(hidden, positions))
            outputs.append(hidden[0])
        return (base.ln_f if gpt2 else base.norm)(hidden)[0], outputs

    def write(self, ids: list[int]) -> None:
        method = self.method
        tokens, width = method.memory.vectors, method.settings.segment_tokens or len(ids)
        for start in range(0, len(ids), width):
            embeddings = self.model.get_input_embeddings()(torch.tensor(ids[start : start + width]))
            _, outputs = self.run(torch.cat([embeddings, tokens]))
            for layer, output in enumerate(outputs):
                matrix, normalizer = self.matrices[layer].clone(), self.normalizers[layer].clone()
                for token in output[-len(tokens) :]:
                    key = method.keys[layer] @ token
                    known, norm = self.recalled(layer, key)
                    gate = torch.sigmoid(method.gates[layer] @ token + method.gate_bias[layer])
                    features = plain_features(key)
                    matrix += torch.outer(gate * (method.values[layer] @ token - known), features)
                    # A constant in the backward pass.
                    normalizer += max(0.0, 1 - float(norm.detach())) * features
                # What a segment's tokens are compared with is what stood there before all of them.
                self.matrices[layer], self.normalizers[layer] = matrix, normalizer


@pytest.mark.parametrize("segment", [None, 4, 7])
@pytest.mark.parametrize("family", ["gpt2", "llama", "llama-one-kv-head"])
@torch.no_grad()
def test_write_and_read_are_the_plain_delta_rule(family, segment):
    on = backbone(family)
    method = build("armt", on, segment_tokens=segment)
    # Large, so that what is recalled matters, and not so large that the order of additions does.
    torch.manual_seed(1)
    for parameter in (method.queries, method.keys, method.values, method.gates):
        parameter.normal_(std=0.4)
    contexts, queries = ids_of(on, 11, 4, 7), ids_of(on, 5, 2, 3, seed=1)
    state = MemoryState.from_bytes(method.write(Tokens.from_lists(contexts)).to_bytes())
    memory = method.read(state).layer_memory
    losses, _ = on.token_losses(method.read(state), Tokens.from_lists(queries), Tokens.from_lists(queries))
    untouched, _ = on.token_losses(build("no_memory", on).read(state), *[Tokens.from_lists(queries)] * 2)
    for row, (context, query) in enumerate(zip(contexts, queries, strict=True)):
        plain = PlainARMT(method)
        plain.write(context)
        for layer in range(on.layers):
            slots = torch.eye(24) if memory.slots is None else memory.slots[row, layer]
            torch.testing.assert_close(slots.T @ memory.values[row, layer], plain.matrices[layer].T, **CLOSE)
            torch.testing.assert_close(slots.T @ memory.weights[row, layer], plain.normalizers[layer], **CLOSE)
        states, _ = plain.run(on.model.get_input_embeddings()(torch.tensor(query + query)))
        logits = on.head(states)[len(query) - 1 : -1]
        expected = F.cross_entropy(logits, torch.tensor(query), reduction="none")
        torch.testing.assert_close(losses[row, : len(query)], expected, **CLOSE)
        assert (losses[row, : len(query)] - untouched[row, : len(query)]).abs().max() > 0.1


def test_the_features_of_a_key_by_hand():
    # relu of (1, -2, -1, 2) is (1, 0, 0, 2): rolled by one (2, 1, 0, 0), by two (0, 2, 1, 0), by three (0, 0, 2, 1).
    products = torch.tensor([2.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2])
    torch.testing.assert_close(key_features(torch.tensor([1.0, -2])), products / products.norm())


def test_a_fresh_memory_leaves_the_backbone_as_it_was():
    on = backbone("llama")
    method = ARMT(on, ARMTParameters())
    query = Tokens.from_lists(ids_of(on, 6))
    prefix = method.read(method.write(Tokens.from_lists(ids_of(on, 9))))
    torch.testing.assert_close(
        on.token_losses(prefix, query, query), on.token_losses(build("no_memory", on).read(prefix), query, query)
    )
    assert prefix.positions.tolist() == [0]


def test_a_key_written_twice_is_overwritten_and_not_added_to():
    """The delta rule: what the second segment says of a key takes the place of what the first one said."""
    on = backbone("llama")
    method = build("armt", on, segment_tokens=3)
    key = key_features(torch.randn(1, on.layers, 1, 4))
    gates, rows = torch.ones(1, on.layers, 1, 1), torch.tensor([True])
    memory = None
    for number in (5.0, 3.0):
        memory = method._updated(memory, key, torch.full((1, on.layers, 1, 32), number), gates, rows)
    recalled, norm = memory.recall(key, slice(None))
    torch.testing.assert_close(recalled, torch.full_like(recalled, 3.0), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(norm, torch.ones_like(norm))


def on_training(segment: int | None) -> tuple[ARMT, Batch]:
    """In double precision, with an uneven batch."""
    config = BackboneConfig(name="gpt2-2x16", heads=2, max_positions=64, init_std=0.3)
    on = load_backbone(config, key_value_task().tokenizer(), "cpu", 1)
    method = build("armt", on, segment_tokens=segment).double().train()
    rows = ids_of(on, 9, 5), ids_of(on, 2, 4, 3, seed=1), ids_of(on, 2, 2, 2, seed=2)
    return method, Batch(*(Tokens.from_lists(part) for part in rows), torch.tensor([0, 1, 1]))


@pytest.mark.parametrize("segment", [None, 4])
def test_the_gradient_through_the_memory_is_that_of_the_plain_loops(segment):
    method, batch = on_training(segment)
    parameters = dict(method.named_parameters())
    found = torch.autograd.grad(method.loss(batch).total, parameters.values(), allow_unused=True)
    losses = []
    for row, owner in enumerate(batch.context_of.tolist()):
        plain = PlainARMT(method)
        plain.write(batch.contexts.rows()[owner])
        sequence = torch.tensor(batch.queries.rows()[row] + batch.targets.rows()[row])
        states, _ = plain.run(method.backbone.embed(sequence))
        losses.append(F.cross_entropy(method.backbone.head(states)[-3:-1], sequence[-2:], reduction="sum"))
    expected = torch.autograd.grad(sum(losses) / 6, parameters.values(), allow_unused=True)
    for name, one, other in zip(parameters, found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-6, msg=name)
    for name in ("memory.vectors", "queries", "keys", "values", "gates"):
        assert found[list(parameters).index(name)].any()


def test_the_gradient_through_the_memory_agrees_with_finite_differences():
    method, batch = on_training(None)
    method.loss(batch).total.backward()
    torch.manual_seed(0)
    directions = [torch.randn_like(parameter) for parameter in method.parameters()]
    slope = sum(float((p.grad * way).sum()) for p, way in zip(method.parameters(), directions, strict=True))

    def shifted(size: float) -> float:
        other = copy.deepcopy(method)
        with torch.no_grad():
            for parameter, way in zip(other.parameters(), directions, strict=True):
                parameter += size * way
            return float(other.loss(batch).total)

    assert slope == pytest.approx((shifted(1e-7) - shifted(-1e-7)) / 2e-7, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "names", "numbers"),
    [
        # Two layers of width 32: 3 keys of 4 and values of 32, against 24 features of 32 numbers and a normaliser.
        ({}, ["keys", "values"], 2 * 3 * (4 + 32)),
        ({"segment_tokens": 4}, ["matrices", "normalizers"], 2 * 24 * (32 + 1)),
        # Where there are many memory tokens and few features, the matrices are smaller for one segment too.
        ({"memory_vectors": 9, "memory_dimension": 1}, ["matrices", "normalizers"], 2 * 6 * (32 + 1)),
    ],
    ids=str,
)
def test_the_smaller_form_crosses(settings, names, numbers):
    on = backbone("llama")
    state = build("armt", on, **settings).write(Tokens.from_lists(ids_of(on, 9)))
    assert sorted(state.tensors) == names and state.nbytes() == [4 * numbers]


def test_both_forms_of_one_segment_answer_alike():
    on = backbone("gpt2")
    contexts, query = Tokens.from_lists(ids_of(on, 9, 5)), Tokens.from_lists(ids_of(on, 3, 3, seed=1))
    # A segment that is as long as the contexts is one segment; its state is then matrices.
    found = []
    for segment in (None, 9):
        method = build("armt", on, segment_tokens=segment)
        found.append(on.token_losses(method.read(method.write(contexts)), query, query)[0])
    torch.testing.assert_close(*found, **CLOSE)


@pytest.mark.parametrize(
    ("settings", "budget", "dimension"),
    [
        # 2 layers x 3 memory tokens x (d_mem + 32) numbers of 4 bytes.
        ({}, Budget(bytes=24 * 37), 5),
        ({}, Budget(bytes=24 * 38 - 1), 5),
        ({}, Budget(bytes=10**6), 32),
        ({}, Budget(positions=1), 4),
        # 2 layers x 6 d_mem x 33 numbers.
        ({"segment_tokens": 4}, Budget(bytes=1584 * 2), 2),
    ],
    ids=str,
)
def test_a_budget_is_filled_with_dimensions_of_keys(settings, budget, dimension):
    on = backbone("llama")
    method = build("armt", on, **settings)
    fitted = method.fit(method.settings, budget, on)
    assert fitted == method.settings.model_copy(update={"memory_dimension": dimension})


def test_a_budget_that_holds_no_key_is_refused_in_a_sentence():
    method = build("armt", backbone("llama"))
    with pytest.raises(
        UserError, match="associations of 3 memory tokens in 2 layers, which take 792 B with keys of one"
    ):
        method.fit(method.settings, Budget(bytes=791), backbone("llama"))


def test_the_state_is_float32_under_autocast_too():
    on = backbone("llama")
    for settings in ({}, {"segment_tokens": 4}):
        method = build("armt", on, **settings)
        context = Tokens.from_lists(ids_of(on, 9))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            (found,) = method.write(context).nbytes()
        assert found == method.footprint(method.settings, on, 9, 9).state_bytes

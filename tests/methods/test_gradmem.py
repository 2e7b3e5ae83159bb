import copy

import pytest
import torch
import torch.nn.functional as F
from methods.matrix import BACKBONES, CONTROL, backbone, build, ids_of, key_value_task
from methods.plain import plain_loss, plain_write, plain_write_with_knobs
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradmem_bench.attention import blockwise
from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.config import BackboneConfig, validated
from gradmem_bench.errors import UserError
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.gradmem import GradMem, GradMemParameters
from gradmem_bench.methods.vectors import vectors_prefix

CONTEXTS, QUERIES, TARGETS = (9, 5), (3, 2, 4), (2, 2, 1)
KNOBS = {
    "control": CONTROL,
    "shared": {"projection": "shared"},
    "per_sample": {"projection": "per_sample"},
    "adam": {"inner_optimizer": "adam", "inner_learning_rate": 0.03},
    "adam per_sample": {"inner_optimizer": "adam", "inner_learning_rate": 0.03, "projection": "per_sample"},
    "clip_value": {"inner_clip_value": 0.003},
    "clip_norm": {"inner_clip_norm": 0.05},
    "clip both": {"inner_clip_value": 0.01, "inner_clip_norm": 0.05},
    "clip per_sample": {"inner_clip_norm": 0.05, "projection": "per_sample"},
    "clip adam": {"inner_clip_value": 0.003, "inner_optimizer": "adam", "inner_learning_rate": 0.03},
    "shared control clip adam": {
        **CONTROL,
        "projection": "shared",
        "inner_clip_norm": 0.05,
        "inner_optimizer": "adam",
        "inner_learning_rate": 0.03,
    },
}
LEARNED = ["one", "per_step", "per_vector"]


def small(order: str = "second", **settings):
    """One layer of GPT-2 in float64: no norm of it goes through float32."""
    shape = BackboneConfig(name="gpt2-1x16", heads=2, max_positions=64, init_std=0.3)
    on = load_backbone(shape, key_value_task().tokenizer(), "cpu", 1)
    return build("gradmem", on, order=order, inner_learning_rate=0.5, **settings).double().train()


def batch_of(method) -> Batch:
    parts = [ids_of(method.backbone, *lengths, seed=seed) for seed, lengths in enumerate((CONTEXTS, QUERIES, TARGETS))]
    return Batch(*(Tokens.from_lists(rows) for rows in parts), torch.tensor([0, 1, 1]))


@pytest.mark.parametrize("write_head", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_write_is_algorithm_1(family, write_head):
    on = copy.deepcopy(backbone(family)).requires_grad_(True)
    method = build("gradmem", on, write_head=write_head)
    contexts = ids_of(on, 11, 4)
    written = method.write(Tokens.from_lists(contexts)).tensors["memory"]
    assert not written.requires_grad
    for row, context in enumerate(contexts):
        torch.testing.assert_close(written[row], plain_write(method, context, 2).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("knobs", KNOBS)
def test_write_with_each_knob_is_what_torch_s_optimisers_make(knobs):
    settings = {"inner_steps": 3, "inner_learning_rate": 2.0, **KNOBS[knobs]}
    method = build("gradmem", copy.deepcopy(backbone("gpt2")).requires_grad_(True), **settings)
    rate = method.settings.inner_learning_rate
    contexts = ids_of(method.backbone, 11, 4)
    written = method.write(Tokens.from_lists(contexts)).tensors["memory"]
    plain = [plain_write_with_knobs(method, context, [[rate] * 3] * 3) for context in contexts]
    torch.testing.assert_close(written, torch.stack(plain), atol=1e-4, rtol=1e-4)
    # And the knob does something.
    bare = build("gradmem", method.backbone, inner_steps=3, inner_learning_rate=rate)
    assert (bare.write(Tokens.from_lists(contexts)).tensors["memory"] - written).abs().max() > 1e-3


@pytest.mark.parametrize("projection", ["none", "per_sample"])
@pytest.mark.parametrize("learned", LEARNED)
def test_learned_learning_rates(learned, projection):
    """Each is the configured one at the start; steps beyond training's take the last."""
    settings = {"inner_learning_rate": 2.0, "learned_inner_learning_rate": learned, "projection": projection}
    fresh = GradMem(backbone("gpt2"), GradMemParameters(**settings))
    assert (torch.as_tensor(fresh.learning_rates(1)) == 2.0).all()
    method = build(
        "gradmem", copy.deepcopy(backbone("gpt2")).requires_grad_(True), evaluation_inner_steps=4, **settings
    )
    with torch.no_grad():
        method.log_learning_rate.normal_(generator=torch.Generator().manual_seed(0))
    rates = 2.0 * method.log_learning_rate.detach().exp()
    rows = 3 + (33 if projection == "per_sample" else 0)
    assert rates.shape == {"one": (), "per_step": (2,), "per_vector": (rows, 1)}[learned]
    if learned == "per_step":
        steps = [[rates[0]] * 3, *[[rates[1]] * 3] * 3]
    elif learned == "per_vector":
        steps = [[rates[:3], rates[3:-1], rates[-1:]]] * 4
    else:
        steps = [[rates] * 3] * 4
    contexts = ids_of(method.backbone, 11, 4)
    written = method.write(Tokens.from_lists(contexts)).tensors["memory"]
    plain = [plain_write_with_knobs(method, context, steps) for context in contexts]
    torch.testing.assert_close(written, torch.stack(plain), atol=1e-3, rtol=1e-3)


def test_more_steps_at_evaluation_than_in_training_rebuild_the_context_better():
    on = backbone("gpt2")
    contexts = Tokens.from_lists(ids_of(on, 8, 5))
    losses = []
    for steps in (None, 4, 12):
        method = build("gradmem", on, inner_steps=2, inner_learning_rate=0.05, evaluation_inner_steps=steps)
        losses.append(method.reconstruction_loss(method.write(contexts), contexts))
    assert all((later < earlier).all() for earlier, later in zip(losses, losses[1:], strict=False))


def test_the_steps_at_evaluation_may_be_others_than_in_training():
    method = build("gradmem", copy.deepcopy(backbone("gpt2")), inner_steps=1, evaluation_inner_steps=4)
    method.requires_grad_(True)
    (context,) = ids_of(method.backbone, 8)
    for training, steps in ((True, 1), (False, 4)):
        written = method.train(training).write(Tokens.from_lists([context])).tensors["memory"][0]
        torch.testing.assert_close(written, plain_write(method, context, steps), atol=1e-4, rtol=1e-4)


def test_more_steps_rebuild_the_context_better():
    method = build("gradmem", backbone("gpt2"), inner_learning_rate=0.05)
    contexts = Tokens.from_lists(ids_of(method.backbone, 8, 5))
    losses = []
    for steps in (0, 1, 3, 10):
        method.settings = method.settings.model_copy(update={"inner_steps": steps})
        losses.append(method.reconstruction_loss(method.write(contexts), contexts))
    assert all((later < earlier).all() for earlier, later in zip(losses, losses[1:], strict=False))


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_loss_of_two_contexts_and_three_queries_written_out(weight):
    method = small(inner_steps=2, reconstruction_weight=weight)
    batch = batch_of(method)
    model = method.backbone.model
    contexts = batch.contexts.rows()
    memories = [plain_write(method, context, 2) for context in contexts]
    costs, rebuilt = [], []
    for query, target, owner in zip(batch.queries.rows(), batch.targets.rows(), (0, 1, 1), strict=True):
        sequence = torch.cat([memories[owner], model.get_input_embeddings()(torch.tensor(query + target))])[None]
        logits = model(inputs_embeds=sequence).logits[0, -len(target) - 1 : -1]
        costs.append(F.cross_entropy(logits, torch.tensor(target), reduction="none"))
    for memory, context in zip(memories, contexts, strict=True):
        sequence = torch.cat([memory, model.get_input_embeddings()(torch.tensor(context))])[None]
        hidden = model.base_model(inputs_embeds=sequence).last_hidden_state[0, 2:-1]
        rebuilt.append(F.cross_entropy(method.write_head(hidden), torch.tensor(context)))
    # Over all target tokens at once, and over contexts.
    expected = torch.cat(costs).mean() + weight * torch.stack(rebuilt).mean()
    loss = method.loss(batch)
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.parts["answer"], torch.cat(costs).mean().detach())
    assert ("reconstruction" in loss.parts) == bool(weight)


OUTER = {
    "bare": {},
    "reconstruction": {"reconstruction_weight": 0.7},
    "control": CONTROL,
    "shared": {"projection": "shared", "learned_inner_learning_rate": "one"},
    "per_sample": {"projection": "per_sample", "learned_inner_learning_rate": "per_vector"},
    "adam": {"inner_optimizer": "adam", "learned_inner_learning_rate": "per_step"},
    "clip_norm": {"inner_clip_norm": 0.3},
    "everything": {
        **CONTROL,
        "projection": "per_sample",
        "learned_inner_learning_rate": "per_step",
        "inner_clip_norm": 0.3,
        "reconstruction_weight": 0.7,
    },
}


@pytest.mark.parametrize("knobs", OUTER)
def test_the_outer_gradient_against_finite_differences(knobs):
    method = small(inner_steps=2, **OUTER[knobs])
    batch = batch_of(method)
    method.loss(batch).total.backward()
    names = [
        "memory.vectors",
        "write_head.weight",
        "backbone.model.transformer.h.0.attn.c_attn.weight",
        "backbone.model.transformer.h.0.mlp.c_fc.weight",
        "backbone.model.transformer.wpe.weight",
        "backbone.model.transformer.wte.weight",
    ]
    parameters = dict(method.named_parameters())
    names += [name for name in parameters if not name.startswith(("backbone.", "memory.", "write_head."))]
    step = 1e-5
    for name in names:
        parameter = parameters[name]
        # The entries with the largest gradients, and the direction of all of them together.
        flat = parameter.grad.flatten()
        for direction in (F.one_hot(flat.abs().argmax(), flat.numel()).double(), flat / flat.norm()):
            direction = direction.view_as(parameter)
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter += sign * step * direction
                values.append(float(method.loss(batch).total.detach()))
                with torch.no_grad():
                    parameter -= sign * step * direction
            measured = (values[0] - values[1]) / (2 * step)
            expected = float((parameter.grad * direction).sum())
            assert abs(expected) > 1e-4, name
            assert measured == pytest.approx(expected, rel=1e-5, abs=1e-8), name


@pytest.mark.parametrize("knobs", OUTER)
def test_recomputing_gives_every_parameter_the_gradient_of_unrolling(knobs):
    gradients = []
    for engine in ("unrolled", "recompute"):
        method = small(inner_steps=3, second_order_steps=2, engine=engine, **OUTER[knobs])
        method.loss(batch_of(method)).total.backward()
        gradients.append({name: parameter.grad for name, parameter in method.named_parameters()})
    for name, expected in gradients[0].items():
        assert expected is not None, name
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-9, atol=1e-12)


def test_second_order_through_the_last_steps_alone():
    """Against a loop in which the gradients of the steps before them are constants."""
    for last in (1, 2, 3):
        method = small(inner_steps=3, second_order_steps=last)
        batch = batch_of(method)
        method.loss(batch).total.backward()
        memories = []
        for context in batch.contexts.rows():
            memory = method.memory.vectors
            for step in range(3):
                with sdpa_kernel(SDPBackend.MATH):
                    (slope,) = torch.autograd.grad(plain_loss(method, memory, context), memory, create_graph=True)
                memory = memory - 0.5 * (slope if step >= 3 - last else slope.detach())
            memories.append(memory)
        prefix = vectors_prefix(torch.stack(memories)).select(batch.context_of)
        plain = method.backbone.target_loss(prefix, batch.queries, batch.targets)
        wanted = [method.memory.vectors, method.write_head.weight]
        for parameter, expected in zip(wanted, torch.autograd.grad(plain, wanted), strict=True):
            torch.testing.assert_close(parameter.grad, expected)


def test_the_write_head_learns_under_second_order_alone():
    gradients = {}
    for order in ("second", "first"):
        method = small(order, inner_steps=2)
        method.loss(batch_of(method)).total.backward()
        gradients[order] = method.write_head.weight.grad, method.memory.vectors.grad
    assert gradients["second"][0].abs().max() > 1e-4
    assert gradients["first"][0] is None
    assert (gradients["second"][1] - gradients["first"][1]).abs().max() > 1e-4


def test_first_order_takes_what_write_added_as_a_constant():
    method = small("first", inner_steps=2)
    batch = batch_of(method)
    method.loss(batch).total.backward()
    added = method.write(batch.contexts).tensors["memory"].detach() - method.memory.vectors.detach()
    start = method.memory.vectors.detach().clone().requires_grad_()
    prefix = method.read(method.write(batch.contexts)).select(batch.context_of)
    moved = type(prefix)(prefix.mask, embeddings=(start + added)[batch.context_of])
    (expected,) = torch.autograd.grad(method.backbone.target_loss(moved, batch.queries, batch.targets), start)
    torch.testing.assert_close(method.memory.vectors.grad, expected)


def test_without_a_meta_gradient_what_write_alone_uses_learns_nothing():
    method = small("none", inner_steps=2, projection="shared", **CONTROL)
    assert not method.write(batch_of(method).contexts).tensors["memory"].requires_grad
    method.loss(batch_of(method)).total.backward()
    trained = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert {name for name in trained if not name.startswith("backbone.")} == {
        "projection.weight",
        "projection.bias",
        "read_control.before.vectors",
        "read_control.after.vectors",
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"second_order_steps": 1, "order": "first"}, "second_order_steps has no meaning with order 'first'"),
        ({"second_order_steps": 3, "inner_steps": 2}, "second_order_steps 3 is more than inner_steps 2"),
        ({"learned_inner_learning_rate": "one", "order": "none"}, "is not trained with order 'none'"),
        ({"learned_inner_learning_rate": "per_step", "inner_steps": 0}, "needs inner_steps of at least 1"),
        ({"inner_clip_norm": 0}, "'inner_clip_norm' is 0"),
        ({"projection": "proj"}, "'none', 'shared' or 'per_sample'"),
    ],
)
def test_a_setting_without_meaning_is_refused(settings, words):
    with pytest.raises(UserError, match=words):
        validated(GradMemParameters, settings, "method 'gradmem'")


def test_a_frozen_backbone_is_not_trained_and_the_rest_is():
    method = build("gradmem", copy.deepcopy(backbone("gpt2")).requires_grad_(True), freeze_backbone=True).train()
    assert {name for name, one in method.named_parameters() if one.requires_grad} == {
        "memory.vectors",
        "write_head.weight",
    }
    method.loss(batch_of(method)).total.backward()
    assert method.memory.vectors.grad.any() and method.write_head.weight.grad.any()
    assert all(parameter.grad is None for parameter in method.backbone.parameters())


@pytest.mark.parametrize("engine", ["unrolled", "recompute"])
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(family, engine):
    gradients, kept, answers = [], [], []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += tensor.nbytes
        return tensor

    for checkpointing in (False, True):
        on = load_backbone(BACKBONES[family], key_value_task().tokenizer(), "cpu", seed=3)
        settings = {"engine": engine, "reconstruction_weight": 0.5, "gradient_checkpointing": checkpointing}
        method = build("gradmem", on, **settings).train()
        kept.append(0)
        # What a checkpointed layer keeps for itself goes past these hooks and is thrown away.
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = method.loss(batch_of(method)).total
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in method.named_parameters()})
        batch = batch_of(method)
        with torch.no_grad():
            prefix = method.read(method.eval().write(batch.contexts)).select(batch.context_of)
        answers.append(method.backbone.generate(prefix, batch.queries, 5))
    assert kept[1] < 0.6 * kept[0]
    assert answers[0] == answers[1] and len(answers[0][0]) == 5
    for name, expected in gradients[0].items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-3, atol=1e-4 * scale + 1e-6)


@pytest.mark.parametrize("family", BACKBONES)
def test_the_write_head_starts_as_a_copy_that_is_its_own(family):
    on = copy.deepcopy(backbone(family)).requires_grad_(True)
    method = GradMem(on, GradMemParameters())
    assert torch.equal(method.write_head.weight, on.head.weight)
    with torch.no_grad():
        method.write_head.weight.zero_()
    assert on.head.weight.any() and on.model.get_input_embeddings().weight.any()


def test_large_contexts_are_attended_in_blocks_and_give_the_same_gradients(monkeypatch):
    on = backbone("llama")
    batch = Batch(
        Tokens.from_lists(ids_of(on, 9, 6)), Tokens.from_lists(ids_of(on, 3, 4)), Tokens.from_lists(ids_of(on, 2, 1)),
        torch.arange(2),
    )  # fmt: skip
    gradients, runs = [], []
    monkeypatch.setattr("gradmem_bench.methods.gradmem.blockwise", lambda model: runs.append(1) or blockwise(model))
    for large in (1 << 25, 0):
        monkeypatch.setattr("gradmem_bench.methods.gradmem._LARGE", large)
        method = build("gradmem", on).train()
        method.loss(batch).total.backward()
        gradients.append(method.memory.vectors.grad)
    assert len(runs) == method.settings.inner_steps
    # Single numbers near zero differ by more, from one machine's rounding to another's.
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 1e-5


def leaves_of(loss: torch.Tensor) -> int:
    """How many tensors a backward pass from here would reach."""
    seen, open_nodes = set(), [loss.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            open_nodes += [other for other, _ in node.next_functions]
    return sum(type(node).__name__ == "AccumulateGrad" for node in seen)


@pytest.mark.parametrize("name", BACKBONES)
def test_write_at_evaluation_differentiates_by_the_memory_alone(name, monkeypatch):
    method = build(
        "gradmem", load_backbone(BACKBONES[name], key_value_task().tokenizer(), "cpu", seed=3), inner_steps=2
    )
    contexts = Tokens.from_lists(ids_of(method.backbone, 9, 5))
    reached, plain = [], method.write_loss

    def watched(memory, contexts):
        loss = plain(memory, contexts)
        reached.append(leaves_of(loss))
        return loss

    monkeypatch.setattr(method, "write_loss", watched)
    method.eval().write(contexts)
    # Weights that a gradient could reach would have their activations kept.
    assert reached == [1, 1]
    method.train().write(contexts)
    assert min(reached[2:]) > 10
    assert all(parameter.requires_grad for parameter in method.parameters())

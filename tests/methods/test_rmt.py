import copy

import pytest
import torch
from methods.matrix import BACKBONES, CONTROL, backbone, build, ids_of

from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.config import validated
from gradmem_bench.errors import UserError
from gradmem_bench.methods.rmt import RMT, RMTParameters
from gradmem_bench.state import MemoryState

PROJECTIONS = ["none", "write", "shared", "read_write"]


def mapped(layer: torch.nn.Linear | None, memory: torch.Tensor) -> torch.Tensor:
    return memory if layer is None else memory @ layer.weight.T + layer.bias


def plain_write(method, context: list[int]) -> torch.Tensor:
    """The passes over one unpadded context, with transformers' own forward and a loop."""
    model, settings = method.backbone.model, method.settings
    embedded = model.get_input_embeddings()(torch.tensor(context))
    empty = embedded[:0]
    before, after = (
        empty if side is None else side.vectors for side in (method.write_control.before, method.write_control.after)
    )
    memory = method.memory.vectors
    for index in range(settings.passes):
        entering = mapped(method.projection, memory)
        sequence = torch.cat([before, entering, after, embedded, before, entering])
        output = model(inputs_embeds=sequence[None], output_hidden_states=True)
        # transformers' last hidden states are those behind the final norm.
        written = output.hidden_states[-1][0, -settings.memory_vectors :]
        if settings.residual and index > 0:
            # By hand: mean 0 and variance 1, then the learned scale and shift.
            centred = written - written.mean(dim=-1, keepdim=True)
            normal = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
            written = memory + normal * method.norm.weight + method.norm.bias
        memory = written
    return memory


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("family", BACKBONES)
def test_write_is_the_last_hidden_states_behind_memory_and_context(family, projection, passes):
    on = backbone(family)
    method = build("rmt", on, projection=projection, passes=passes)
    contexts = ids_of(on, 11, 4)
    with torch.no_grad():
        written = method.write(Tokens.from_lists(contexts)).tensors["memory"]
        for row, context in enumerate(contexts):
            torch.testing.assert_close(written[row], plain_write(method, context), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{"residual": True, "passes": 3}, CONTROL, {"residual": True, **CONTROL}])
def test_residual_passes_and_control_tokens(settings):
    on = backbone("gpt2")
    method = build("rmt", on, **settings)
    contexts = ids_of(on, 11, 4)
    with torch.no_grad():
        written = method.write(Tokens.from_lists(contexts)).tensors["memory"]
        for row, context in enumerate(contexts):
            torch.testing.assert_close(written[row], plain_write(method, context), atol=1e-4, rtol=1e-4)
    other = build("rmt", on).write(Tokens.from_lists(contexts)).tensors["memory"]
    assert (written - other).abs().max() > 0.01


@pytest.mark.parametrize("control", [{}, CONTROL], ids=["bare", "control"])
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_each_map_stands_where_its_name_says(projection, control):
    on = backbone("llama")
    method = build("rmt", on, projection=projection, **control)
    assert (method.projection is not None, method.read_projection is not None) == {
        "none": (False, False),
        "write": (True, False),
        "shared": (True, False),
        "read_write": (True, True),
    }[projection]
    memory = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    layer = {"shared": method.projection, "read_write": method.read_projection}.get(projection)
    sides = method.read_control.before, method.read_control.after
    before, after = (memory[0, :0] if side is None else side.vectors for side in sides)
    prefix = method.read(MemoryState({"memory": memory}))
    assert prefix.positions.tolist() == [6 if control else 3] * 2
    for row in range(2):
        torch.testing.assert_close(prefix.embeddings[row], torch.cat([before, mapped(layer, memory[row]), after]))


def test_the_maps_are_the_identity_before_training():
    on = backbone("llama")
    contexts = Tokens.from_lists(ids_of(on, 6))
    states, prefixes = [], []
    for projection in PROJECTIONS:
        torch.manual_seed(0)
        method = RMT(on, RMTParameters(projection=projection))
        states.append(method.write(contexts))
        prefixes.append(method.read(states[-1]).embeddings)
    for state, prefix in zip(states[1:], prefixes[1:], strict=True):
        torch.testing.assert_close(state.tensors["memory"], states[0].tensors["memory"])
        torch.testing.assert_close(prefix, prefixes[0])


def test_the_reconstruction_loss_is_the_model_s_own_and_joins_the_outer_loss():
    on = copy.deepcopy(backbone("llama")).requires_grad_(True)
    method = build("rmt", on, reconstruction_weight=0.5).train()
    context, query, target = ids_of(on, 9, 3, 2)
    batch = Batch(*(Tokens.from_lists([ids]) for ids in (context, query, target)), torch.tensor([0]))
    memory = mapped(method.projection, method.write(batch.contexts).tensors["memory"][0])

    def nats(ids: list[int], counted: int) -> torch.Tensor:
        sequence = torch.cat([memory, on.model.get_input_embeddings()(torch.tensor(ids))])[None]
        logits = on.model(inputs_embeds=sequence).logits[0, -counted - 1 : -1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[-counted:]))

    loss = method.loss(batch)
    torch.testing.assert_close(loss.total, nats(query + target, 2) + 0.5 * nats(context, 9))
    loss.total.backward()
    assert method.memory.vectors.grad.any() and method.projection.weight.grad.any()


def test_the_reconstruction_loss_is_that_of_one_more_pass_of_write_under_its_own_head():
    on = copy.deepcopy(backbone("gpt2")).requires_grad_(True)
    settings = {"projection": "read_write", "write_head": True, "reconstruction_weight": 0.5, **CONTROL}
    method = build("rmt", on, **settings).train()
    (context,) = ids_of(on, 9)
    memory = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    found = method.reconstruction_loss(MemoryState({"memory": memory}), Tokens.from_lists([context]))
    control, embedded = method.write_control, on.model.get_input_embeddings()(torch.tensor(context))
    entering = mapped(method.projection, memory[0])
    sequence = torch.cat([control.before.vectors, entering, control.after.vectors, embedded])
    hidden = on.model.base_model(inputs_embeds=sequence[None]).last_hidden_state[0]
    logits = hidden[5:-1] @ method.write_head.weight.T
    torch.testing.assert_close(found[0], torch.nn.functional.cross_entropy(logits, torch.tensor(context)))
    found.sum().backward()
    assert method.write_head.weight.grad.any() and on.model.get_input_embeddings().weight.grad.any()
    # The head is a copy, and no part of it is the model's own.
    assert method.write_head.weight is not on.head.weight


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"residual": True}, "residual has no meaning with passes 1"),
        ({"write_head": True}, "set a reconstruction_weight"),
    ],
)
def test_a_setting_without_effect_is_refused(settings, words):
    with pytest.raises(UserError, match=words):
        validated(RMTParameters, settings, "method 'rmt'")


def test_the_state_is_float32_under_autocast_too():
    on = backbone("llama")
    for projection in PROJECTIONS:
        method = build("rmt", on, projection=projection)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            (data,) = method.write(Tokens.from_lists(ids_of(on, 6))).nbytes()
        assert data == 3 * 32 * 4

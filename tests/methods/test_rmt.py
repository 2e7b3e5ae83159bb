import copy

import pytest
import torch
from methods.matrix import BACKBONES, backbone, build, ids_of

from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.methods.rmt import RMT, RMTParameters


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize("family", BACKBONES)
def test_write_is_the_last_hidden_states_behind_memory_and_context(family, projection, passes):
    on = backbone(family)
    method = build("rmt", on, projection=projection, passes=passes)
    contexts = ids_of(on, 11, 4)
    with torch.no_grad():
        written = method.write(Tokens.from_lists(contexts)).tensors["memory"]
        for row, context in enumerate(contexts):
            memory = method.memory.vectors
            for _ in range(passes):
                sequence = torch.cat([memory, on.model.get_input_embeddings()(torch.tensor(context)), memory])
                output = on.model(inputs_embeds=sequence[None], output_hidden_states=True)
                # transformers' last hidden states are those behind the final norm.
                memory = output.hidden_states[-1][0, -3:]
                if projection:
                    memory = memory @ method.projection.weight.T + method.projection.bias
            torch.testing.assert_close(written[row], memory, atol=1e-4, rtol=1e-4)


def test_the_projection_is_the_identity_before_training():
    on = backbone("llama")
    contexts = Tokens.from_lists(ids_of(on, 6))
    states = []
    for projection in (True, False):
        torch.manual_seed(0)
        states.append(RMT(on, RMTParameters(projection=projection)).write(contexts).tensors["memory"])
    torch.testing.assert_close(*states)


def test_the_reconstruction_loss_is_the_model_s_own_and_joins_the_outer_loss():
    on = copy.deepcopy(backbone("llama")).requires_grad_(True)
    method = build("rmt", on, reconstruction_weight=0.5).train()
    context, query, target = ids_of(on, 9, 3, 2)
    batch = Batch(*(Tokens.from_lists([ids]) for ids in (context, query, target)), torch.tensor([0]))
    memory = method.write(batch.contexts).tensors["memory"][0]

    def nats(ids: list[int], counted: int) -> torch.Tensor:
        sequence = torch.cat([memory, on.model.get_input_embeddings()(torch.tensor(ids))])[None]
        logits = on.model(inputs_embeds=sequence).logits[0, -counted - 1 : -1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[-counted:]))

    loss = method.loss(batch)
    torch.testing.assert_close(loss.total, nats(query + target, 2) + 0.5 * nats(context, 9))
    loss.total.backward()
    assert method.memory.vectors.grad.any() and method.projection.weight.grad.any()


def test_the_state_is_float32_under_autocast_too():
    on = backbone("llama")
    for projection in (True, False):
        method = build("rmt", on, projection=projection)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            (data,) = method.write(Tokens.from_lists(ids_of(on, 6))).nbytes()
        assert data == 3 * 32 * 4

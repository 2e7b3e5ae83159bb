"""The maps between memory and backbone: fast weights by hand, and where GradMem's maps stand."""

import pytest
import torch
from methods.matrix import CONTROL, backbone, build, ids_of

from gradmem_bench.batch import Tokens
from gradmem_bench.methods.gradmem import GradMem, GradMemParameters
from gradmem_bench.methods.projection import linear_map, projected_by_own, with_fast_weights
from gradmem_bench.state import MemoryState


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_fast_weights_are_rows_behind_the_vectors_and_each_sample_s_own():
    start = linear_map(4)
    with torch.no_grad():
        start.weight.copy_(draw(4, 4, seed=1))
        start.bias.copy_(draw(4, seed=2))
    vectors = draw(2, 3, 4)
    memory = with_fast_weights(vectors, start)
    assert memory.shape == (2, 3 + 4 + 1, 4)
    torch.testing.assert_close(projected_by_own(memory), start(vectors))
    # Another weight, bias or vector of the second sample is no matter of the first.
    changed = memory.detach().clone()
    changed[1] = draw(8, 4, seed=3)
    torch.testing.assert_close(projected_by_own(changed)[0], start(vectors)[0])
    weight, bias = changed[1, 3:7], changed[1, 7]
    by_hand = torch.stack([weight @ vector + bias for vector in changed[1, :3]])
    torch.testing.assert_close(projected_by_own(changed)[1], by_hand)


def test_a_step_behind_a_shared_map_is_preconditioned_by_it():
    """P(M - α Wᵀ g) = P(M) - α W Wᵀ g, with g the gradient where the vectors stand in the backbone."""
    method = build("gradmem", backbone("gpt2"), projection="shared", inner_steps=1, inner_learning_rate=2.0)
    contexts = Tokens.from_lists(ids_of(method.backbone, 7))
    layer, start = method.projection, method.memory.vectors
    standing = layer(start).detach().requires_grad_()
    bare = build("gradmem", backbone("gpt2"))
    bare.write_head = method.write_head
    (slope,) = torch.autograd.grad(bare.write_loss(standing[None], contexts).sum(), standing)
    with torch.no_grad():
        moved = layer(method.write(contexts).tensors["memory"][0])
        expected = standing - 2.0 * slope @ layer.weight @ layer.weight.T
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)
    assert (moved - standing).abs().max() > 0.01


@pytest.mark.parametrize("projection", ["none", "shared", "per_sample"])
def test_read_is_the_state_behind_the_shared_map_between_the_control_tokens(projection):
    method = build("gradmem", backbone("llama"), projection=projection, **CONTROL)
    vectors = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    prefix = method.read(MemoryState({"memory": vectors}))
    assert prefix.positions.tolist() == [6, 6]
    standing = vectors if projection != "shared" else vectors @ method.projection.weight.T + method.projection.bias
    control = method.read_control
    for row in range(2):
        expected = torch.cat([control.before.vectors, standing[row], control.after.vectors])
        torch.testing.assert_close(prefix.embeddings[row], expected)


@pytest.mark.parametrize("projection", ["none", "shared", "per_sample"])
def test_maps_are_the_identity_before_training_and_the_state_is_float32(projection):
    torch.manual_seed(0)
    method = GradMem(backbone("llama"), GradMemParameters(projection=projection, inner_steps=0, memory_vectors=3))
    contexts = Tokens.from_lists(ids_of(method.backbone, 6))
    for autocast in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            state = method.eval().write(contexts)
        assert state.nbytes() == [3 * 32 * 4]
        close = {"rtol": 1e-2, "atol": 1e-3} if autocast else {}
        torch.testing.assert_close(state.tensors["memory"][0], method.memory.vectors.detach(), **close)
        torch.testing.assert_close(method.read(state).embeddings, state.tensors["memory"], **close)

import pytest
import torch
from methods.matrix import CONTROL, METHODS, backbone, build, ids_of

from gradmem_bench.batch import Tokens
from gradmem_bench.config import Budget
from gradmem_bench.errors import UserError
from gradmem_bench.methods.vectors import ControlTokens, MemoryVectors


def test_control_tokens_stand_around_the_memory_of_every_context():
    torch.manual_seed(0)
    control = ControlTokens(1, 2, backbone("llama"), None)
    memory = torch.randn(2, 3, 32)
    around = control(memory)
    assert around.shape == (2, 6, 32)
    for row in range(2):
        torch.testing.assert_close(around[row], torch.cat([control.before.vectors, memory[row], control.after.vectors]))
    torch.testing.assert_close(control.opened(memory), around[:, :4])
    assert ControlTokens(0, 0, backbone("llama"), None)(memory) is memory


def test_without_control_tokens_nothing_is_drawn_and_nothing_learned():
    drawn = []
    for sides in ((0, 0), (0, 1)):
        torch.manual_seed(0)
        control = ControlTokens(*sides, backbone("llama"), None)
        drawn.append(MemoryVectors(3, backbone("llama"), None).vectors)
        assert sum(parameter.numel() for parameter in control.parameters()) == 32 * sum(sides)
    torch.manual_seed(0)
    assert torch.equal(drawn[0], MemoryVectors(3, backbone("llama"), None).vectors)
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("name", ["gradmem", "rmt", "armt"])
def test_vectors_begin_with_the_spread_that_is_asked_for_or_that_of_the_embeddings(name):
    method_class, on = METHODS[name][0], backbone("llama")
    for std, expected in ((0.3, 0.3), (None, float(on.model.get_input_embeddings().weight.std()))):
        torch.manual_seed(0)
        given = method_class.Parameters(memory_vectors=200, memory_std=std)
        vectors = method_class(on, given).memory.vectors
        # 6,400 numbers: one standard error of their deviation is 0.9 %.
        assert float(vectors.std()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", ["gradmem", "rmt"])
def test_control_tokens_of_read_take_of_a_budget_s_positions_and_not_of_its_bytes(name):
    method = build(name, backbone("llama"), **CONTROL)
    for budget, vectors in (
        # Three control tokens stand before and behind the memory at READ; a vector of width 32 is 128 bytes.
        (Budget(positions=8), 5),
        (Budget(positions=4), 1),
        (Budget(bytes=1024), 8),
        (Budget(bytes=1024, positions=8), 5),
    ):
        assert method.fit(method.settings, budget, backbone("llama")).memory_vectors == vectors
    with pytest.raises(UserError, match="3 positions holds no vector.*128 B, and 3 positions are control tokens"):
        method.fit(method.settings, Budget(positions=3), backbone("llama"))


@pytest.mark.parametrize("projection", ["none", "shared", "per_sample"])
def test_a_blank_state_is_what_no_step_of_write_leaves(projection):
    method = build("gradmem", backbone("llama"), projection=projection, evaluation_inner_steps=0).eval()
    written = method.write(Tokens.from_lists(ids_of(method.backbone, 9, 5)))
    assert torch.equal(method.blank(2).tensors["memory"], written.tensors["memory"])


def test_a_blank_state_is_what_the_first_pass_begins_with():
    method = build("rmt", backbone("llama"), projection="shared")
    assert torch.equal(method.blank(2).tensors["memory"], method.memory.vectors.expand(2, -1, -1))

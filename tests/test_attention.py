"""Blockwise attention against eager attention, finite differences of both orders, and inside real models."""

from collections.abc import Callable

import pytest
import torch
from methods.matrix import BACKBONES, backbone, ids_of
from transformers import AutoModelForCausalLM, GptOssConfig, MistralConfig

from gradmem_bench import attention as room
from gradmem_bench.attention import attention, blockwise
from gradmem_bench.batch import Tokens
from gradmem_bench.errors import UserError
from gradmem_bench.prefix import Prefix

SCALE = 0.7


@pytest.fixture(params=[1 << 20, 72], ids=["one block", "many blocks"], autouse=True)
def blocks(request, monkeypatch):
    monkeypatch.setattr(room, "BLOCK_ELEMENTS", request.param)


def case(groups: int, dropout: float) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()

    mask = torch.rand(2, 1, 5, 6, generator=generator) > 0.3
    mask[0, 0, 2] = False
    kept = None
    if dropout:
        kept = (torch.rand(2, 4, 5, 6, generator=generator) > dropout).double() / (1 - dropout)
    return [draw(2, 4, 5, 3), draw(2, 4 // groups, 6, 3), draw(2, 4 // groups, 6, 3)], mask, kept


def eager(query, key, value, mask, dropout):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (SCALE * query @ key.transpose(-1, -2)).masked_fill(~mask, -torch.inf)
    # A row that sees nothing: softmax makes it NaN, and here it is zero.
    chances = torch.where(mask.any(dim=-1, keepdim=True), torch.softmax(scores, dim=-1), 0.0)
    return (chances if dropout is None else chances * dropout) @ value


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_values_are_those_of_eager_attention(groups, dropout):
    inputs, mask, kept = case(groups, dropout)
    torch.testing.assert_close(attention(*inputs, mask, SCALE, kept), eager(*inputs, mask, kept))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("groups", [1, 2])
def test_both_derivatives_agree_with_finite_differences(groups, dropout):
    inputs, mask, kept = case(groups, dropout)

    def attended(*inputs: torch.Tensor) -> torch.Tensor:
        return attention(*inputs, mask, SCALE, kept)

    assert torch.autograd.gradcheck(attended, inputs)
    assert torch.autograd.gradgradcheck(attended, inputs)


@pytest.mark.parametrize(
    ("traced", "multiple"),
    [(False, 1), (True, 2), (True, 4)],
    ids=["as it stands", "as a compiler sees it", "in uneven blocks"],
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("queries", [6, 4])
@pytest.mark.parametrize("holes", [True, False], ids=["a mask with holes", "no mask"])
def test_what_a_causal_mask_hides_is_left_out_and_nothing_else(holes, queries, dropout, traced, multiple, monkeypatch):
    monkeypatch.setattr(room, "_TRACED_ROWS", 2)
    monkeypatch.setattr(room, "_TRACED_MULTIPLE", multiple)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: traced)
    (query, key, value), mask, kept = case(2, dropout)
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(2, 4, queries, 3, dtype=torch.float64, generator=generator).requires_grad_()
    # The first key is seen by all, since a row that sees nothing is another thing to a compiler.
    mask = torch.rand(2, 1, queries, 6, generator=generator) > (0.3 if holes else 0)
    mask = (mask | (torch.arange(6) == 0)) & torch.ones(queries, 6, dtype=torch.bool).tril(6 - queries)
    given = mask if holes else None
    kept = kept if kept is None else torch.cat([kept, kept], dim=2)[:, :, :queries]
    inputs = query, key, value

    def derived(by: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        output = by()
        first = torch.autograd.grad(output.sin().sum(), inputs, create_graph=True)
        return [output, *first, *torch.autograd.grad(sum(one.square().sum() for one in first), inputs)]

    ours = derived(lambda: attention(*inputs, given, SCALE, kept, causal=True))
    for found, expected in zip(ours, derived(lambda: eager(*inputs, mask, kept)), strict=True):
        torch.testing.assert_close(found, expected)
    if traced or room.BLOCK_ELEMENTS == 72:
        unread = value.detach().index_fill(2, torch.arange(6 - queries + max(3, multiple), 6), torch.nan)
        assert attention(query, key, unread, given, SCALE, kept, causal=True)[:, :, 0].isfinite().all()


@pytest.mark.parametrize("traced", [False, True], ids=["as it stands", "as a compiler sees it"])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_model_s_double_backward_is_that_of_eager_attention(name, traced, monkeypatch):
    on = backbone(name)
    text = Tokens.from_lists(ids_of(on, 9, 5))
    start = 0.3 * torch.randn(2, 3, on.width, generator=torch.Generator().manual_seed(0))
    seen = torch.ones(2, 3, dtype=torch.bool)

    def meta_gradient() -> torch.Tensor:
        memory = start.clone().requires_grad_()
        (slope,) = torch.autograd.grad(on.text_loss(Prefix(seen, memory), text).sum(), memory, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), memory)[0]

    own, masks = on.config._attn_implementation, []
    with monkeypatch.context() as patched, blockwise(on.model):
        patched.setattr(torch.compiler, "is_compiling", lambda: traced)
        patched.setattr(room, "attention", lambda *given: masks.append(given[3]) or attention(*given))
        ours = meta_gradient()
    # A compiler that needs no mask is given none.
    assert masks and {mask is None for mask in masks} == {traced}
    assert on.config._attn_implementation == own
    on.model.set_attn_implementation("eager")
    expected = meta_gradient()
    on.model.set_attn_implementation(own)
    torch.testing.assert_close(ours, expected, rtol=2e-4, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", BACKBONES)
def test_a_model_s_double_backward_under_autocast_is_the_same_up_to_rounding(name):
    on = backbone(name)
    text = Tokens.from_lists(ids_of(on, 9, 5))
    start = 0.3 * torch.randn(2, 3, on.width, generator=torch.Generator().manual_seed(0))
    seen = torch.ones(2, 3, dtype=torch.bool)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        memory = start.clone().requires_grad_()
        with blockwise(on.model), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            (slope,) = torch.autograd.grad(on.text_loss(Prefix(seen, memory), text).sum(), memory, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), memory)[0])
    assert (found[1] - found[0]).norm() < 0.2 * found[0].norm()
    assert not torch.equal(*found)


def test_a_window_is_kept_where_padding_needs_no_mask():
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = MistralConfig(**sizes, num_key_value_heads=1, vocab_size=32, sliding_window=3, attn_implementation="eager")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = model(ids).logits
        with blockwise(model):
            torch.testing.assert_close(model(ids).logits, expected)
        model.config.sliding_window = None
        assert not torch.allclose(model(ids).logits, expected, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [1, 2])
def test_on_a_gpu_both_derivatives_are_those_of_eager_attention(groups):
    # In float32 by the kernels, where they are installed; against float64.
    inputs, mask, _ = case(groups, 0.0)
    found = []
    for dtype in (torch.float64, torch.float32):
        given = [one.detach().to("cuda", dtype).requires_grad_() for one in inputs]
        by = eager if dtype == torch.float64 else attention
        output = by(*given, mask.cuda(), *([None] if by is eager else [SCALE]))
        first = torch.autograd.grad(output.sin().sum(), given, create_graph=True)
        second = torch.autograd.grad(sum(one.square().sum() for one in first), given)
        found.append([output, *first, *second])
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert float((ours.double() - theirs).norm() / theirs.norm()) < 1e-5


def test_a_model_whose_attention_is_more_than_a_softmax_of_scores_is_refused():
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "head_dim": 8, "num_attention_heads": 2, "vocab_size": 32}
    config = GptOssConfig(num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    with blockwise(model), pytest.raises(UserError, match="GptOssAttention attends with 's_aux'"):
        model(torch.arange(4)[None])

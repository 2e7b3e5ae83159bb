"""The linear cross-entropy against autograd's own, against finite differences, and in chunks of any size."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradmem_bench import cross_entropy
from gradmem_bench.cross_entropy import linear_cross_entropy

TOKENS, WIDTH, VOCABULARY = 5, 3, 7


@pytest.fixture(params=[1 << 22, 2 * VOCABULARY], ids=["one chunk", "three chunks"], autouse=True)
def chunks(request, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", request.param)


def case(bias: bool = False) -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float64, generator=generator).requires_grad_()
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=torch.float64)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return hidden, head, torch.randint(VOCABULARY, (TOKENS,), generator=generator)


@pytest.mark.parametrize("bias", [False, True])
def test_losses_and_derivatives_of_both_orders_are_autograd_s(bias):
    hidden, head, targets = case(bias)
    wanted = [hidden, *head.parameters()]
    results = []
    for losses in (
        linear_cross_entropy(hidden, head, targets)[0],
        F.cross_entropy(head(hidden), targets, reduction="none"),
    ):
        weights = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
        first = torch.autograd.grad((losses * weights).sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(one.sin().sum() for one in first), wanted, retain_graph=True)
        # The inner gradient of WRITE: of the hidden states alone, then of everything.
        (inner,) = torch.autograd.grad(losses.sum(), hidden, create_graph=True)
        of_inner = torch.autograd.grad(inner.square().sum(), wanted, retain_graph=True)
        # And of the head alone.
        head_s = torch.autograd.grad(losses.sum(), wanted[1:], create_graph=True)
        of_head_s = torch.autograd.grad(sum(one.square().sum() for one in head_s), wanted)
        results.append([losses, *first, *second, *of_inner, *head_s, *of_head_s])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", ["hidden states", "head"])
def test_either_side_may_have_no_gradient(frozen):
    hidden, head, targets = case(bias=True)
    (head if frozen == "head" else hidden).requires_grad_(False)
    wanted = [hidden] if frozen == "head" else [*head.parameters()]
    results = []
    for losses in (
        linear_cross_entropy(hidden, head, targets)[0],
        F.cross_entropy(head(hidden), targets, reduction="none"),
    ):
        first = torch.autograd.grad(losses.exp().sum(), wanted, create_graph=True)
        results.append([*first, *torch.autograd.grad(sum(one.square().sum() for one in first), wanted)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_chunks_in_bfloat16_are_summed_before_they_are_rounded(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(400, WIDTH, generator=generator), nn.Linear(WIDTH, VOCABULARY, bias=False)
    targets = torch.randint(VOCABULARY, (400,), generator=generator)
    found = []
    for rows in (400, 1):
        monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", rows * VOCABULARY)
        hidden.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = linear_cross_entropy(hidden, head, targets)[0].sum()
        inner, first = torch.autograd.grad(loss, [hidden, head.weight], create_graph=True)
        found.append([first, torch.autograd.grad(inner.square().sum(), head.weight)[0]])
    # Rounded 400 times on the way, they would be off by several per cent.
    for whole, by_rows in zip(*found, strict=True):
        assert float((by_rows - whole).detach().norm() / whole.norm()) < 5e-3


def test_finite_differences_agree_to_second_order():
    hidden, head, targets = case()

    def losses(hidden, weight):
        layer = nn.Linear(WIDTH, VOCABULARY, bias=False, device="meta")
        del layer.weight
        layer.weight = weight
        return linear_cross_entropy(hidden, layer, targets)[0]

    inputs = (hidden, head.weight.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(losses, inputs)
    assert torch.autograd.gradgradcheck(losses, inputs)


def test_the_most_probable_target_is_the_right_one():
    hidden, head, targets = case()
    right = linear_cross_entropy(hidden, head, targets)[1]
    assert torch.equal(right, head(hidden).argmax(dim=1) == targets)
    assert linear_cross_entropy(hidden, head, head(hidden).argmax(dim=1))[1].all()


def test_other_shapes_keep_theirs_and_bfloat16_is_summed_in_float32():
    hidden, head, targets = case()
    losses, right = linear_cross_entropy(hidden[None, :4].reshape(2, 2, WIDTH), head, targets[:4].reshape(2, 2))
    assert losses.shape == right.shape == (2, 2)
    torch.testing.assert_close(losses.flatten(), linear_cross_entropy(hidden, head, targets)[0][:4])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = linear_cross_entropy(hidden.float(), head.float(), targets)[0]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(
        rounded.double(), linear_cross_entropy(hidden, head.double(), targets)[0], rtol=0.02, atol=0.05
    )

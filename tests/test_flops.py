"""Every product is counted, in every pass; in the numbers below `product` is one of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradmem_bench.attention import attention
from gradmem_bench.cross_entropy import linear_cross_entropy
from gradmem_bench.flops import flop_counter


def counted(run) -> int:
    with flop_counter() as counter:
        run()
    return counter.get_total_flops()


def passes(loss, inputs) -> list[int]:
    """FLOPs of the forward pass, of the backward pass, and of the backward pass of that."""
    made, slopes = [], []
    return [
        counted(lambda: made.append(loss())),
        counted(lambda: slopes.extend(torch.autograd.grad(made[0], inputs, create_graph=True))),
        counted(lambda: torch.autograd.grad(sum(slope.square().sum() for slope in slopes), inputs)),
    ]


def test_a_linear_map():
    x, weight = torch.randn(5, 3, requires_grad=True), torch.randn(3, 7, requires_grad=True)
    product = 2 * 5 * 3 * 7
    # dx = g Wᵀ and dW = xᵀ g; g does not depend on either, and neither does what comes of u Wᵀ and xᵀ U.
    assert passes(lambda: (x @ weight).sum(), (x, weight))[:2] == [product, 2 * product]


@pytest.mark.parametrize("tokens", [1, 6])
def test_linear_cross_entropy(tokens):
    d, vocabulary = 8, 11
    product = 2 * tokens * d * vocabulary
    hidden, head = torch.randn(tokens, d, requires_grad=True), nn.Linear(d, vocabulary, bias=False)
    targets = torch.randint(vocabulary, (tokens,))
    # Logits and dh; logits and dW; logits, r = W u + U h, dh and dW of two products each.
    found = passes(lambda: linear_cross_entropy(hidden, head, targets)[0].sum(), (hidden, head.weight))
    assert found == [2 * product, 2 * product, 7 * product]
    # Of the memory alone, the first derivative is there with the loss; of dW's cotangent there are no products then.
    found = passes(lambda: linear_cross_entropy(hidden, head, targets)[0].sum(), (hidden,))
    assert found == [2 * product, 0, 5 * product]


def test_blockwise_attention():
    batch, heads, length, size = 2, 3, 5, 4
    product = 2 * batch * heads * length * length * size
    parts = [torch.randn(batch, heads, length, size, requires_grad=True) for _ in range(3)]
    # Scores and sums; scores, dP, dV, dQ and dK. Then scores, dP, dO uV, W of two; two each for Q and K, one for V and
    # two for dO; and since dO is constant here, that is all.
    found = passes(lambda: attention(*parts, None, 0.5).sum(), parts)
    assert found == [2 * product, 5 * product, 12 * product]


def test_attention_as_plain_products_is_seen_and_fused_on_a_cpu_it_is_not():
    parts = [torch.randn(1, 2, 6, 4) for _ in range(3)]
    with sdpa_kernel(SDPBackend.MATH):
        assert counted(lambda: F.scaled_dot_product_attention(*parts, is_causal=True)) == 2 * 2 * 2 * 6 * 6 * 4
    # Why costs are counted under MATH; a torch that counts here as well makes that unnecessary.
    assert counted(lambda: F.scaled_dot_product_attention(*parts, is_causal=True)) == 0

"""The inner descent against closed forms, a written-out loop and finite differences, all in float64."""

import pytest
import torch

from gradmem_bench.descent import Descent

STEPS, RATE = 3, 0.2
CURVATURES = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)


def descend(loss, start, steps, rate, order, **options):
    return Descent(order, engine="unrolled", **options)(loss, start, steps, rate)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def quadratic(curvatures: torch.Tensor, centres: torch.Tensor):
    """Sample b's loss is the sum over i of a_i / 2 (M_bi - c_bi)^2: each step shrinks M - c by 1 - rate a."""
    return lambda memory: (curvatures / 2 * (memory - centres) ** 2).sum(dim=(1, 2))


def bent(weight: torch.Tensor, inputs: torch.Tensor):
    """A loss whose second derivative is not constant, (B, m, d) -> (B,)."""
    return lambda memory: (torch.tanh(memory @ weight) * inputs + torch.sin(2 * memory @ weight)).sum(dim=(1, 2))


@pytest.mark.parametrize("order", ["second", "first", "none"])
def test_a_quadratic_loss_shrinks_by_the_same_factor_at_every_step(order):
    start, centres = draw(2, 4, 3), draw(2, 4, 3, seed=1)
    memory = descend(quadratic(CURVATURES, centres), start, STEPS, RATE, order)
    # Hand-worked: 1 - 0.2 a is 0.9, 0.6 and 0.4.
    factors = torch.tensor([0.9**3, 0.6**3, 0.4**3], dtype=torch.float64)
    torch.testing.assert_close(memory, centres + factors * (start - centres))


def test_the_second_order_gradient_of_a_quadratic_in_closed_form():
    start, centres = draw(2, 4, 3).requires_grad_(), draw(2, 4, 3, seed=1).requires_grad_()
    curvatures = CURVATURES.clone().requires_grad_()
    memory = descend(quadratic(curvatures, centres), start, STEPS, RATE, "second")
    by_start, by_centres, by_curvatures = torch.autograd.grad(memory.sum(), [start, centres, curvatures])
    # d/dM_0 (1 - ra)^K (M_0 - c) + c, and the like for c and a.
    factor = (1 - RATE * CURVATURES) ** STEPS
    torch.testing.assert_close(by_start, factor.expand(2, 4, 3))
    torch.testing.assert_close(by_centres, (1 - factor).expand(2, 4, 3))
    slope = -STEPS * RATE * (1 - RATE * CURVATURES) ** (STEPS - 1)
    torch.testing.assert_close(by_curvatures, (slope * (start - centres)).sum(dim=(0, 1)).detach())


def test_the_first_order_gradient_is_that_of_a_start_plus_a_constant():
    start, centres = draw(2, 4, 3).requires_grad_(), draw(2, 4, 3, seed=1)
    curvatures = CURVATURES.clone().requires_grad_()
    memory = descend(quadratic(curvatures, centres), start, STEPS, RATE, "first")
    by_start, by_curvatures = torch.autograd.grad(memory.square().sum(), [start, curvatures], allow_unused=True)
    torch.testing.assert_close(by_start, 2 * memory.detach())
    assert by_curvatures is None


def test_the_second_order_gradient_against_finite_differences():
    weight, inputs, start = draw(3, 3), draw(2, 4, 3, seed=1), draw(2, 4, 3, seed=2)

    def outer(start, weight):
        return (descend(bent(weight, inputs), start, STEPS, RATE, "second") ** 2).sum()

    assert torch.autograd.gradcheck(outer, (start.requires_grad_(), weight.requires_grad_()), eps=1e-6, atol=1e-6)


def test_a_written_out_loop_gives_the_same_memory_and_the_same_gradients():
    weight, inputs, start = draw(3, 3).requires_grad_(), draw(2, 4, 3, seed=1), draw(2, 4, 3, seed=2).requires_grad_()
    loss = bent(weight, inputs)
    plain = start
    for _ in range(STEPS):
        # One sample at a time: no sum over the batch.
        steps = [torch.autograd.grad(loss(plain)[row], plain, create_graph=True)[0][row] for row in range(2)]
        plain = plain - RATE * torch.stack(steps)
    memory = descend(loss, start, STEPS, RATE, "second")
    torch.testing.assert_close(memory, plain)
    expected = torch.autograd.grad(plain.sin().sum(), [start, weight])
    torch.testing.assert_close(torch.autograd.grad(memory.sin().sum(), [start, weight]), expected)
    first = torch.autograd.grad(descend(loss, start, STEPS, RATE, "first").sin().sum(), start)[0]
    assert (first - expected[0]).abs().max() > 0.01


def test_a_sample_s_memory_depends_on_its_own_start_and_loss_alone():
    weight, inputs, start = draw(3, 3), draw(3, 4, 3, seed=1), draw(3, 4, 3, seed=2)
    together = descend(bent(weight, inputs), start, STEPS, RATE, "none")
    for row in range(3):
        rows = slice(row, row + 1)
        torch.testing.assert_close(
            descend(bent(weight, inputs[rows]), start[rows], STEPS, RATE, "none"), together[rows]
        )
    jacobian = torch.autograd.functional.jacobian(
        lambda start: descend(bent(weight, inputs), start, STEPS, RATE, "second"), start
    )
    for row in range(3):
        others = [other for other in range(3) if other != row]
        assert not jacobian[row][:, :, others].any() and jacobian[row][:, :, row].any()


@pytest.mark.parametrize("recording", [True, False])
@pytest.mark.parametrize("learned", [True, False])
def test_evaluation_leaves_no_graph_and_the_start_as_it_was(recording, learned):
    weight, inputs, start = draw(3, 3).requires_grad_(), draw(2, 4, 3, seed=1), draw(2, 4, 3, seed=2)
    before = start.clone()
    start.requires_grad_(learned)
    expected = descend(bent(weight, inputs), start, STEPS, RATE, "second").detach()
    with torch.set_grad_enabled(recording):
        memory = descend(bent(weight, inputs), start, STEPS, RATE, "none")
    assert not memory.requires_grad
    torch.testing.assert_close(memory, expected)
    assert start.requires_grad == learned and torch.equal(start, before)
    assert weight.grad is None and start.grad is None


def test_a_start_that_is_not_learned_still_passes_the_second_order_to_the_weights():
    weight, inputs, start = draw(3, 3).requires_grad_(), draw(2, 4, 3, seed=1), draw(2, 4, 3, seed=2)
    (frozen,) = torch.autograd.grad(descend(bent(weight, inputs), start, STEPS, RATE, "second").sum(), weight)
    learned = start.clone().requires_grad_()
    (expected,) = torch.autograd.grad(descend(bent(weight, inputs), learned, STEPS, RATE, "second").sum(), weight)
    torch.testing.assert_close(frozen, expected)


@pytest.mark.parametrize("order", ["second", "first", "none"])
def test_no_step_is_the_start(order):
    start = draw(2, 4, 3).requires_grad_()
    memory = descend(bent(draw(3, 3), draw(2, 4, 3)), start, 0, RATE, order)
    assert torch.equal(memory, start)
    assert memory.requires_grad == (order != "none")


@pytest.mark.parametrize("rate_shape", [(), (4,), (5, 1)], ids=["one rate", "one a step", "one a vector"])
@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("last", [None, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_recomputing_gives_the_gradients_of_unrolling(optimizer, last, micro_batch, rate_shape):
    weight, inputs, start = draw(3, 3).requires_grad_(), draw(4, 5, 3, seed=1), draw(4, 5, 3, seed=2).requires_grad_()
    rate = (0.05 + 0.1 * draw(*rate_shape, seed=3).abs()).requires_grad_()

    def loss(memory, inputs):
        return bent(weight, inputs)(memory)

    results = []
    for engine in ("unrolled", "recompute"):
        descent = Descent("second", last, optimizer, engine, micro_batch)
        memory = descent(loss, start, 4, rate, inputs=[inputs], parameters=[weight])
        results.append([memory, *torch.autograd.grad(memory.sin().sum(), [start, weight, rate])])
    for unrolled, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, unrolled, rtol=1e-12, atol=1e-12)


def test_second_order_in_the_last_steps_alone_is_a_first_order_start_and_then_second_order():
    weight, inputs, start = draw(3, 3).requires_grad_(), draw(2, 4, 3, seed=1), draw(2, 4, 3, seed=2).requires_grad_()
    loss = bent(weight, inputs)
    memory = descend(loss, start, STEPS, RATE, "second", last=1)
    plain = start
    for step in range(STEPS):
        (slope,) = torch.autograd.grad(loss(plain).sum(), plain, create_graph=True)
        plain = plain - RATE * (slope if step == STEPS - 1 else slope.detach())
    torch.testing.assert_close(
        torch.autograd.grad(memory.sin().sum(), [start, weight]),
        torch.autograd.grad(plain.sin().sum(), [start, weight]),
    )


def test_adam_s_steps_are_those_of_torch():
    inputs, start = draw(2, 4, 3, seed=1), draw(2, 4, 3, seed=2)
    loss = bent(draw(3, 3), inputs)
    point = start.clone().requires_grad_()
    adam = torch.optim.Adam([point], lr=RATE)
    for _ in range(STEPS):
        adam.zero_grad()
        loss(point).sum().backward()
        adam.step()
    torch.testing.assert_close(descend(loss, start, STEPS, RATE, "none", optimizer="adam"), point.detach())


def clipped_by_hand(slope: torch.Tensor, value: float | None, norm: float | None) -> torch.Tensor:
    """One sample's gradient, clipped by torch.nn.utils, which works on one tensor and in place."""
    point = torch.nn.Parameter(torch.zeros_like(slope))
    point.grad = slope.clone()
    if value is not None:
        torch.nn.utils.clip_grad_value_([point], value)
    if norm is not None:
        torch.nn.utils.clip_grad_norm_([point], norm)
    return point.grad


@pytest.mark.parametrize(("value", "norm"), [(0.5, None), (None, 1.5), (0.5, 1.5)])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_clipping_bounds_each_sample_alone_and_leaves_small_gradients_as_they_are(optimizer, value, norm):
    sizes = torch.tensor([3.0, 0.01, 30.0], dtype=torch.float64)[:, None, None]
    loss = bent(draw(3, 3), sizes * draw(3, 4, 3, seed=1))
    start = draw(3, 4, 3, seed=2)
    slopes = torch.autograd.grad(loss(start.requires_grad_()).sum(), start)[0]
    # By value some entries of every sample are beyond the bound; by norm the second sample is within it.
    slopes = slopes * torch.tensor([1.0, 0.05, 1.0], dtype=torch.float64)[:, None, None]
    descent = Descent("none", optimizer=optimizer, clip_value=value, clip_norm=norm)
    memory = descent(lambda memory: (memory * slopes).sum(dim=(1, 2)), start, 1, RATE)
    for row in range(3):
        moved = clipped_by_hand(slopes[row], value, norm)
        point = start[row].detach().clone().requires_grad_()
        point.grad = moved
        (torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam)([point], lr=RATE).step()
        torch.testing.assert_close(memory[row], point.detach(), rtol=1e-5, atol=1e-7)
    assert (clipped_by_hand(slopes[0], value, norm) - slopes[0]).abs().max() > 0.1
    assert torch.equal(clipped_by_hand(slopes[1], None, 1.5), slopes[1])


@pytest.mark.parametrize("engine", ["unrolled", "recompute"])
@pytest.mark.parametrize(("value", "norm"), [(0.7, None), (None, 1.2), (0.9, 1.2)])
def test_the_second_order_gradient_of_clipped_steps_against_finite_differences(engine, value, norm):
    weight, inputs, start = draw(3, 3), draw(2, 4, 3, seed=1), draw(2, 4, 3, seed=2)
    loss = bent(weight, inputs)
    slope = torch.autograd.grad(loss(start.requires_grad_()).sum(), start)[0]
    assert slope.norm() > 1.2 and slope.abs().max() > 0.9 and slope.abs().min() < 0.7

    def outer(start, weight):
        descent = Descent(engine=engine, clip_value=value, clip_norm=norm)
        return (descent(bent(weight, inputs), start, STEPS, RATE, parameters=[weight]) ** 2).sum()

    assert torch.autograd.gradcheck(outer, (start.requires_grad_(), weight.requires_grad_()), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("engine", ["unrolled", "recompute"])
def test_a_gradient_of_zero_is_clipped_without_a_nan(engine):
    start = draw(2, 4, 3).requires_grad_()
    centres = start.detach().clone()
    centres[1] += 10
    descent = Descent(engine=engine, clip_norm=0.5)
    # The first sample stands at its minimum.
    curvatures = CURVATURES.clone().requires_grad_()
    memory = descent(quadratic(curvatures, centres), start, STEPS, RATE, parameters=[curvatures])
    by_start, by_curvatures = torch.autograd.grad(memory.sum(), [start, curvatures])
    assert torch.isfinite(by_curvatures).all()
    torch.testing.assert_close(by_start[0], ((1 - RATE * CURVATURES) ** STEPS).expand(4, 3))
    torch.testing.assert_close((memory - start)[1].norm().detach(), torch.tensor(STEPS * RATE * 0.5).double())


def test_recomputing_keeps_the_memories_alone():
    weight, inputs, start = draw(3, 3).requires_grad_(), draw(2, 4, 3, seed=1), draw(2, 4, 3, seed=2).requires_grad_()
    memory = Descent(engine="recompute")(bent(weight, inputs), start, 30, RATE, parameters=[weight])
    # The graph of all 30 steps is one node, which holds M_0 ... M_29 and the learning rate.
    saved = memory.grad_fn.saved_tensors
    assert sum(tensor.numel() for tensor in saved) == 30 * start.numel() + 1
    assert {type(node).__name__ for node, _ in memory.grad_fn.next_functions if node} == {"AccumulateGrad"}


def test_steps_are_made_again_in_the_precision_they_were_made_in():
    weight, inputs = draw(3, 3).float().requires_grad_(), draw(2, 4, 3, seed=1).float()
    start = draw(2, 4, 3, seed=2).float().requires_grad_()
    gradients = {}
    for engine, dtype in (("unrolled", torch.bfloat16), ("recompute", torch.bfloat16), ("recompute", torch.float32)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            memory = Descent(engine=engine)(bent(weight, inputs), start, STEPS, RATE, parameters=[weight])
        assert memory.dtype == torch.float32
        gradients[engine, dtype] = torch.autograd.grad(memory.sin().sum(), [start, weight])
    rounded = gradients["unrolled", torch.bfloat16]
    by_start, by_weight = gradients["recompute", torch.bfloat16]
    torch.testing.assert_close(by_start, rounded[0], rtol=1e-5, atol=1e-6)
    # Unrolled, autocast's one copy of the weight sums its gradient in bfloat16; recomputing sums the steps in float32.
    torch.testing.assert_close(by_weight, rounded[1], rtol=2e-2, atol=1e-2)
    assert (gradients["recompute", torch.float32][0] - rounded[0]).abs().max() > 1e-4

"""What the compiled gradient does where it cannot be had, and how a batch is taken in pieces."""

import warnings

import pytest
import torch
from torch.autograd import Function
from torch.utils.flop_counter import FlopCounterMode

from gradmem_bench import compiled
from gradmem_bench.compiled import compiled_slope
from gradmem_bench.descent import Descent

pytestmark = pytest.mark.usefixtures("traced")


class Bent(torch.nn.Module):
    """A loss with a weight and a second derivative that is not constant."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

    def loss(self, memory: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(memory @ self.weight) * factors).sum(dim=(1, 2))

    def undecided(self, memory: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        # Python that depends on the value of a tensor cannot be traced.
        return self.loss(memory, factors) if float(factors.sum()) > 1e9 else 2 * self.loss(memory, factors)

    def opaque(self, memory: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        return (_Tanh.apply(memory @ self.weight) * factors).sum(dim=(1, 2))


class _Tanh(Function):
    @staticmethod
    def forward(x):
        return torch.tanh(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, gradient):
        return _TanhBackward.apply(gradient, *ctx.saved_tensors)


class _TanhBackward(Function):
    @staticmethod
    def forward(gradient, output):
        return gradient * (1 - output**2)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        gradient, output = ctx.saved_tensors
        return cotangent * (1 - output**2), -2 * cotangent * gradient * output


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def by_hand(bent: Bent, memory: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return (factors * (1 - torch.tanh(memory @ bent.weight) ** 2)) @ bent.weight.T


@pytest.mark.parametrize("micro_batch", [None, 2, 5, 16])
def test_the_gradient_and_its_derivative_are_those_worked_out_by_hand(micro_batch):
    bent, memory, factors = Bent(), draw(7, 4, 3).requires_grad_(), draw(7, 4, 3)
    found = compiled_slope(bent.loss, memory, (factors,), [bent.weight], micro_batch)
    expected = by_hand(bent, memory, factors)
    torch.testing.assert_close(found, expected)
    cotangent = draw(7, 4, 3)
    torch.testing.assert_close(
        torch.autograd.grad(found, [memory, bent.weight], cotangent),
        torch.autograd.grad(expected, [memory, bent.weight], cotangent),
    )


def test_a_batch_of_any_size_is_run_in_few_shapes():
    bent = Bent()
    for batch in range(1, 14):
        compiled_slope(bent.loss, draw(batch, 4, 3), (draw(batch, 4, 3),), [bent.weight], 4)
    seen = compiled._verdicts[bent]
    assert sorted(shapes[0][0] for _, shapes, _ in seen) == [1, 2, 4]


def test_what_is_compiled_anew_behind_a_trusted_shape_is_not_refused():
    bent, factors = Bent(), draw(3, 2, 3)
    # As if as many shapes as the compiler allows by itself had been there before.
    with torch._dynamo.config.patch(recompile_limit=1):
        compiled_slope(bent.loss, draw(3, 2, 3).requires_grad_(), (factors,), [bent.weight], 1)
        # Whether the memory has a gradient is not among what is trusted, and the compiler looks at it.
        memory = draw(3, 2, 3)
        found = compiled_slope(bent.loss, memory, (factors,), [bent.weight], 1)
    assert [*compiled._verdicts[bent].values()] == [True]
    torch.testing.assert_close(found, by_hand(bent, memory, factors))


def test_operations_that_are_counted_are_run_one_by_one():
    bent, memory, factors = Bent(), draw(2, 4, 3), draw(2, 4, 3)
    descent = Descent("none", engine="compiled")
    with FlopCounterMode(display=False) as counter:
        descent(bent.loss, memory, 3, 0.2, inputs=(factors,), parameters=[bent.weight])
    # Forward and backward of one product of 8 x 3 by 3 x 3, two operations an entry, three times.
    assert counter.get_total_flops() == 3 * 2 * (2 * 8 * 3 * 3)
    descent(bent.loss, memory, 3, 0.2, inputs=(factors,), parameters=[bent.weight])
    assert all(compiled._verdicts[bent].values()) and compiled._verdicts[bent]


def test_what_is_frozen_is_checked_by_itself():
    bent, memory, factors = Bent(), draw(2, 4, 3).requires_grad_(), draw(2, 4, 3)
    for trained in (True, False):
        bent.weight.requires_grad_(trained)
        found = compiled_slope(bent.loss, memory, (factors,), [bent.weight], None)
        torch.testing.assert_close(found, by_hand(bent, memory, factors))
    assert [*compiled._verdicts[bent].values()] == [True, True]


def test_where_no_gradient_is_recorded_none_comes_back():
    bent, memory, factors = Bent(), draw(2, 4, 3), draw(2, 4, 3)
    with torch.no_grad():
        found = compiled_slope(bent.loss, memory, (factors,), [bent.weight], None)
    assert not found.requires_grad
    torch.testing.assert_close(found, by_hand(bent, memory, factors).detach())


@pytest.mark.parametrize(
    ("name", "reason"),
    [("undecided", "Unsupported|UserError|Dynamo"), ("opaque", "differs from that of the plain double backward")],
)
def test_what_cannot_be_compiled_rightly_is_run_plainly_after_one_warning(name, reason):
    # `opaque` is right where it is run as it stands, and compiled it loses its second derivative without a word.
    bent, start, factors = Bent(), draw(2, 4, 3).requires_grad_(), draw(2, 4, 3)
    wanted = [start, bent.weight]

    def gradients(engine: str) -> tuple[torch.Tensor, ...]:
        descent = Descent(engine=engine)
        memory = descent(getattr(bent, name), start, 3, 0.2, inputs=(factors,), parameters=[bent.weight])
        return torch.autograd.grad(memory.sin().sum(), wanted)

    with pytest.warns(UserWarning, match=f"WRITE is not compiled: .*({reason})") as caught:
        found = gradients("compiled")
    assert len([one for one in caught if "WRITE is not compiled" in str(one.message)]) == 1
    torch.testing.assert_close(found, gradients("recompute"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        torch.testing.assert_close(gradients("compiled"), gradients("unrolled"))


def test_without_a_c_compiler_the_plain_steps_are_taken_after_one_warning(monkeypatch, tmp_path):
    # The code generator itself, with a compiler that is not there and nothing compiled before.
    monkeypatch.setattr(compiled, "_compiled", torch.compile(compiled._slope, fullgraph=True, dynamic=False))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    bent, start, factors = Bent(), draw(3, 5, 3).requires_grad_(), draw(3, 5, 3)

    def gradients(engine: str) -> tuple[torch.Tensor, ...]:
        memory = Descent(engine=engine)(bent.loss, start, 2, 0.2, inputs=(factors,), parameters=[bent.weight])
        return torch.autograd.grad(memory.sin().sum(), [start, bent.weight])

    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}):
        with pytest.warns(UserWarning, match="WRITE is not compiled: .*(C\\+\\+ compiler|no-such-compiler)") as caught:
            found = gradients("compiled")
            gradients("compiled")
    assert len([one for one in caught if "WRITE is not compiled" in str(one.message)]) == 1
    torch.testing.assert_close(found, gradients("unrolled"))

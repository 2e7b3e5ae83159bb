"""Functions as CUDA graphs: what they return is what the function would have, and never of another call."""

import gc
import warnings

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gradmem_bench import captured
from gradmem_bench.captured import replayed


class Squared(nn.Module):
    """A loss of one weight with its gradient, and a count of how often Python ran it."""

    recordable = True

    def __init__(self, device: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, device=device))
        self.runs = 0

    def derived(self, inputs: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor], list]:
        self.runs += 1
        loss = (inputs @ self.weight).square().sum()
        (gradient,) = torch.autograd.grad(loss, [self.weight])
        return loss.detach(), {"loss": loss.detach()}, [gradient, None]

    def __call__(self, inputs: torch.Tensor, function=None, **settings):
        return replayed(self, "the test", function or self.derived, [inputs], [self.weight], **settings)

    def expected(self, inputs: torch.Tensor) -> torch.Tensor:
        """2 xᵀ x W, the gradient worked out by hand."""
        return 2 * inputs.T @ inputs @ self.weight.detach()


def test_on_a_cpu_the_function_is_run_as_it_stands():
    squared = Squared("cpu")
    for _ in range(5):
        inputs = torch.randn(4, 8)
        torch.testing.assert_close(squared(inputs)[2][0], squared.expected(inputs))
    assert squared.runs == 5


@pytest.mark.gpu
def test_a_shape_is_recorded_when_it_comes_again_and_again():
    squared, results = Squared("cuda"), []
    for number in range(6):
        inputs = torch.randn(4, 8, device="cuda")
        total, named, (gradient, nothing) = squared(inputs)
        results.append((gradient, squared.expected(inputs)))
        assert nothing is None
        torch.testing.assert_close(total, (inputs @ squared.weight.detach()).square().sum())
        torch.testing.assert_close(named["loss"], total)
        # The third run is recorded by running it once more.
        assert squared.runs == min(number + 1 + (number >= 2), 4)
        with torch.no_grad():
            squared.weight.mul_(0.9)
    # Looked at last: no run may write into what another returned.
    for found, expected in results:
        torch.testing.assert_close(found, expected)


@pytest.mark.gpu
def test_shapes_settings_and_precisions_have_graphs_of_their_own():
    squared = Squared("cuda")
    for _ in range(5):
        for rows in (2, 3):
            inputs = torch.randn(rows, 8, device="cuda")
            torch.testing.assert_close(squared(inputs)[2][0], squared.expected(inputs))
            squared(inputs, settings="other")
            with torch.autocast("cuda", dtype=torch.bfloat16):
                rounded = squared(inputs)[2][0]
            assert 1e-4 < float((rounded - squared.expected(inputs)).norm() / squared.expected(inputs).norm()) < 3e-2
    assert len(captured._owners[squared].graphs) == 6


@pytest.mark.gpu
def test_what_waits_for_the_device_is_run_as_it_stands_after_one_warning():
    squared = Squared("cuda")

    def waiting(inputs: torch.Tensor):
        torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
        return squared.derived(inputs if float(inputs.sum()) > 1e9 else 2 * inputs)

    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    with pytest.warns(UserWarning, match="the test is not run as a CUDA graph") as caught:
        for _ in range(5):
            inputs = torch.randn(4, 8, device="cuda")
            torch.testing.assert_close(squared(inputs, waiting)[2][0], squared.expected(2 * inputs))
    # Nor is anything kept that the recording had reserved.
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - before < 64 << 20
    assert len([one for one in caught if "CUDA graph" in str(one.message)]) == 1
    # The device is as it was: another owner's functions are recorded.
    other = Squared("cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(5):
            inputs = torch.randn(4, 8, device="cuda")
            torch.testing.assert_close(other(inputs)[2][0], other.expected(inputs))
    assert other.runs == 4


@pytest.mark.gpu
def test_a_function_that_is_another_every_time_is_not_believed():
    squared, calls = Squared("cuda"), []

    def changing(inputs: torch.Tensor):
        calls.append(None)
        return squared.derived(inputs * len(calls))

    with pytest.warns(UserWarning, match="its outputs differ from those of the function itself"):
        for _ in range(4):
            squared(torch.randn(4, 8, device="cuda"), changing)
    assert len(calls) == 5


@pytest.mark.gpu
def test_operations_that_are_counted_are_run_one_by_one():
    squared, inputs = Squared("cuda"), torch.randn(4, 8, device="cuda")
    for _ in range(4):
        squared(inputs)
    with FlopCounterMode(display=False) as counter:
        squared(inputs)
    # The product, and its backward pass to the weight.
    assert counter.get_total_flops() == 2 * (2 * 4 * 8 * 8)


@pytest.mark.gpu
def test_what_does_not_say_that_it_may_be_recorded_is_run_as_it_stands():
    squared = Squared("cuda")
    squared.recordable = False
    for _ in range(5):
        inputs = torch.randn(4, 8, device="cuda")
        torch.testing.assert_close(squared(inputs)[2][0], squared.expected(inputs))
    assert squared.runs == 5


@pytest.mark.gpu
def test_a_part_of_a_wider_tensor_is_recorded_like_any_other():
    squared = Squared("cuda")
    for _ in range(5):
        inputs = torch.randn(4, 11, device="cuda")[:, :8]
        torch.testing.assert_close(squared(inputs)[2][0], squared.expected(inputs))
    assert squared.runs == 4


@pytest.mark.gpu
def test_graphs_go_with_their_owner():
    squared = Squared("cuda")
    for _ in range(4):
        squared(torch.randn(4, 8, device="cuda"))
    before = len(captured._owners)
    del squared
    gc.collect()
    assert len(captured._owners) == before - 1

"""A loss and its gradient, a few contexts at a time, as if the batch had been taken whole.

The graphs of a micro-batch are gone before the next one is begun: what exists at a time is K steps of a few contexts in
place of K steps of all. The gradient is made with the loss and handed out by its backward pass, so that whoever calls
`loss.backward()` (accumulation, clipping, data parallelism) sees nothing of it. On a GPU both together are one CUDA
graph.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gradmem_bench.batch import Batch
from gradmem_bench.captured import replayed

Terms = dict[str, Tensor]


def in_micro_batches(
    owner: object,
    loss: Callable[..., tuple[Tensor, Terms]],
    batch: Batch,
    whole: tuple[Tensor, ...],
    size: int,
    parameters: Iterable[Tensor],
) -> tuple[Tensor, Terms]:
    """The sum of the losses of a batch's parts, and of their named terms.

    Args:
        owner: whose loss it is.
        loss: (part, *whole) -> the part's share in the batch's loss, (), and its named terms.
        batch: B contexts.
        whole: tensors on the batch's device that each part's share depends on beside the part.
        size: contexts in a part.
        parameters: all that the loss depends on and that is to receive a gradient.
    """
    parameters = list(parameters)
    learned = [parameter for parameter in parameters if parameter.requires_grad]

    def derived(*tensors: Tensor) -> tuple[Tensor, Terms, list[Tensor | None]]:
        own = len(tensors) - len(whole)
        total, named = loss(Batch.from_tensors(*tensors[:own]), *tensors[own:])
        # A backward pass runs in the precisions that its forward pass chose.
        with torch.autocast(total.device.type, enabled=False):
            found = torch.autograd.grad(total, learned, allow_unused=True)
        return total.detach(), {name: term.detach() for name, term in named.items()}, list(found)

    # All at once: to cut one off between two graphs would be to wait for the first.
    firsts = range(0, len(batch), size)
    parts = [batch.select(first, first + size) for first in firsts] if len(firsts) > 1 else [batch]
    gradients: list[Tensor | None] = [None] * len(learned)
    totals, terms = [], {}
    for part in parts:
        total, named, found = replayed(owner, "training", derived, [*part.tensors(), *whole], parameters)
        gradients = [_sum(old, new) for old, new in zip(gradients, found, strict=True)]
        totals.append(total)
        terms = {name: term + terms.get(name, 0) for name, term in named.items()}
    # What has no gradient stays out of the graph, where data parallelism would wait for it.
    known = [(one, gradient) for one, gradient in zip(learned, gradients, strict=True) if gradient is not None]
    return _Known.apply(
        torch.stack(totals).sum(), [gradient for _, gradient in known], *(one for one, _ in known)
    ), terms


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if old is None else old if new is None else old.add_(new)


class _Known(Function):
    """A number whose gradient is known."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(weight * one for one in ctx.gradients)

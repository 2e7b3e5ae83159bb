"""Gradient descent on a memory, differentiable with respect to everything it depends on (GradMem, Algorithm 1)."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

WriteLoss = Callable[[Tensor], Tensor]
"""Memory (B, m, d) -> the loss of each sample, (B,); sample b's may depend on memory b alone."""

Order = Literal["first", "second"]


def descend(loss: WriteLoss, start: Tensor, steps: int, learning_rate: float, order: Order | None) -> Tensor:
    """`steps` steps of M <- M - learning_rate · dloss/dM, from `start`.

    Args:
        loss: the WRITE loss, per sample.
        start: (B, m, d).
        steps: K; 0 returns the start.
        learning_rate: the inner learning rate, per sample: the step does not depend on the batch.
        order: `second` differentiates through the steps in full, `first` takes each step's gradient as a constant,
            `None` records nothing (evaluation).
    Returns:
        M_K, (B, m, d).
    """
    memory = start if order else start.detach()
    for _ in range(steps):
        # Where nothing is recorded yet, a leaf of its own: the caller's tensor is left as it is.
        point = memory if order == "second" and memory.requires_grad else memory.detach().requires_grad_()
        with torch.enable_grad():
            # The fused attention kernels have no second derivative (pytorch#116350).
            with sdpa_kernel(SDPBackend.MATH) if order == "second" else nullcontext():
                total = loss(point).sum()
            (gradient,) = torch.autograd.grad(total, point, create_graph=order == "second")
        memory = memory - learning_rate * gradient
    return memory

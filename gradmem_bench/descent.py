"""Gradient descent on a memory, differentiable with respect to everything it depends on (GradMem, Algorithm 1).

    M_{k+1} = M_k - α · d/dM L(M_k, θ),   k < K,   J = outer(M_K, θ)

With a_K = dJ/dM_K the exact adjoint runs back over the steps: a_k = a_{k+1} - α (∂²L/∂M²) a_{k+1}, and each step adds
-α (∂²L/∂θ∂M) a_{k+1} to dJ/dθ. Both are one backward pass through one step, so that nothing but M_0 ... M_K has to be
kept between the forward and the backward pass. The engines differ in what they keep, and in who runs a step:

    unrolled    every step's graph: the plain double backward, the reference that the others are tested against
    recompute   M_0 ... M_K; each step is made again in the backward pass, and memory does not grow with K
    compiled    like `unrolled` up to 8 steps and like `recompute` beyond, with a step's gradient compiled
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradmem_bench.captured import replayed
from gradmem_bench.compiled import compiled_slope

_log = logging.getLogger(__name__)

WriteLoss = Callable[..., Tensor]
"""(memory (B, m, d), *inputs each (B, ...)) -> each sample's loss (B,), a function of that sample's rows alone."""

Order = Literal["second", "first", "none"]
Engine = Literal["auto", "unrolled", "recompute", "compiled"]
Optimizer = Literal["sgd", "adam"]
Moments = tuple[Tensor, ...]

_UNROLLED_STEPS = 2
"""Up to so many steps every graph is kept: making them again costs a third more time and saves little memory."""
_COMPILED_STEPS = 8
"""The same of compiled steps: half as large, and of a few contexts at a time (micro_batches.py)."""
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Descent:
    """How a memory descends, and how that is differentiated.

    Args:
        order: `second` differentiates through the steps in full, `first` takes each step's gradient as a constant, and
            `none` records nothing: what evaluation does, and training without a meta-gradient.
        last: of `second`, only the last so many steps in second order and those before them in first; `None` is all.
        optimizer: `sgd`, or `adam` with its usual constants and fresh moments for each descent.
        engine: see above. `auto` is `compiled` on a GPU, for what is differentiated twice; on a CPU, where that takes
            minutes, it unrolls up to 2 steps and recomputes beyond. What it chose is logged. Steps without a graph of
            autograd are, on a GPU, one CUDA graph together (captured.py).
        micro_batch: samples that are worked on at a time, by `recompute` in the backward pass and by what is compiled
            everywhere; `None` is all of them. Samples are independent, so that the result is the same.
        clip_value: bound on each entry of a step's gradient, before anything else is made of it.
        clip_norm: bound on the Euclidean norm of one sample's whole gradient, after `clip_value`.
    """

    order: Order = "second"
    last: int | None = None
    optimizer: Optimizer = "sgd"
    engine: Engine = "auto"
    micro_batch: int | None = None
    clip_value: float | None = None
    clip_norm: float | None = None

    def __call__(
        self,
        loss: WriteLoss,
        start: Tensor,
        steps: int,
        learning_rate: float | Tensor,
        *,
        inputs: Sequence[Tensor] = (),
        parameters: Sequence[Tensor] = (),
    ) -> Tensor:
        """M_K, (B, m, d), which takes part in an ordinary backward pass.

        Args:
            loss: the WRITE loss.
            start: M_0, (B, m, d).
            steps: K; 0 returns the start.
            learning_rate: α, a number or a tensor that may be learned: () for all steps, (K,) one a step, or of two or
                more dimensions that spread over (m, d). A step is a sample's own: it does not depend on the batch.
            inputs: what the loss is given beside the memory, each (B, ...); no gradient flows to them.
            parameters: what else the loss depends on and is to receive a gradient. Steps that are made again give one
                to these alone; without any, `auto` and `compiled` keep every graph.
        """
        if self.order == "none":
            return self._without_graph(loss, start, steps, learning_rate, inputs, parameters)
        second = 0 if self.order == "first" else min(steps, steps if self.last is None else self.last)
        memory, moments = start, self._start(start)
        for index in range(steps - second):
            slope = self._constant_slope(loss, memory, inputs, parameters)
            memory, moments = self._move(memory, slope, moments, _rate(learning_rate, index), index)
        if second == 0:
            return memory
        device = start.device.type
        again = self._made_again(second, device, bool(parameters))
        if self.engine == "auto":
            _tell(second, device, again, self._compiles(device))
        if again:
            rates = learning_rate if isinstance(learning_rate, Tensor) else start.new_full((), learning_rate)
            leaves = [parameter for parameter in parameters if parameter.requires_grad]
            indices = range(steps - second, steps)
            return _Recompute.apply(self, loss, indices, tuple(inputs), len(moments), memory, *moments, rates, *leaves)
        for index in range(steps - second, steps):
            rate = _rate(learning_rate, index)
            memory, moments = self._step(loss, memory, moments, inputs, parameters, rate, index)
        return memory

    def _made_again(self, second: int, device: str, parameters: bool) -> bool:
        """Whether the steps in second order keep no graphs."""
        most = _COMPILED_STEPS if self._compiles(device) else _UNROLLED_STEPS
        return self.engine == "recompute" or (self.engine != "unrolled" and parameters and second > most)

    def _compiles(self, device: str) -> bool:
        return self.engine == "compiled" or (self.engine == "auto" and self.order == "second" and device == "cuda")

    def _start(self, memory: Tensor) -> Moments:
        return () if self.optimizer == "sgd" else (torch.zeros_like(memory), torch.zeros_like(memory))

    def _move(
        self, memory: Tensor, slope: Tensor, moments: Moments, rate: float | Tensor, index: int
    ) -> tuple[Tensor, Moments]:
        """One step of the optimiser, differentiable in all of its tensors."""
        slope = self._clipped(slope)
        if self.optimizer == "sgd":
            return memory - rate * slope, ()
        mean = _BETAS[0] * moments[0] + (1 - _BETAS[0]) * slope
        square = _BETAS[1] * moments[1] + (1 - _BETAS[1]) * slope * slope
        # At zero the root's derivative is infinite; the constant under it as well keeps it finite.
        root = (square / (1 - _BETAS[1] ** (index + 1)) + _EPSILON**2).sqrt()
        return memory - rate * mean / (1 - _BETAS[0] ** (index + 1)) / (root + _EPSILON), (mean, square)

    def _clipped(self, slope: Tensor) -> Tensor:
        if self.clip_value is not None:
            slope = slope.clamp(-self.clip_value, self.clip_value)
        if self.clip_norm is not None:
            squared = slope.square().sum(dim=tuple(range(1, slope.dim())), keepdim=True)
            # Bounded before the root is taken: at a gradient of zero the norm itself has no derivative.
            slope = slope * (squared / self.clip_norm**2).clamp(min=1).rsqrt()
        return slope

    def _step(
        self,
        loss: WriteLoss,
        memory: Tensor,
        moments: Moments,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        rate: float | Tensor,
        index: int,
    ) -> tuple[Tensor, Moments]:
        """One step with its graph."""
        slope = None
        if self._compiles(memory.device.type):
            slope = compiled_slope(loss, memory, inputs, parameters, self.micro_batch)
        if slope is None:
            # Where nothing is recorded yet, a leaf of its own: the caller's tensor is left as it is.
            point = memory if memory.requires_grad else memory.detach().requires_grad_()
            # The fused attention kernels have no second derivative (pytorch#116350).
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                (slope,) = torch.autograd.grad(loss(point, *inputs).sum(), point, create_graph=True)
        return self._move(memory, slope, moments, rate, index)

    def _constant_slope(
        self, loss: WriteLoss, memory: Tensor, inputs: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> Tensor:
        """dL/dM as a constant, by whichever attention kernel is fastest."""
        if self._compiles(memory.device.type):
            with torch.no_grad():
                slope = compiled_slope(loss, memory.detach(), inputs, parameters, self.micro_batch)
            if slope is not None:
                return slope
        with torch.enable_grad(), _frozen(parameters):
            point = memory.detach().requires_grad_()
            return torch.autograd.grad(loss(point, *inputs).sum(), point)[0]

    @torch.no_grad()
    def _without_graph(
        self,
        loss: WriteLoss,
        start: Tensor,
        steps: int,
        learning_rate: float | Tensor,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
    ) -> Tensor:
        if steps == 0:
            return start.detach()

        def descended(memory: Tensor, rates: Tensor, *inputs: Tensor) -> Tensor:
            moments = self._start(memory)
            for index in range(steps):
                slope = self._constant_slope(loss, memory, inputs, parameters)
                memory, moments = self._move(memory, slope, moments, _rate(rates, index), index)
            return memory.detach()

        rates = learning_rate if isinstance(learning_rate, Tensor) else start.new_full((), learning_rate)
        owner = getattr(loss, "__self__", loss)
        return replayed(owner, "WRITE", descended, [start, rates, *inputs], parameters, settings=(self, steps))


@cache
def _tell(second: int, device: str, again: bool, compiled: bool) -> None:
    plural, graphs = "s" if second > 1 else "", "made again in the backward pass" if again else "kept"
    _log.info(f"{second} step{plural} in second order on {device}: graphs {graphs}{', compiled' if compiled else ''}")


@contextmanager
def _frozen(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Asks no gradient for leaves: else the activations that only theirs would need are kept as well."""
    learned = [parameter for parameter in parameters if parameter.is_leaf and parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


def _rate(learning_rate: float | Tensor, index: int) -> float | Tensor:
    """α of one step; a vector has one for each."""
    return learning_rate[index] if isinstance(learning_rate, Tensor) and learning_rate.dim() == 1 else learning_rate


class _Recompute(Function):
    """The steps without their graphs; the backward pass makes one at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        descent: Descent,
        loss: WriteLoss,
        indices: range,
        inputs: tuple[Tensor, ...],
        moment_count: int,
        *tensors: Tensor,
    ) -> Tensor:
        memory, moments = tensors[0], tensors[1 : 1 + moment_count]
        rates, parameters = tensors[1 + moment_count], tensors[2 + moment_count :]
        visited = []
        for index in indices:
            visited.append((memory, moments))
            slope = descent._constant_slope(loss, memory, inputs, parameters)
            memory, moments = descent._move(memory, slope, moments, _rate(rates, index), index)
        ctx.descent, ctx.loss, ctx.indices, ctx.moment_count = descent, loss, indices, moment_count
        ctx.parameters, ctx.inputs = parameters, inputs
        device = memory.device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        ctx.save_for_backward(rates, *(tensor for memory, moments in visited for tensor in (memory, *moments)))
        return memory

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        descent, rates, saved = ctx.descent, ctx.saved_tensors[0], ctx.saved_tensors[1:]
        width = 1 + ctx.moment_count
        adjoints = [adjoint, *(torch.zeros_like(adjoint) for _ in range(ctx.moment_count))]
        d_rates = torch.zeros_like(rates)
        d_parameters: list[Tensor | None] = [None] * len(ctx.parameters)
        size = descent.micro_batch or len(adjoint)
        for place in reversed(range(len(ctx.indices))):
            state = saved[place * width : (place + 1) * width]
            before = [torch.empty_like(one) for one in adjoints]
            for first in range(0, len(adjoint), size):
                rows = slice(first, first + size)
                # The backward pass runs where the forward pass's autocast has ended.
                with torch.enable_grad(), torch.autocast(**ctx.autocast):
                    points = [one[rows].detach().requires_grad_() for one in state]
                    leaf = rates.detach().requires_grad_()
                    inputs = [one[rows] for one in ctx.inputs]
                    index = ctx.indices[place]
                    memory, moments = descent._step(
                        ctx.loss, points[0], tuple(points[1:]), inputs, ctx.parameters, _rate(leaf, index), index
                    )
                    wanted = [*points, leaf, *ctx.parameters]
                    found = torch.autograd.grad(
                        [memory, *moments], wanted, [one[rows] for one in adjoints], allow_unused=True
                    )
                for one, gradient in zip(before, found, strict=False):
                    one[rows] = 0 if gradient is None else gradient
                d_rates += 0 if found[width] is None else found[width]
                for number, gradient in enumerate(found[width + 1 :]):
                    if gradient is not None:
                        old = d_parameters[number]
                        d_parameters[number] = gradient if old is None else old + gradient
            adjoints = before
        return None, None, None, None, None, *adjoints, d_rates, *d_parameters

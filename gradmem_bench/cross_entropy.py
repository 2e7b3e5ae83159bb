"""Linear cross-entropy in chunks, with closed-form first and second derivatives.

The loss of a token is `logsumexp(W h) - (W h)[target]`. Written with separate operations, a double backward keeps about
eleven tensors of tokens x vocabulary alive; here only a chunk of them exists at a time, in every pass. The derivative
with respect to h is made with the loss, while the logits are there; the weight of a token's loss, known later, is but a
factor of it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

CHUNK_ELEMENTS, ON_GPU = 1 << 23, 1 << 26
"""Logits that exist at a time (32 MiB in float32); and on a GPU, which fewer do not keep busy."""


def linear_cross_entropy(hidden: Tensor, head: nn.Linear, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy of each token under a linear head.

    With p = softmax(W h), q = p - onehot, g the weight of a token's loss, and u, U the cotangents of dL/dh, dL/dW, the
    derivatives of the backward pass are, with r = W u + U h:
    dg = q·r;  dz = g p∘(r - p·r);  dh = Wᵀdz + g Uᵀq;  dW = Σ dz hᵀ + g q uᵀ.

    Args:
        hidden: (..., d).
        head: d -> V.
        targets: (...), int64.
    Returns:
        Nats (...), twice differentiable with respect to `hidden` and the head; and whether the target is the most
        probable token, (...), bool.
    """
    if torch.compiler.is_compiling():
        # A trace would lose the second derivative of the functions below, without a word (seen in PyTorch 2.13).
        logits = head(hidden)
        losses = F.cross_entropy(
            logits.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32)),
            targets.flatten(),
            reduction="none",
        )
        return losses.view(targets.shape), logits.argmax(dim=-1) == targets
    hidden, weight = hidden.reshape(-1, hidden.shape[-1]), head.weight
    if head.bias is not None:
        # A bias is the weight of an input that is always one.
        hidden = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=1)
        weight = torch.cat([weight, head.bias[:, None]], dim=1)
    if torch.is_autocast_enabled(hidden.device.type):
        # What autocast would have done to the two operands of a matrix product.
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    # A node of its own: of a leaf, autograd refuses to say whether its gradient is asked for.
    weight = weight.view_as(weight)
    slopes_too = torch.is_grad_enabled() and hidden.requires_grad
    losses, right = _LinearCrossEntropy.apply(hidden, weight, targets.reshape(-1), slopes_too)
    return losses.view(targets.shape), right.view(targets.shape)


def _chunks(hidden: Tensor, weight: Tensor) -> tuple[list[slice], Tensor]:
    """Which rows of `hidden` are taken at a time, and a room for their logits: new pages each time would be slower."""
    size = min(max(1, (ON_GPU if hidden.is_cuda else CHUNK_ELEMENTS) // len(weight)), max(1, len(hidden)))
    rows = [slice(start, start + size) for start in range(0, len(hidden), size)]
    return rows, hidden.new_empty(size, len(weight))


def _logits(hidden: Tensor, weight: Tensor, room: Tensor) -> Tensor:
    """(rows, V) in float32 or more, which the caller may change: in `room` itself if that is its dtype."""
    logits = torch.mm(hidden, weight.T, out=room[: len(hidden)])
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, targets: Tensor, slopes_too: bool
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        normalizers = hidden.new_empty(len(hidden), dtype=dtype)
        losses = torch.empty_like(normalizers)
        right = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        # dL/dh of a token whose loss has the weight 1.
        slopes = torch.empty_like(hidden) if slopes_too else None
        chunks, room = _chunks(hidden, weight)
        for rows in chunks:
            logits = _logits(hidden[rows], weight, room)
            right[rows] = logits.argmax(dim=1) == targets[rows]
            chosen = logits.gather(1, targets[rows, None])[:, 0]
            largest = logits.amax(dim=1, keepdim=True)
            exponentials = logits.sub_(largest).exp_()
            sums = exponentials.sum(dim=1)
            normalizers[rows] = sums.log() + largest[:, 0]
            losses[rows] = normalizers[rows] - chosen
            if slopes is not None:
                errors = _errors(exponentials.div_(sums[:, None]), targets[rows]).to(hidden.dtype)
                torch.mm(errors, weight, out=slopes[rows])
        ctx.save_for_backward(hidden, weight, targets, normalizers, slopes)
        ctx.mark_non_differentiable(right)
        return losses, right

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        # WRITE's inner gradient is with respect to the memory alone, though the head could have one.
        _, (of_weight, _), *_ = ctx.next_functions
        wanted = ctx.needs_input_grad[1] and torch._C._will_engine_execute_node(of_weight)
        return *_LinearCrossEntropyBackward.apply(gradient, *ctx.saved_tensors, wanted), None, None


class _LinearCrossEntropyBackward(Function):
    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        normalizers: Tensor,
        slopes: Tensor | None,
        weight_too: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        # A function of `hidden` and `weight`, and differentiated as that; the slopes' own gradient is not asked for.
        d_hidden = None if slopes is None else (slopes * gradient[:, None]).to(hidden.dtype)
        d_weight = None
        if weight_too:
            sums, (chunks, room) = _sums(weight), _chunks(hidden, weight)
            for rows in chunks:
                errors = _errors(_probabilities(hidden[rows], weight, normalizers[rows], room), targets[rows])
                _add(sums, errors.mul_(gradient[rows, None]).to(hidden.dtype).T, hidden[rows])
            d_weight = sums.to(weight.dtype)
        ctx.save_for_backward(gradient, hidden, weight, targets, normalizers)
        # Where nothing is made of dW, its cotangent is `None`.
        ctx.set_materialize_grads(False)
        return d_hidden, d_weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor | None, U: Tensor | None) -> tuple[Tensor | None, ...]:
        gradient, hidden, weight, targets, normalizers = ctx.saved_tensors
        u = torch.zeros_like(hidden) if u is None else u
        d_gradient = torch.empty_like(gradient)
        d_hidden, d_weight = torch.empty_like(hidden), _sums(weight) if ctx.needs_input_grad[2] else None
        chunks, room = _chunks(hidden, weight)
        more_room = torch.empty_like(room)
        for rows in chunks:
            g = gradient[rows, None]
            p = _probabilities(hidden[rows], weight, normalizers[rows], room)
            r = _logits(u[rows], weight, more_room)
            if U is not None:
                r += hidden[rows] @ U.T
            at_target = r.gather(1, targets[rows, None])
            mean = r.mul_(p).sum(dim=1, keepdim=True)
            d_gradient[rows] = (mean - at_target)[:, 0]
            # r is p∘r by now, so that this is g p∘(r - p·r).
            dz = r.addcmul_(p, mean, value=-1).mul_(g).to(hidden.dtype)
            errors = _errors(p, targets[rows]).mul_(g).to(hidden.dtype)
            torch.mm(dz, weight, out=d_hidden[rows])
            if U is not None:
                d_hidden[rows] += errors @ U
            if d_weight is not None:
                _add(d_weight, dz.T, hidden[rows])
                _add(d_weight, errors.T, u[rows])
        return d_gradient, d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None, None, None


def _sums(weight: Tensor) -> Tensor:
    """Zeros to add the chunks' gradients of a weight to: in float32 or more, for the sum to be rounded once."""
    return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))


def _add(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without a second tensor of its size where the dtypes are one."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _probabilities(hidden: Tensor, weight: Tensor, normalizers: Tensor, room: Tensor) -> Tensor:
    """p of a chunk, (rows, V)."""
    return _logits(hidden, weight, room).sub_(normalizers[:, None]).exp_()


def _errors(p: Tensor, targets: Tensor) -> Tensor:
    """q = p - onehot, (rows, V), in the place of p."""
    p[torch.arange(len(p), device=p.device), targets] -= 1
    return p

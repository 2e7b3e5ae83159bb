"""Attention with a double backward, in blocks of query rows and in closed form.

The fused kernels have no second derivative, and what autograd makes of eager attention keeps every score matrix of
every operation. Here a pass keeps the inputs, the output and one number a row; a block of scores is made again where it
is needed, for the forward pass, the backward pass and the backward pass of that.

With S = scale·Q Kᵀ + mask, P = softmax(S), D the dropout mask over its keep probability, O = (P∘D) V, and dO given:

    dP = D∘(dO Vᵀ)    dS = P∘(dP - δ), δ = rowsum(dO∘O)    dQ = scale·dS K    dK = scale·dSᵀ Q    dV = (P∘D)ᵀ dO

and with cotangents uQ, uK, uV of these three, W = scale·(uQ Kᵀ + Q uKᵀ), w = rowsum(W∘P), A = P∘(W - w),
G = W∘(dP - δ) - w dP + D∘(dO uVᵀ) and E = P∘(G - rowsum(G∘P)):

    Q: scale·(E K + dS uK)    K: scale·(Eᵀ Q + dSᵀ uQ)    V: (A∘D)ᵀ dO    dO: (A∘D) V + (P∘D) uV

On a GPU, without dropout, the passes are Triton kernels of the same formulas (triton_attention.py).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from gradmem_bench.errors import UserError

NAME, PADDED_BEHIND = "gradmem_blockwise", "gradmem_blockwise_padded_behind"
"""What transformers knows it by; the second for texts that are padded behind their end alone, where a causal mask hides
the padding too, and a compiler is given none."""
BLOCK_ELEMENTS, ON_GPU = 1 << 20, 1 << 25
"""Scores that exist at a time, of each kind; and on a GPU, which fewer do not keep busy."""
_NOT_OURS = ("s_aux", "softcap", "position_bias")
"""What some models of transformers hand to attention beside a mask and a scale, and which changes what it computes."""
_TRACED_ROWS, _TRACED_ROWS_ON_GPU, _TRACED_BLOCKS = 56, 112, 3
"""Rows of a compiled block at least, but for rounding, and blocks at most. On two CPU cores a step of 96 pairs takes
0.86 of the time with three blocks, and not less with six, which take four times as long to compile as one; one of 16
pairs 0.93 with two. On a GPU, where small blocks are more kernels to start, fewer rows were not tried."""
_TRACED_MULTIPLE = 8
"""Of which the rows of such a block are, the last one's apart: on a GPU products of sides of other lengths were seen in
slower kernels. What it gains was not measured."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout_mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Softmax attention, twice differentiable with respect to query, key and value.

    Args:
        query: (B, H, S, e).
        key, value: (B, G, T, e), each of the G key-value heads serving H / G query heads.
        mask: (B or 1, 1, S, T), bool, true where a query sees a key; `None` hides nothing but what `causal` does. A
            row that sees nothing yields zero.
        scale: of the scores.
        dropout_mask: (B, H, S, T), already divided by the probability to keep; fixed, so that every pass sees the same.
        causal: whether every query is kept from the keys behind it, the last query standing at the last key: a mask, if
            there is one, has to say so too. Blocks leave out the keys that none of their queries sees.
    Returns:
        (B, H, S, e).
    """
    if torch.is_autocast_enabled(query.device.type):
        # What autocast does to the operands of other attention; rotary positions leave queries and keys in float32.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        # Autograd sums the groups' gradients, in both orders.
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if torch.compiler.is_compiling():
        # A trace would lose the second derivative of the functions below, without a word (seen in PyTorch 2.13).
        return _traced(query, key, value, mask, scale, dropout_mask, causal)
    if mask is None and causal:
        rows, columns = query.shape[2], key.shape[2]
        mask = torch.ones(1, 1, rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)
    return _Attention.apply(query, key, value, mask, scale, dropout_mask, causal)


def _traced(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: Tensor | None,
    causal: bool,
) -> Tensor:
    """What a compiler is given: few blocks, since it compiles each by itself."""
    length, on_gpu = query.shape[2], query.is_cuda
    least = _TRACED_ROWS_ON_GPU if on_gpu else _TRACED_ROWS
    blocks = max(1, min(_TRACED_BLOCKS, length // least))
    rows = -(-length // (_TRACED_MULTIPLE * blocks)) * _TRACED_MULTIPLE if causal else length
    # A kernel for a CPU would compare positions at every score, in every pass; what it does not see into, it reads.
    hidden = _hidden if on_gpu else _hidden_as_it_is
    outputs = []
    for first in range(0, length, rows):
        s = slice(first, first + rows)
        t = _seen(s, query, key, causal)
        scores = (query[:, :, s] @ key[:, :, t].transpose(-1, -2) * scale).to(
            torch.promote_types(query.dtype, torch.float32)
        )
        if mask is not None:
            scores = scores.masked_fill(~mask[:, :, s, t], torch.finfo(scores.dtype).min)
        elif causal:
            # Added, it asks nothing of the derivatives: probabilities of zero are in all of them.
            scores = scores + hidden(*scores.shape[2:], scores.dtype, scores.device)
        chances = scores.softmax(dim=-1).to(query.dtype)
        if dropout is not None:
            chances = chances * dropout[:, :, s, t]
        outputs.append(chances @ value[:, :, t])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _hidden(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(rows, columns): the least number where what is causal hides a key, and 0 elsewhere."""
    return torch.full((rows, columns), torch.finfo(dtype).min, dtype=dtype, device=device).triu(1 + columns - rows)


_hidden_as_it_is = torch.library.custom_op("gradmem_bench::hidden", _hidden, mutates_args=())
_hidden_as_it_is.register_fake(_hidden)


def _seen(s: slice, query: Tensor, key: Tensor, causal: bool) -> slice:
    """The keys that the rows `s` may see."""
    return slice(0, min(s.stop, query.shape[2]) + key.shape[2] - query.shape[2]) if causal else slice(None)


@cache
def _triton() -> ModuleType | None:
    """The kernels' module; `None` where Triton is not installed."""
    try:
        from gradmem_bench import triton_attention
    except ImportError:
        return None
    return triton_attention


def _kernels(query: Tensor, dropout: Tensor | None) -> ModuleType | None:
    """The kernels of these passes, where they are for such tensors."""
    if not query.is_cuda or dropout is not None or query.dtype == torch.float64:
        return None
    # What counts operations (FlopCounterMode) does not see a kernel of our own.
    if _get_current_dispatch_mode() is not None or (kernels := _triton()) is None:
        return None
    return kernels if query.shape[-1] <= kernels.LARGEST_HEAD else None


def _blocks(query: Tensor, key: Tensor, causal: bool) -> list[tuple[slice, slice, slice]]:
    """Rows of the batch and of queries that are worked on together, and the keys that they may see."""
    batch, heads, length, _ = query.shape
    per_row, most = heads * key.shape[2], ON_GPU if query.is_cuda else BLOCK_ELEMENTS
    rows = min(length, max(1, most // per_row))
    samples = max(1, most // (per_row * length)) if rows == length else 1
    queries = [slice(s, s + rows) for s in range(0, length, rows)]
    return [(slice(b, b + samples), s, _seen(s, query, key, causal)) for b in range(0, batch, samples) for s in queries]


def _part(tensor: Tensor | None, b: slice, s: slice, t: slice) -> Tensor | None:
    if tensor is None:
        return None
    return tensor[b if tensor.shape[0] > 1 else slice(None), :, s, t]


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = (query @ key.transpose(-1, -2)).mul_(scale)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores if mask is None else scores.masked_fill_(~mask, -torch.inf)


def _probabilities(query: Tensor, key: Tensor, mask: Tensor | None, scale: float, normalizer: Tensor) -> Tensor:
    # A row that sees nothing has a normalizer of +inf in place of -inf, and so probabilities of zero.
    return _scores(query, key, mask, scale).sub_(normalizer[..., None]).exp_().to(query.dtype)


class _Attention(Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        dropout: Tensor | None,
        causal: bool,
    ) -> Tensor:
        ctx.scale, ctx.causal = scale, causal
        if kernels := _kernels(query, dropout):
            output, normalizers = kernels.forward(query, key, value, mask, scale)
            ctx.save_for_backward(query, key, value, output, normalizers, mask, dropout)
            return output
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        normalizers = query.new_empty(query.shape[:-1], dtype=torch.promote_types(query.dtype, torch.float32))
        for b, s, t in _blocks(query, key, causal):
            scores = _scores(query[b, :, s], key[b, :, t], _part(mask, b, s, t), scale)
            normalizer = scores.logsumexp(dim=-1)
            normalizer = normalizer.masked_fill_(normalizer == -torch.inf, torch.inf)
            normalizers[b, :, s] = normalizer
            chances = scores.sub_(normalizer[..., None]).exp_().to(query.dtype)
            if dropout is not None:
                chances = chances * dropout[b, :, s, t]
            output[b, :, s] = chances @ value[b, :, t]
        ctx.save_for_backward(query, key, value, output, normalizers, mask, dropout)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, normalizers, mask, dropout = ctx.saved_tensors
        # Detached: else a double backward comes back here, to differentiate with respect to it by a gradient of zeros.
        saved = output.detach(), normalizers, mask
        gradients = _AttentionBackward.apply(query, key, value, gradient, *saved, ctx.scale, dropout, ctx.causal)
        return *gradients, None, None, None, None


class _AttentionBackward(Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gradient: Tensor,
        output: Tensor,
        normalizers: Tensor,
        mask: Tensor | None,
        scale: float,
        dropout: Tensor | None,
        causal: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.scale, ctx.causal = scale, causal
        if kernels := _kernels(query, dropout):
            *found, deltas = kernels.backward(query, key, value, gradient, output, normalizers, mask, scale)
            ctx.save_for_backward(query, key, value, gradient, deltas, normalizers, mask, dropout)
            return tuple(found)
        d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        # `output` is a function of the other inputs, and counted through them; its own gradient is not asked for.
        deltas = (gradient * output).sum(dim=-1)
        for b, s, t in _blocks(query, key, causal):
            q, k, v, do = query[b, :, s], key[b, :, t], value[b, :, t], gradient[b, :, s]
            chances = _probabilities(q, k, _part(mask, b, s, t), scale, normalizers[b, :, s])
            d_chances = do @ v.transpose(-1, -2)
            kept = chances
            if dropout is not None:
                kept, d_chances = chances * dropout[b, :, s, t], d_chances * dropout[b, :, s, t]
            d_value[b, :, t] += kept.transpose(-1, -2) @ do
            d_scores = d_chances.sub_(deltas[b, :, s, None]).mul_(chances).mul_(scale)
            d_query[b, :, s] = d_scores @ k
            d_key[b, :, t] += d_scores.transpose(-1, -2) @ q
        ctx.save_for_backward(query, key, value, gradient, deltas, normalizers, mask, dropout)
        return d_query, d_key, d_value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u_query: Tensor, u_key: Tensor, u_value: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, gradient, deltas, normalizers, mask, dropout = ctx.saved_tensors
        scale = ctx.scale
        if kernels := _kernels(query, dropout):
            cotangents = u_query, u_key, u_value
            found = kernels.double_backward(query, key, value, gradient, deltas, normalizers, mask, scale, *cotangents)
            return *found, None, None, None, None, None, None
        g_query, g_gradient = torch.empty_like(query), torch.empty_like(gradient)
        g_key, g_value = torch.zeros_like(key), torch.zeros_like(value)
        for b, s, t in _blocks(query, key, ctx.causal):
            q, k, v, do = query[b, :, s], key[b, :, t], value[b, :, t], gradient[b, :, s]
            uq, uk, uv = u_query[b, :, s], u_key[b, :, t], u_value[b, :, t]
            chances = _probabilities(q, k, _part(mask, b, s, t), scale, normalizers[b, :, s])
            centred = do @ v.transpose(-1, -2)
            g_chances = do @ uv.transpose(-1, -2)
            if dropout is not None:
                centred, g_chances = centred * dropout[b, :, s, t], g_chances * dropout[b, :, s, t]
            centred = centred.sub_(deltas[b, :, s, None])
            w = (uq @ k.transpose(-1, -2)).add_(q @ uk.transpose(-1, -2)).mul_(scale)
            mean = (w * chances).sum(dim=-1, keepdim=True)
            a = (w - mean).mul_(chances)
            # G, with dP = centred + δ; its δ part is the same for a whole row and falls out of E.
            g_chances = g_chances.addcmul_(w - mean, centred)
            e = g_chances.sub_((g_chances * chances).sum(dim=-1, keepdim=True)).mul_(chances).mul_(scale)
            d_scores = centred.mul_(chances).mul_(scale)
            g_query[b, :, s] = e @ k + d_scores @ uk
            g_key[b, :, t] += e.transpose(-1, -2) @ q + d_scores.transpose(-1, -2) @ uq
            if dropout is not None:
                a, chances = a * dropout[b, :, s, t], chances * dropout[b, :, s, t]
            g_value[b, :, t] += a.transpose(-1, -2) @ do
            g_gradient[b, :, s] = a @ v + chances @ uv
        return g_query, g_key, g_value, g_gradient, None, None, None, None, None, None


def _for_transformers(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (B, H, S, e) in, (B, S, H, e) out; the mask comes from the two below."""
    if unknown := [name for name in _NOT_OURS if others.get(name) is not None]:
        raise UserError(
            f"{type(module).__name__} attends with '{unknown[0]}', which attention in blocks does not know; name a "
            "backbone without it."
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    dropped = None
    if dropout and module.training:
        keep = 1 - dropout
        shape = (*query.shape[:-1], key.shape[2])
        dropped = torch.empty(shape, dtype=query.dtype, device=query.device).bernoulli_(keep).div_(keep)
    # None at all is what `_mask_of_more` leaves of a causal one.
    causal = attention_mask is None or getattr(module, "is_causal", False)
    output = attention(query, key, value, attention_mask, scale, dropped, causal)
    return output.transpose(1, 2).contiguous(), None


def _mask(*arguments: Any, **options: Any) -> Tensor:
    """The mask of scaled-dot-product attention, always written out: there is no flag for causal attention here."""
    return sdpa_mask(*arguments, **{**options, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


def _mask_of_more(*arguments: Any, mask_function: Callable = causal_mask_function, **options: Any) -> Tensor | None:
    """`None` to a compiler where a mask would be causal and of padding alone; a window, for example, is more than that.

    Where each operation runs by itself, one mask that all layers share is less than one that each of them makes.
    """
    more = mask_function is not causal_mask_function or not options.get("allow_is_causal_skip", True)
    if more or not torch.compiler.is_compiling():
        return _mask(*arguments, mask_function=mask_function, **options)
    return None


for _name, _masks in ((NAME, _mask), (PADDED_BEHIND, _mask_of_more)):
    AttentionInterface.register(_name, _for_transformers)
    AttentionMaskInterface.register(_name, _masks)


@contextmanager
def blockwise(model: PreTrainedModel) -> Iterator[None]:
    """Runs `model` with this attention, and afterwards with its own again; one whose attention is not transformers' to
    replace keeps its own. What it is run on may be padded behind its end alone; what padding itself sees is left open.
    """
    if not model.is_backend_compatible():
        yield
        return
    before = model.config._attn_implementation
    model.config._attn_implementation = PADDED_BEHIND
    try:
        yield
    finally:
        model.config._attn_implementation = before

"""Attention's passes of `attention`, as Triton kernels for CUDA: the same formulas, the scores never in memory.

A kernel either holds a block of queries and goes over the keys, or holds a block of keys and goes over the queries; so
each sum has one owner and one order, there are no atomics, and two runs give the same bits:

    forward            by query: output, logsumexp of each row of scores
    backward           by query: δ, dQ          by key: dK, dV
    double backward    by query: w and rowsum(G∘P), then the gradients of Q and dO          by key: those of K and V

Without dropout rowsum(P∘(dP - δ)) is zero. So w falls out of rowsum(G∘P) = rowsum(P∘(W∘(dP - δ) + dO uVᵀ)), and both
row sums of the double backward come from one pass over the keys.

The mask is any mask. A kernel ahead of the others finds, for each block, the first and the last that it sees or is seen
by, and the loops run between the two: a causal mask costs half, and the loop, free of branches, can load ahead.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_HEAD = 128
"""Of a head size, e."""


def forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax attention.

    Args:
        query: (B, H, S, e), float32, bfloat16 or float16, e at most `LARGEST_HEAD`.
        key, value: (B, H, T, e), of the same type.
        mask: (B or 1, 1, S, T), bool, true where a query sees a key; `None` is all of it. A row that sees nothing
            yields zero.
        scale: of the scores.
    Returns:
        The output, (B, H, S, e), and the normalizers, (B, H, S), float32: the logsumexp of each row of scaled scores,
        in nats, +inf for a row that sees nothing.
    """
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    output, normalizers = torch.empty_like(query), _per_row(query)
    kernels = _Pass(query, key, mask, scale, second=False)
    kernels.launch(_forward, query, key, value, output, normalizers)
    return output, normalizers


def backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gradient: Tensor,
    output: Tensor,
    normalizers: Tensor,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key and value.

    Args:
        query, key, value, mask, scale: what `forward` was given.
        gradient: (B, H, S, e), of the output.
        output, normalizers: what `forward` returned.
    Returns:
        The three gradients, of the shapes of query, key and value, and the deltas, (B, H, S), float32: the row sums of
        gradient times output.
    """
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    gradient, output, normalizers = gradient.contiguous(), output.contiguous(), normalizers.contiguous()
    d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    deltas = _per_row(query)
    kernels = _Pass(query, key, mask, scale, second=False)
    kernels.launch(_d_query, query, key, value, gradient, output, normalizers, deltas, d_query)
    kernels.launch(_d_key_value, query, key, value, gradient, normalizers, deltas, d_key, d_value, by_key=True)
    return d_query, d_key, d_value, deltas


def double_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gradient: Tensor,
    deltas: Tensor,
    normalizers: Tensor,
    mask: Tensor | None,
    scale: float,
    u_query: Tensor,
    u_key: Tensor,
    u_value: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of what `backward` was given, from those of what it returned.

    Args:
        query, key, value, gradient, normalizers, mask, scale: what `backward` was given.
        deltas: what `backward` returned.
        u_query, u_key, u_value: the gradients of the gradients of query, key and value, of their shapes.
    Returns:
        The gradients of query, key, value and gradient, of their shapes.
    """
    query, key, value, gradient = query.contiguous(), key.contiguous(), value.contiguous(), gradient.contiguous()
    u_query, u_key, u_value = u_query.contiguous(), u_key.contiguous(), u_value.contiguous()
    normalizers, deltas = normalizers.contiguous(), deltas.contiguous()
    g_query, g_key, g_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    g_gradient, w_means, g_means = torch.empty_like(gradient), _per_row(query), _per_row(query)
    kernels = _Pass(query, key, mask, scale, second=True)
    given = query, key, value, gradient, u_query, u_key, u_value, normalizers, deltas, w_means, g_means
    kernels.launch(_g_query_gradient, *given, g_query, g_gradient)
    kernels.launch(_g_key_value, *given, g_key, g_value, by_key=True)
    return g_query, g_key, g_value, g_gradient


def _per_row(query: Tensor) -> Tensor:
    return torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)


def _blocks(dtype: torch.dtype, precision: str, wide: int, second: bool) -> tuple[int, int, int, int]:
    """Rows held, rows passed over at a time, warps, and stages of loads ahead.

    By what compiles for sm_90 within 227 KiB of shared memory and with few spilled registers, or none.
    """
    if dtype != torch.float32:
        return (128, 32, 8, 2) if second and wide > 64 else (64, 64, 4, 2)
    if precision == "ieee":
        # Not on tensor cores: each thread keeps whole rows of what it multiplies in registers.
        return (32, 32, 8, 1) if wide <= 64 else (32, 16, 8, 1)
    if wide <= 64:
        return 64, 32, 4, 2
    return (64, 16, 8, 1) if second else (64, 32, 8, 2)


class _Pass:
    """What the kernels of one pass are launched with alike."""

    def __init__(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float, second: bool) -> None:
        (self.batch, self.heads, length, head), keys = query.shape, key.shape[2]
        self.scale, self.mask, strides, wide = scale, None, (0, 0, 0, 0), max(16, triton.next_power_of_2(head))
        if mask is not None:
            self.mask = mask.expand(self.batch, 1, length, keys).view(torch.int8)
            strides = self.mask.stride()
        self.sample_stride = strides[0]
        # How many there are, and how far apart in the mask.
        self.query_side, self.key_side = (length, strides[2]), (keys, strides[3])
        # What PyTorch multiplies float32 matrices with.
        precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
        self.held, self.passed, warps, stages = _blocks(query.dtype, precision, wide, second)
        self.options = dict(E=head, BLOCK_E=wide, PRECISION=precision, num_warps=warps, num_stages=stages)

    def launch(self, kernel: Any, *tensors: Tensor, by_key: bool = False) -> None:
        """One program holds a block of queries of one head, or else of keys."""
        held, passed, blocks = self.query_side, self.key_side, {"BLOCK_S": self.held, "BLOCK_T": self.passed}
        if by_key:
            held, passed, blocks = passed, held, {"BLOCK_S": self.passed, "BLOCK_T": self.held}
        count = triton.cdiv(held[0], self.held)
        if not self.batch * self.heads * count:
            return
        with torch.cuda.device_of(tensors[0]):
            extents = None
            if self.mask is not None:
                extents = torch.empty((self.batch, count, 2), dtype=torch.int32, device=self.mask.device)
                given = self.mask, extents, held[0], passed[0], self.sample_stride, held[1], passed[1]
                _extents[self.batch * count,](*given, BLOCK=self.held, STEP=8192 // self.held)
            (length, row_stride), (keys, column_stride) = self.query_side, self.key_side
            given = self.mask, extents, self.sample_stride, row_stride, column_stride, self.scale, length, keys
            kernel[self.batch * self.heads * count,](*tensors, *given, self.heads, **self.options, **blocks)


@triton.jit(do_not_specialize=["held", "passed"])
def _extents(
    mask, extents, held, passed, sample_stride, held_stride, passed_stride, BLOCK: tl.constexpr, STEP: tl.constexpr
):
    """For each block of what is held, the first and one past the last of what is passed over that it has to do with."""
    blocks = tl.cdiv(held, BLOCK)
    sample, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    rows = block * BLOCK + tl.arange(0, BLOCK)
    shift = sample.to(tl.int64) * sample_stride
    first, end = passed, 0
    for start in range(0, passed, STEP):
        columns = start + tl.arange(0, STEP)
        seen = _seen(mask, shift, rows[:, None], columns[None, :], held, passed, held_stride, passed_stride)
        seen = tl.max(seen.to(tl.int32), 0) > 0
        first = tl.minimum(first, tl.min(tl.where(seen, columns, passed), 0))
        end = tl.maximum(end, tl.max(tl.where(seen, columns + 1, 0), 0))
    tl.store(extents + 2 * tl.program_id(0), first)
    tl.store(extents + 2 * tl.program_id(0) + 1, end)


@triton.jit
def _seen(mask, shift, rows, columns, row_count, column_count, row_stride, column_stride):
    inside = (rows < row_count) & (columns < column_count)
    if mask is None:
        seen = inside
    else:
        places = mask + shift + rows.to(tl.int64) * row_stride + columns.to(tl.int64) * column_stride
        seen = tl.load(places, mask=inside, other=0) != 0
    return seen


@triton.jit
def _place(mask, extents, sample_stride, heads, held, passed, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """Which pair of a sample and a head, where its mask is, which rows are held, and where the loop begins and ends."""
    blocks = tl.cdiv(held, BLOCK)
    # Pairs in 64 bits: what they are multiplied by may not fit 32.
    pair, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    sample = pair // heads
    if mask is None:
        first, end = 0, passed
    else:
        first = tl.load(extents + 2 * (sample * blocks + block)) // STEP * STEP
        end = tl.load(extents + 2 * (sample * blocks + block) + 1)
    return pair, sample * sample_stride, block * BLOCK + tl.arange(0, BLOCK), first, end


@triton.jit
def _rows(matrix, rows, count, E: tl.constexpr, BLOCK_E: tl.constexpr):
    """Rows of a matrix, zero past its end and its width."""
    columns = tl.arange(0, BLOCK_E)
    inside = (rows[:, None] < count) & (columns[None, :] < E)
    return tl.load(matrix + rows[:, None] * E + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _put(matrix, rows, count, block, E: tl.constexpr, BLOCK_E: tl.constexpr):
    columns = tl.arange(0, BLOCK_E)
    inside = (rows[:, None] < count) & (columns[None, :] < E)
    tl.store(matrix + rows[:, None] * E + columns[None, :], block.to(matrix.dtype.element_ty), mask=inside)


@triton.jit
def _chances(scores, seen, normalizers):
    # A row that sees nothing, or is past the last, has a normalizer of +inf, and so probabilities of zero.
    return tl.exp(tl.where(seen, scores, -float("inf")) - normalizers)


@triton.jit(do_not_specialize=["S", "T", "heads"])
def _forward(
    query, key, value, output, normalizers, mask, extents, sample_stride, row_stride, column_stride, scale, S, T, heads,
    E: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    pair, shift, rows, first, end = _place(mask, extents, sample_stride, heads, S, T, BLOCK_S, BLOCK_T)
    query, output, normalizers = query + pair * S * E, output + pair * S * E, normalizers + pair * S
    key, value = key + pair * T * E, value + pair * T * E
    q = _rows(query, rows, S, E, BLOCK_E)
    highest = tl.full((BLOCK_S,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_S,), tl.float32)
    summed = tl.zeros((BLOCK_S, BLOCK_E), tl.float32)
    for start in range(first, end, BLOCK_T):
        columns = start + tl.arange(0, BLOCK_T)
        k, v = _rows(key, columns, T, E, BLOCK_E), _rows(value, columns, T, E, BLOCK_E)
        seen = _seen(mask, shift, rows[:, None], columns[None, :], S, T, row_stride, column_stride)
        scores = tl.where(seen, tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale, -float("inf"))
        top = tl.maximum(highest, tl.max(scores, 1))
        # While a row has seen nothing its highest score is -inf, and a difference of two of them is no number.
        origin = tl.where(top == -float("inf"), 0.0, top)
        chances, kept = tl.exp(scores - origin[:, None]), tl.exp(highest - origin)
        total = total * kept + tl.sum(chances, 1)
        summed = tl.dot(chances.to(v.dtype), v, summed * kept[:, None], input_precision=PRECISION)
        highest = top
    some = total > 0
    total = tl.where(some, total, 1.0)
    _put(output, rows, S, summed / total[:, None], E, BLOCK_E)
    tl.store(normalizers + rows, tl.where(some, highest + tl.log(total), float("inf")), mask=rows < S)


@triton.jit(do_not_specialize=["S", "T", "heads"])
def _d_query(
    query, key, value, gradient, output, normalizers, deltas, d_query,
    mask, extents, sample_stride, row_stride, column_stride, scale, S, T, heads,
    E: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    pair, shift, rows, first, end = _place(mask, extents, sample_stride, heads, S, T, BLOCK_S, BLOCK_T)
    query, gradient, output = query + pair * S * E, gradient + pair * S * E, output + pair * S * E
    key, value = key + pair * T * E, value + pair * T * E
    q, do = _rows(query, rows, S, E, BLOCK_E), _rows(gradient, rows, S, E, BLOCK_E)
    normalizer = tl.load(normalizers + pair * S + rows, mask=rows < S, other=float("inf"))
    delta = tl.sum(do.to(tl.float32) * _rows(output, rows, S, E, BLOCK_E).to(tl.float32), 1)
    tl.store(deltas + pair * S + rows, delta, mask=rows < S)
    summed = tl.zeros((BLOCK_S, BLOCK_E), tl.float32)
    for start in range(first, end, BLOCK_T):
        columns = start + tl.arange(0, BLOCK_T)
        k, v = _rows(key, columns, T, E, BLOCK_E), _rows(value, columns, T, E, BLOCK_E)
        seen = _seen(mask, shift, rows[:, None], columns[None, :], S, T, row_stride, column_stride)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        centred = tl.dot(do, tl.trans(v), input_precision=PRECISION) - delta[:, None]
        d_scores = _chances(scores, seen, normalizer[:, None]) * centred
        summed = tl.dot(d_scores.to(k.dtype), k, summed, input_precision=PRECISION)
    _put(d_query + pair * S * E, rows, S, summed * scale, E, BLOCK_E)


@triton.jit(do_not_specialize=["S", "T", "heads"])
def _d_key_value(
    query, key, value, gradient, normalizers, deltas, d_key, d_value,
    mask, extents, sample_stride, row_stride, column_stride, scale, S, T, heads,
    E: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    pair, shift, columns, first, end = _place(mask, extents, sample_stride, heads, T, S, BLOCK_T, BLOCK_S)
    query, gradient = query + pair * S * E, gradient + pair * S * E
    normalizers, deltas = normalizers + pair * S, deltas + pair * S
    k, v = _rows(key + pair * T * E, columns, T, E, BLOCK_E), _rows(value + pair * T * E, columns, T, E, BLOCK_E)
    k_summed, v_summed = tl.zeros((BLOCK_T, BLOCK_E), tl.float32), tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    # Keys down, queries across: what is multiplied with the queries' rows is then there as it is needed.
    for start in range(first, end, BLOCK_S):
        rows = start + tl.arange(0, BLOCK_S)
        q, do = _rows(query, rows, S, E, BLOCK_E), _rows(gradient, rows, S, E, BLOCK_E)
        normalizer = tl.load(normalizers + rows, mask=rows < S, other=float("inf"))
        delta = tl.load(deltas + rows, mask=rows < S, other=0.0)
        seen = _seen(mask, shift, rows[None, :], columns[:, None], S, T, row_stride, column_stride)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
        chances = _chances(scores, seen, normalizer[None, :])
        v_summed = tl.dot(chances.to(do.dtype), do, v_summed, input_precision=PRECISION)
        d_scores = chances * (tl.dot(v, tl.trans(do), input_precision=PRECISION) - delta[None, :])
        k_summed = tl.dot(d_scores.to(q.dtype), q, k_summed, input_precision=PRECISION)
    _put(d_key + pair * T * E, columns, T, k_summed * scale, E, BLOCK_E)
    _put(d_value + pair * T * E, columns, T, v_summed, E, BLOCK_E)


@triton.jit
def _terms(a, u_a, b, u_b, c, d, u_c, u_d, seen, normalizer, delta, scale, PRECISION: tl.constexpr):
    """P, W, dP - δ and dO uVᵀ, the queries' rows down or across."""
    chances = _chances(tl.dot(a, tl.trans(b), input_precision=PRECISION) * scale, seen, normalizer)
    weights = tl.dot(u_a, tl.trans(b), input_precision=PRECISION)
    weights = tl.dot(a, tl.trans(u_b), weights, input_precision=PRECISION) * scale
    centred = tl.dot(c, tl.trans(d), input_precision=PRECISION) - delta
    return chances, weights, centred, tl.dot(u_c, tl.trans(u_d), input_precision=PRECISION)


@triton.jit(do_not_specialize=["S", "T", "heads"])
def _g_query_gradient(
    query, key, value, gradient, u_query, u_key, u_value, normalizers, deltas, w_means, g_means, g_query, g_gradient,
    mask, extents, sample_stride, row_stride, column_stride, scale, S, T, heads,
    E: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    pair, shift, rows, first, end = _place(mask, extents, sample_stride, heads, S, T, BLOCK_S, BLOCK_T)
    key, value, u_key, u_value = key + pair * T * E, value + pair * T * E, u_key + pair * T * E, u_value + pair * T * E
    q = _rows(query + pair * S * E, rows, S, E, BLOCK_E)
    uq = _rows(u_query + pair * S * E, rows, S, E, BLOCK_E)
    do = _rows(gradient + pair * S * E, rows, S, E, BLOCK_E)
    normalizer = tl.load(normalizers + pair * S + rows, mask=rows < S, other=float("inf"))[:, None]
    delta = tl.load(deltas + pair * S + rows, mask=rows < S, other=0.0)[:, None]
    w_mean, g_mean = tl.zeros((BLOCK_S,), tl.float32), tl.zeros((BLOCK_S,), tl.float32)
    for start in range(first, end, BLOCK_T):
        columns = start + tl.arange(0, BLOCK_T)
        k, uk = _rows(key, columns, T, E, BLOCK_E), _rows(u_key, columns, T, E, BLOCK_E)
        v, uv = _rows(value, columns, T, E, BLOCK_E), _rows(u_value, columns, T, E, BLOCK_E)
        seen = _seen(mask, shift, rows[:, None], columns[None, :], S, T, row_stride, column_stride)
        chances, w, centred, g_chances = _terms(q, uq, k, uk, do, v, do, uv, seen, normalizer, delta, scale, PRECISION)
        w_mean += tl.sum(chances * w, 1)
        g_mean += tl.sum(chances * (w * centred + g_chances), 1)
    tl.store(w_means + pair * S + rows, w_mean, mask=rows < S)
    tl.store(g_means + pair * S + rows, g_mean, mask=rows < S)
    q_summed, do_summed = tl.zeros((BLOCK_S, BLOCK_E), tl.float32), tl.zeros((BLOCK_S, BLOCK_E), tl.float32)
    for start in range(first, end, BLOCK_T):
        columns = start + tl.arange(0, BLOCK_T)
        k, uk = _rows(key, columns, T, E, BLOCK_E), _rows(u_key, columns, T, E, BLOCK_E)
        v, uv = _rows(value, columns, T, E, BLOCK_E), _rows(u_value, columns, T, E, BLOCK_E)
        seen = _seen(mask, shift, rows[:, None], columns[None, :], S, T, row_stride, column_stride)
        chances, w, centred, g_chances = _terms(q, uq, k, uk, do, v, do, uv, seen, normalizer, delta, scale, PRECISION)
        w -= w_mean[:, None]
        do_summed = tl.dot((chances * w).to(v.dtype), v, do_summed, input_precision=PRECISION)
        do_summed = tl.dot(chances.to(uv.dtype), uv, do_summed, input_precision=PRECISION)
        e = chances * (w * centred + g_chances - g_mean[:, None])
        q_summed = tl.dot(e.to(k.dtype), k, q_summed, input_precision=PRECISION)
        q_summed = tl.dot((chances * centred).to(uk.dtype), uk, q_summed, input_precision=PRECISION)
    _put(g_query + pair * S * E, rows, S, q_summed * scale, E, BLOCK_E)
    _put(g_gradient + pair * S * E, rows, S, do_summed, E, BLOCK_E)


@triton.jit(do_not_specialize=["S", "T", "heads"])
def _g_key_value(
    query, key, value, gradient, u_query, u_key, u_value, normalizers, deltas, w_means, g_means, g_key, g_value,
    mask, extents, sample_stride, row_stride, column_stride, scale, S, T, heads,
    E: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    pair, shift, columns, first, end = _place(mask, extents, sample_stride, heads, T, S, BLOCK_T, BLOCK_S)
    query, u_query, gradient = query + pair * S * E, u_query + pair * S * E, gradient + pair * S * E
    normalizers, deltas = normalizers + pair * S, deltas + pair * S
    w_means, g_means = w_means + pair * S, g_means + pair * S
    k, uk = _rows(key + pair * T * E, columns, T, E, BLOCK_E), _rows(u_key + pair * T * E, columns, T, E, BLOCK_E)
    v, uv = _rows(value + pair * T * E, columns, T, E, BLOCK_E), _rows(u_value + pair * T * E, columns, T, E, BLOCK_E)
    k_summed, v_summed = tl.zeros((BLOCK_T, BLOCK_E), tl.float32), tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    for start in range(first, end, BLOCK_S):
        rows = start + tl.arange(0, BLOCK_S)
        q, uq = _rows(query, rows, S, E, BLOCK_E), _rows(u_query, rows, S, E, BLOCK_E)
        do = _rows(gradient, rows, S, E, BLOCK_E)
        normalizer = tl.load(normalizers + rows, mask=rows < S, other=float("inf"))[None, :]
        delta = tl.load(deltas + rows, mask=rows < S, other=0.0)[None, :]
        w_mean = tl.load(w_means + rows, mask=rows < S, other=0.0)[None, :]
        g_mean = tl.load(g_means + rows, mask=rows < S, other=0.0)[None, :]
        seen = _seen(mask, shift, rows[None, :], columns[:, None], S, T, row_stride, column_stride)
        chances, w, centred, g_chances = _terms(k, uk, q, uq, v, do, uv, do, seen, normalizer, delta, scale, PRECISION)
        w -= w_mean
        v_summed = tl.dot((chances * w).to(do.dtype), do, v_summed, input_precision=PRECISION)
        e = chances * (w * centred + g_chances - g_mean)
        k_summed = tl.dot(e.to(q.dtype), q, k_summed, input_precision=PRECISION)
        k_summed = tl.dot((chances * centred).to(uq.dtype), uq, k_summed, input_precision=PRECISION)
    _put(g_key + pair * T * E, columns, T, k_summed * scale, E, BLOCK_E)
    _put(g_value + pair * T * E, columns, T, v_summed, E, BLOCK_E)

"""The gradient of a WRITE loss with respect to the memory, as one compiled function that is differentiated once.

A compiled function has no second derivative, and a compiled region that asks autograd for one is refused (by PyTorch
2.11 and 2.12 answered wrongly, without a word: pytorch#181581). So the inner gradient is taken inside, by `torch.func`:
what is compiled is the gradient, and the meta-gradient asks a first derivative of it, which the compiler makes with it.

Nothing is believed that was not seen: the first call of each shape is compared with the plain double backward, and
where it fails or disagrees, `None` is returned and one warning given, for the caller to go the plain way.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import _get_current_dispatch_mode

from gradmem_bench.precision import alike, in_force

Slope = Callable[[Tensor, Sequence[Tensor]], Tensor]

_SHAPES = 32
"""Shapes and modes of one loss that are compiled; each takes a minute or more."""
_TOLERANCE, _ROUNDED = {torch.float64: 1e-9, torch.float32: 1e-3}, 5e-2
"""Of the norm of a difference, relative; the second where products of matrices are rounded, to 8 or 11 bits."""

_verdicts: "WeakKeyDictionary[object, dict[tuple, bool]]" = WeakKeyDictionary()
"""What was seen of each loss (a bound method's owner, a function), by shapes and modes."""


def compiled_slope(
    loss: Callable[..., Tensor],
    memory: Tensor,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    micro_batch: int | None,
) -> Tensor | None:
    """dL/dM at memory (B, m, d), compiled; differentiable where gradients are recorded.

    Args:
        loss: (memory, *inputs) -> (B,), of samples that do not see each other. It is traced: no side effects, no
            Python that depends on the values of tensors, and none of our closed-form functions, whose second derivative
            a trace loses (they stand aside by themselves).
        memory: (B, m, d).
        inputs: each (B, ...).
        parameters: the leaves that the comparison looks at beside the memory.
        micro_batch: samples that are worked on at a time; the last ones are filled up, to a power of two.
    Returns:
        (B, m, d), or `None` where the plain way has to be gone.
    """
    if _get_current_dispatch_mode() is not None:
        # What counts operations (FlopCounterMode) has to see them; the compiler would step aside in any case.
        return None
    size = power_of_two_at_most(micro_batch or len(memory))
    # The start of all samples is one tensor expanded; with other strides it would be compiled for itself.
    memory = memory.contiguous()
    pieces = []
    for first in range(0, len(memory), size):
        left = min(size, len(memory) - first)
        width = size if left == size else 1 << (left - 1).bit_length()
        # Rows are repeated to fill a piece, for there to be few shapes; what they give is left out again.
        rows = slice(first, first + left)
        if width > left:
            rows = first + torch.arange(width, device=memory.device) % left
        arguments = memory[rows], [one[rows] for one in inputs]
        if not _trusted(loss, *arguments, parameters):
            return None
        pieces.append(_call(loss, *arguments)[:left])
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def power_of_two_at_most(number: int) -> int:
    """The largest one that is not above a number of 1 or more."""
    return 1 << (number.bit_length() - 1)


def _slope(loss: Callable[..., Tensor], memory: Tensor, *inputs: Tensor) -> Tensor:
    return torch.func.grad(lambda memory: loss(memory, *inputs).sum())(memory)


# Without the compiler's own CUDA graphs: whole training steps are captured (captured.py), and this within them.
_compiled = torch.compile(_slope, fullgraph=True, dynamic=False)


def _call(loss: Callable[..., Tensor], memory: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    # The fused attention kernels have no second derivative.
    attention = sdpa_kernel(SDPBackend.MATH) if torch.is_grad_enabled() else nullcontext()
    # At every call: a memory without a gradient or another number of threads is compiled anew behind a shape that is
    # trusted, and the compiler's own limit of 8 would raise there.
    limits = torch._dynamo.config.patch(recompile_limit=1024, accumulated_recompile_limit=4096)
    with limits, attention:
        return _compiled(loss, memory, *inputs)


def _trusted(
    loss: Callable[..., Tensor], memory: Tensor, inputs: Sequence[Tensor], parameters: Sequence[Tensor]
) -> bool:
    owner = getattr(loss, "__self__", loss)
    seen = _verdicts.setdefault(owner, {})
    device = memory.device.type
    autocast, rounded = in_force(device)
    mode = getattr(loss, "__name__", ""), torch.is_grad_enabled(), getattr(owner, "training", None), autocast, rounded
    shapes = memory.shape, memory.dtype, memory.device, *((one.shape, one.dtype) for one in inputs)
    # What is frozen is compiled for itself.
    key = mode, shapes, tuple(one.requires_grad for one in parameters)
    if key not in seen:
        if not all(seen.values()):
            return False
        if len(seen) >= _SHAPES:
            # Python says it once.
            warnings.warn(f"WRITE is compiled for {_SHAPES} shapes, and goes the plain way for more.", stacklevel=2)
            return False
        fault = _fault(loss, memory, inputs, parameters, rounded)
        seen[key] = fault is None
        if fault:
            warnings.warn(f"WRITE is not compiled: {fault}. The plain steps are used.", stacklevel=2)
    return seen[key]


def _fault(
    loss: Callable[..., Tensor],
    memory: Tensor,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    rounded: bool,
) -> str | None:
    """What is wrong with the compiled function here, or `None`."""
    generator = torch.Generator(memory.device).manual_seed(0)
    cotangent = torch.randn(memory.shape, dtype=memory.dtype, device=memory.device, generator=generator)
    leaves = [one for one in parameters if one.is_leaf and one.requires_grad]
    second_order = torch.is_grad_enabled()

    def measured(slope: Slope) -> list[Tensor]:
        point = memory.detach().requires_grad_(second_order)
        value = slope(point, inputs)
        if not second_order:
            return [value]
        found = torch.autograd.grad(value, [point, *leaves], cotangent, allow_unused=True)
        zeros = (torch.zeros_like(one) for one in (point, *leaves))
        return [value.detach(), *(zero if one is None else one for one, zero in zip(found, zeros, strict=True))]

    def plain(point: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            leaf = point if second_order else point.detach().requires_grad_()
            return torch.autograd.grad(loss(leaf, *inputs).sum(), leaf, create_graph=second_order)[0]

    expected = measured(plain)
    tolerance = _ROUNDED if rounded else _TOLERANCE.get(memory.dtype, _ROUNDED)
    try:
        found = measured(lambda point, inputs: _call(loss, point, inputs))
        scale = max(float(one.norm()) for one in expected[1:]) if second_order else 0.0
        if not alike(found, expected, tolerance, scale):
            return "its gradient differs from that of the plain double backward"
    except Exception as error:  # noqa: BLE001 - whatever the compiler stumbles over, there is a way without it
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0][:200] if lines else 'no reason given'}".rstrip(".")
    return None

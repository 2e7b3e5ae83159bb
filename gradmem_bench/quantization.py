"""How the floating-point tensors of a state become fewer bytes, and numbers again.

A vector is what lies along a tensor's last dimension, n numbers: one memory vector, one head's key. It is stored as

    float32, bfloat16    n numbers, rounded to nearest             4 n, 2 n bytes
    int8                 a scale in bfloat16, and n bytes          2 + n bytes
    int4                 a scale in bfloat16, and n half bytes     2 + ceil(n / 2) bytes

with x ≈ scale · q, q = round(x / scale) within ±L, scale = bfloat16(max |x| / L) and L = 127 or 7. Since bfloat16
rounds a scale by at most 2⁻⁸ of it, no number is moved by more than (1 + 2⁻⁸) · max |x| / (2 L). A vector that holds
NaN or an infinity becomes NaN throughout.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gradmem_bench.config import StateDtype

_SCALE = torch.bfloat16
_LEVELS = {"int8": 127, "int4": 7}
_PER_BYTE = {"int8": 1, "int4": 2}
_FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def vector_bytes(size: int, dtype: StateDtype) -> int:
    """Bytes of one float32 vector of `size` numbers that is stored as `dtype`, its scale included."""
    if dtype in _FLOATS:
        return size * _FLOATS[dtype].itemsize
    return _SCALE.itemsize + -(-size // _PER_BYTE[dtype])


def encoding(tensor: Tensor, dtype: StateDtype) -> StateDtype | None:
    """What `tensor` is stored as where `dtype` is asked for; `None` is as it is: no floats, or no wider ones."""
    if not tensor.is_floating_point() or not tensor.numel():
        return None
    if dtype in _FLOATS and tensor.dtype.itemsize <= _FLOATS[dtype].itemsize:
        return None
    return dtype


def _vectors(shape: tuple[int, ...]) -> tuple[int, int]:
    """How many vectors a tensor of `shape` holds, and the size of each."""
    return torch.Size(shape[:-1]).numel(), shape[-1] if shape else 1


def encoded_bytes(shape: tuple[int, ...], dtype: StateDtype) -> int:
    """What `encode` makes of a tensor of `shape`, in bytes."""
    count, size = _vectors(shape)
    return count * vector_bytes(size, dtype)


def encode(tensor: Tensor, dtype: StateDtype) -> Tensor:
    """The bytes of a floating-point tensor (..., n): uint8, first all scales, then all numbers, in their order."""
    if dtype in _FLOATS:
        return tensor.to(_FLOATS[dtype]).reshape(-1).view(torch.uint8)
    vectors = tensor.reshape(_vectors(tuple(tensor.shape))).float()
    levels = _LEVELS[dtype]
    scales = (vectors.abs().amax(dim=1, keepdim=True) / levels).to(_SCALE)
    # Without a scale that is a positive number there is nothing to divide by.
    whole = torch.where(scales.isfinite() & (scales > 0), vectors / scales.float(), 0).round()
    numbers = whole.clamp(-levels, levels).to(torch.int8)
    if dtype == "int4":
        nibbles = F.pad(numbers + 8, (0, numbers.shape[1] % 2)).view(torch.uint8)
        numbers = nibbles[:, 0::2] | nibbles[:, 1::2] << 4
    return torch.cat([scales.reshape(-1).view(torch.uint8), numbers.reshape(-1).view(torch.uint8)])


def decode(data: Tensor, dtype: StateDtype, shape: tuple[int, ...]) -> Tensor:
    """The tensor of `shape` whose bytes (uint8) `encode` made, in float32."""
    if dtype in _FLOATS:
        return data.view(_FLOATS[dtype]).reshape(shape).float()
    count, size = _vectors(shape)
    scales = data[: count * _SCALE.itemsize].view(_SCALE).reshape(count, 1).float()
    numbers = data[count * _SCALE.itemsize :].reshape(count, -1)
    if dtype == "int4":
        nibbles = torch.stack([numbers & 15, numbers >> 4], dim=2).reshape(count, -1)[:, :size]
        numbers = nibbles.view(torch.int8) - 8
    return (scales * numbers.view(torch.int8).float()).reshape(shape)

"""MemoryState: what crosses from WRITE to READ, and how many bytes it is.

One context's state is a record of named tensors. In memory the states of B contexts travel together,
padded to one shape; as bytes each stands alone, without its padding, so that `nbytes` is what storing
or sending that one state would cost. Floating-point tensors may be stored narrower than they are; what is
read back has its dtype again, and the precision that crossed.

    bytes of one state:  4 bytes header length | JSON header (names, dtypes, shapes, encodings) | payload
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gradmem_bench.config import StateDtype
from gradmem_bench.errors import UserError
from gradmem_bench.quantization import decode, encode, encoded_bytes, encoding

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class MemoryState:
    """The states of B contexts.

    Args:
        tensors: name -> (B, ...). A *ragged* tensor's dimension 1 runs over positions of which only
            the first `lengths[b]` belong to context b; the rest is padding and never serialised.
        ragged: the names of the ragged tensors.
        lengths: (B,), int64; needed when anything is ragged.
    """

    tensors: Mapping[str, Tensor]
    ragged: frozenset[str] = field(default_factory=frozenset)
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        if self.ragged and self.lengths is None:
            raise ValueError("a state with ragged tensors needs their lengths")
        if not set(self.ragged) <= set(self.tensors):
            raise ValueError(f"ragged names {sorted(self.ragged)} are not all among {sorted(self.tensors)}")

    @classmethod
    def from_texts(cls, texts: Sequence[str]) -> "MemoryState":
        """States that are text: the UTF-8 bytes themselves."""
        rows = [torch.tensor(list(text.encode()), dtype=torch.uint8) for text in texts]
        return cls(
            {"text": pad_sequence(rows, batch_first=True)},
            frozenset({"text"}),
            torch.tensor([len(row) for row in rows]),
        )

    def texts(self) -> list[str]:
        """The texts of a state made by `from_texts`."""
        rows = self.tensors["text"].cpu()
        return [bytes(row[:length].tolist()).decode() for row, length in zip(rows, self.lengths.tolist(), strict=True)]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values()))) if self.tensors else 0

    @property
    def kind(self) -> dict[str, tuple]:
        """What all states of one method share: each tensor's dtype, whether it is ragged, and its shape, the batch and
        how long a ragged one is apart."""
        return {
            name: (tensor.dtype, name in self.ragged, tensor.shape[2 if name in self.ragged else 1 :])
            for name, tensor in self.tensors.items()
        }

    def _one(self, name: str, row: int) -> Tensor:
        tensor = self.tensors[name][row]
        return tensor[: int(self.lengths[row])] if name in self.ragged else tensor

    def nbytes(self, dtype: StateDtype = "float32") -> list[int]:
        """State bytes per context: the payload as `to_bytes` serialises it, without the header (design law 2)."""
        return [sum(_size(self._one(name, row), dtype) for name in self.tensors) for row in range(len(self))]

    def to_bytes(self, dtype: StateDtype = "float32") -> list[bytes]:
        """One byte string per context.

        Args:
            dtype: what floating-point tensors are stored as, if it is narrower than their own.
        """
        names = sorted(self.tensors)
        rows = []
        for row in range(len(self)):
            parts = {name: self._one(name, row).detach().cpu().contiguous() for name in names}
            header, payload = {}, []
            for name, part in parts.items():
                stored = encoding(part, dtype)
                header[name] = [
                    _NAMES[part.dtype],
                    list(part.shape),
                    name in self.ragged,
                    *([stored] if stored else []),
                ]
                data = encode(part, stored) if stored else part.reshape(-1).view(torch.uint8)
                payload.append(data.numpy().tobytes())
            text = json.dumps(header, separators=(",", ":")).encode()
            rows.append(len(text).to_bytes(4, "little") + text + b"".join(payload))
        return rows

    @classmethod
    def from_bytes(cls, rows: Sequence[bytes], device: torch.device | str = "cpu") -> "MemoryState":
        """The states that `to_bytes` wrote, padded together again; raises UserError on damaged bytes."""
        contexts = [_parse(row) for row in rows]
        if not contexts or any(set(context) != set(contexts[0]) for context in contexts):
            raise UserError("These states were not written by one method: their tensors have different names.")
        tensors, lengths, ragged = {}, None, set()
        for name, (first, is_ragged) in contexts[0].items():
            parts = [context[name][0] for context in contexts]
            if is_ragged:
                ragged.add(name)
                tensors[name] = pad_sequence(parts, batch_first=True).to(device)
                lengths = torch.tensor([len(part) for part in parts])
            elif any(part.shape != first.shape for part in parts):
                raise UserError(f"These states were not written by one method: '{name}' has different shapes.")
            else:
                tensors[name] = torch.stack(parts).to(device)
        return cls(tensors, frozenset(ragged), lengths)


def _size(part: Tensor, dtype: StateDtype) -> int:
    stored = encoding(part, dtype)
    return encoded_bytes(tuple(part.shape), stored) if stored else part.nbytes


def _parse(data: bytes) -> dict[str, tuple[Tensor, bool]]:
    try:
        size = int.from_bytes(data[:4], "little")
        header = json.loads(data[4 : 4 + size])
        offset, parts = 4 + size, {}
        for name, (dtype_name, shape, is_ragged, *stored) in header.items():
            dtype = _DTYPES[dtype_name]
            count = torch.Size(shape).numel()
            end = offset + (encoded_bytes(tuple(shape), *stored) if stored else count * dtype.itemsize)
            if end > len(data):
                raise ValueError("the payload is shorter than its header says")
            # bytearray: torch wants memory that it may write to
            held = bytearray(data[offset:end])
            if stored:
                part = decode(torch.frombuffer(held, dtype=torch.uint8), *stored, tuple(shape)).to(dtype)
            else:
                part = torch.frombuffer(held, dtype=dtype) if count else torch.empty(0, dtype=dtype)
            parts[name] = (part.reshape(shape), is_ragged)
            offset = end
        if offset != len(data):
            raise ValueError("the payload is longer than its header says")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"These bytes are not a memory state, or are damaged: {error}.") from None
    return parts

"""Tokens and batches: what a method is given, in tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Token sequences of different lengths, padded on the right.

    Args:
        ids: (B, T), int64; padding holds any valid id.
        mask: (B, T), bool; true where a token stands.
    """

    ids: Tensor
    mask: Tensor

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> "Tokens":
        """Pads `rows` with id 0 up to the longest."""
        lengths = torch.tensor([len(row) for row in rows])
        width = int(lengths.max()) if len(rows) else 0
        ids = torch.tensor([[*row, *([0] * (width - len(row)))] for row in rows], dtype=torch.int64).reshape(
            len(rows), width
        )
        mask = torch.arange(width)[None] < lengths[:, None]
        return cls(ids.to(device), mask.to(device))

    @classmethod
    def repeated(cls, row: Sequence[int], count: int, device: torch.device | str) -> "Tokens":
        """One sequence `count` times, made on the device, which waits for nothing."""
        none = torch.empty((count, 0), dtype=torch.int64, device=device)
        ids = torch.cat([none, *(none.new_full((count, 1), one) for one in row)], dim=1)
        return cls(ids, torch.ones_like(ids, dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Tensor:
        """(B,), int64."""
        return self.mask.sum(dim=1)

    def rows(self) -> list[list[int]]:
        """The sequences without their padding."""
        return [row[:length] for row, length in zip(self.ids.tolist(), self.lengths.tolist(), strict=True)]

    def to(self, device: torch.device | str) -> "Tokens":
        return Tokens(self.ids.to(device), self.mask.to(device))

    def select(self, rows: Tensor | slice) -> "Tokens":
        """The sequences `rows` (B',), without columns that are padding in all of them; on a GPU with them, for few
        shapes to come and nothing to be waited for."""
        ids, mask = self.ids[rows], self.mask[rows]
        width = ids.shape[1] if ids.is_cuda else int(mask.sum(dim=1).max()) if len(mask) else 0
        return Tokens(ids[:, :width], mask[:, :width])

    def without_last(self, column: bool = False) -> "Tokens":
        """Each sequence without its last token; with `column`, as wide as before."""
        ids, mask = self.ids[:, :-1], self.mask[:, 1:]
        return Tokens(self.ids, F.pad(mask, (0, 1))) if column else Tokens(ids, mask)

    def evened(self, multiple: int) -> "Tokens":
        """Sequences of different lengths with so much more padding that their width is a multiple; those of one length
        as they are."""
        more = 0 if bool(self.mask.all()) else -self.ids.shape[1] % multiple
        return Tokens(F.pad(self.ids, (0, more)), F.pad(self.mask, (0, more)))

    def then(self, other: "Tokens") -> "Tokens":
        """Each sequence followed by `other`'s of the same row, padded on the right again."""
        ids = torch.cat([self.ids, other.ids], dim=1)
        mask = torch.cat([self.mask, other.mask], dim=1)
        # Valid tokens first, each keeping its place among them.
        order = torch.argsort(~mask, dim=1, stable=True)
        ids, mask = ids.gather(1, order), mask.gather(1, order)
        # On a GPU a few columns of padding cost less than to wait for their number, which a CUDA graph must not.
        width = int(mask.sum(dim=1).max()) if len(mask) and ids.device.type == "cpu" else ids.shape[1]
        return Tokens(ids[:, :width], mask[:, :width])


@dataclass(frozen=True)
class Batch:
    """B contexts and the R queries asked of them.

    Args:
        contexts: (B, T).
        queries: (R, q).
        targets: (R, t): the first accepted answer and the end-of-text token.
        context_of: (R,), int64: which of the B contexts each query is about.
    """

    contexts: Tokens
    queries: Tokens
    targets: Tokens
    context_of: Tensor

    def __len__(self) -> int:
        return len(self.contexts)

    def to(self, device: torch.device | str) -> "Batch":
        return Batch.from_tensors(*(tensor.to(device) for tensor in self.tensors()))

    def evened(self, multiple: int) -> "Batch":
        """The batch with each of its sides `evened`."""
        sides = (one.evened(multiple) for one in (self.contexts, self.queries, self.targets))
        return Batch(*sides, self.context_of)

    def tensors(self) -> list[Tensor]:
        """All that it is made of, in the order of `from_tensors`."""
        sides = (self.contexts, self.queries, self.targets)
        return [*(tensor for tokens in sides for tensor in (tokens.ids, tokens.mask)), self.context_of]

    @classmethod
    def from_tensors(cls, *tensors: Tensor) -> "Batch":
        """The batch that `tensors` took apart."""
        *sides, context_of = tensors
        return cls(Tokens(*sides[0:2]), Tokens(*sides[2:4]), Tokens(*sides[4:6]), context_of)

    def select(self, start: int, stop: int) -> "Batch":
        """The contexts `start` to `stop` with all their queries."""
        asked = (self.context_of >= start) & (self.context_of < stop)
        return Batch(
            self.contexts.select(slice(start, stop)),
            self.queries.select(asked),
            self.targets.select(asked),
            self.context_of[asked] - start,
        )

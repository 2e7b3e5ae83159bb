"""What stands before the query at READ: embedding vectors, a KV cache, or the state of a recurrent model."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Cache = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of each layer, each (B, kv_heads, P, head_dim); of a recurrent backbone a `recurrence.State`."""


class LayerMemory(Protocol):
    """A memory that each layer reads for itself."""

    def read(self, layer: int, hidden: Tensor) -> Tensor:
        """What is added to the input of a layer, (B, T, d) -> (B, T, d)."""

    def select(self, rows: Tensor) -> "LayerMemory":
        """The memories of the contexts `rows` (R,)."""


@dataclass(frozen=True)
class Prefix:
    """What stands before the query, for B contexts: either `embeddings` or a `cache`.

    Args:
        mask: (B, P), bool; false where a row is shorter than the longest. A recurrent state has no positions: P is 0.
        embeddings: (B, P, d), in the space of the backbone's input embeddings.
        cache: the keys and values, or the recurrent state, that running the prefix would have produced.
        layer_memory: read by every layer for each position that is run, those of `embeddings` among them.
        last: (B, d), the last hidden state behind a cache, which predicts the first token of all; `None` where the
            cache alone is known, and that token has nothing before it.
        skipped: (B,), int64, positions that were run and are not in the cache, as of one with entries thrown away: what
            follows stands that much further on. `None` is none. What is in a cache has been rotated, or given its
            position, when it was run.
    """

    mask: Tensor
    embeddings: Tensor | None = None
    cache: Cache | None = None
    layer_memory: LayerMemory | None = None
    last: Tensor | None = None
    skipped: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.embeddings is None) == (self.cache is None):
            raise ValueError("a prefix is either embeddings or a cache")
        if self.skipped is not None and self.cache is None:
            raise ValueError("what is not in a cache can only have been left out of one")

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def positions(self) -> Tensor:
        """(B,), int64: READ positions of each context."""
        return self.mask.sum(dim=1)

    def select(self, rows: Tensor) -> "Prefix":
        """The prefixes `rows` (R,), repeated where a context has several queries."""
        return Prefix(
            self.mask[rows],
            None if self.embeddings is None else self.embeddings[rows],
            None if self.cache is None else tuple((keys[rows], values[rows]) for keys, values in self.cache),
            None if self.layer_memory is None else self.layer_memory.select(rows),
            None if self.last is None else self.last[rows],
            None if self.skipped is None else self.skipped[rows],
        )

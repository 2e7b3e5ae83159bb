"""Text as memory: as much of the context as fits the budget, kept as text and read again for every query."""

from bisect import bisect_right

from pydantic import Field

from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Tokens
from gradmem_bench.config import Budget, StrictModel
from gradmem_bench.errors import UserError
from gradmem_bench.methods.base import Footprint, MemoryMethod
from gradmem_bench.prefix import Prefix
from gradmem_bench.state import MemoryState


class TruncatedTextParameters(StrictModel):
    """How much text is kept; `None` keeps all of it."""

    max_bytes: int | None = Field(default=None, ge=0)
    """UTF-8 bytes."""
    max_tokens: int | None = Field(default=None, ge=0)
    """Tokens of the backbone, each one position at READ."""


class TruncatedText(MemoryMethod):
    """The beginning of the context. Without a bound it is all of it, and answers like the full KV cache."""

    Parameters = TruncatedTextParameters
    settings: TruncatedTextParameters

    def write(self, contexts: Tokens) -> MemoryState:
        return MemoryState.from_texts([self._kept(ids) for ids in contexts.rows()])

    def _kept(self, ids: list[int]) -> str:
        """The longest beginning, in whole tokens, within both bounds."""
        max_bytes, max_tokens = self.settings.max_bytes, self.settings.max_tokens

        def text(count: int) -> str:
            # A token may end inside a character, which decodes to a replacement character.
            return self.backbone.decode(ids[:count]).rstrip("\ufffd")

        def exceeds(count: int) -> bool:
            kept = text(count)
            if max_bytes is not None and len(kept.encode()) > max_bytes:
                return True
            # Text cut between two tokens may be split into more of them when it is read again.
            return max_tokens is not None and len(self.backbone.encode_contexts([kept])[0]) > max_tokens

        # Without any text there are still the ids that the tokenizer begins with, whatever the bound.
        return text(max(0, bisect_right(range(len(ids) + 1), False, key=exceeds) - 1))

    def read(self, state: MemoryState) -> Prefix:
        rows = self.backbone.encode_contexts(state.texts())
        tokens = Tokens.from_lists(rows, self.backbone.device)
        return Prefix(tokens.mask, embeddings=self.backbone.embed(tokens.ids))

    @classmethod
    def footprint(
        cls, parameters: TruncatedTextParameters, backbone: Backbone, context_tokens: int, context_bytes: int
    ) -> Footprint:
        start = len(backbone.start_ids)
        size = _tighter(context_bytes, parameters.max_bytes)
        tokens = _tighter(context_tokens, parameters.max_tokens)
        if parameters.max_bytes is not None:
            # A token of the text has at least one byte of it, but for the mark of a word's beginning.
            tokens = min(tokens, start + 1 + parameters.max_bytes)
        return Footprint(size, max(tokens, start), 0, vectors=())

    @classmethod
    def fit(cls, parameters: TruncatedTextParameters, budget: Budget, backbone: Backbone) -> TruncatedTextParameters:
        start = len(backbone.start_ids)
        if budget.positions is not None and budget.positions < start:
            raise UserError(f"A budget of {budget} holds no text: every text begins with {start} tokens of its own.")
        return TruncatedTextParameters(
            max_bytes=_tighter(parameters.max_bytes, budget.bytes),
            max_tokens=_tighter(parameters.max_tokens, budget.positions),
        )


def _tighter(mine: int | None, bound: int | None) -> int | None:
    return min((value for value in (mine, bound) if value is not None), default=None)

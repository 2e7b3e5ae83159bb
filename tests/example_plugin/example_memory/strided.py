"""Every n-th token of the context, kept as its embedding."""

import torch
from pydantic import Field

from gradmem_bench.config import StrictModel
from gradmem_bench.errors import UserError
from gradmem_bench.methods.base import Footprint, MemoryMethod
from gradmem_bench.prefix import Prefix
from gradmem_bench.state import MemoryState


class StridedParameters(StrictModel):
    stride: int = Field(default=2, ge=1)
    """n: tokens 0, n, 2n, ... are kept."""
    max_tokens: int = Field(default=64, ge=1)
    """The most that are kept, the first ones."""


class Strided(MemoryMethod):
    """A state whose size depends on the context: the padding of shorter ones is declared by `lengths`."""

    Parameters = StridedParameters

    def write(self, contexts):
        kept = slice(None, self.settings.stride * self.settings.max_tokens, self.settings.stride)
        embeddings = self.backbone.embed(contexts.ids[:, kept])
        return MemoryState({"tokens": embeddings}, frozenset({"tokens"}), contexts.mask[:, kept].sum(dim=1))

    def read(self, state):
        embeddings = state.tensors["tokens"]
        place = torch.arange(embeddings.shape[1], device=embeddings.device)
        return Prefix(place < state.lengths.to(embeddings.device)[:, None], embeddings=embeddings)

    @classmethod
    def footprint(cls, parameters, backbone, context_tokens, context_bytes):
        kept = min(parameters.max_tokens, -(-context_tokens // parameters.stride))
        return Footprint(kept * 4 * backbone.width, kept, 0)

    @classmethod
    def fit(cls, parameters, budget, backbone):
        bounds = [parameters.max_tokens] if budget.positions is budget.bytes is None else []
        bounds += [] if budget.positions is None else [budget.positions]
        bounds += [] if budget.bytes is None else [budget.bytes // (4 * backbone.width)]
        if min(bounds) < 1:
            raise UserError(f"A budget of {budget} holds no embedding of width {backbone.width}.")
        return parameters.model_copy(update={"max_tokens": min(bounds)})

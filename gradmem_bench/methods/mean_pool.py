"""Mean pooling: the context is cut into m segments, and the memory is the mean embedding of each."""

import torch
from pydantic import Field

from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Tokens
from gradmem_bench.config import Budget, StrictModel
from gradmem_bench.methods.base import Footprint, MemoryMethod
from gradmem_bench.methods.vectors import fit_vectors, vectors_footprint, vectors_prefix
from gradmem_bench.prefix import Prefix
from gradmem_bench.state import MemoryState


class MeanPoolParameters(StrictModel):
    """What mean pooling can be set to."""

    memory_vectors: int = Field(default=8, ge=1)
    """m, the number of segments; of a context with fewer tokens some stay empty, and are zero."""


class MeanPool(MemoryMethod):
    """m averages of the context's input embeddings. WRITE runs nothing; READ is all that training changes, with the
    embeddings themselves."""

    Parameters = MeanPoolParameters
    recordable = True
    settings: MeanPoolParameters

    def write(self, contexts: Tokens) -> MemoryState:
        embeddings = self.backbone.embed(contexts.ids)  # (B, T, d)
        m = self.settings.memory_vectors
        place = torch.arange(contexts.ids.shape[1], device=embeddings.device)
        segment = place * m // contexts.lengths.clamp(min=1)[:, None]  # (B, T)
        # Padding goes into one segment more, which is cut off.
        index = segment.masked_fill(~contexts.mask, m)[..., None].expand_as(embeddings)
        sums = embeddings.new_zeros(len(contexts), m + 1, self.backbone.width)
        means = sums.scatter_reduce(1, index, embeddings, "mean", include_self=False)
        return MemoryState({"memory": means[:, :m]})

    def read(self, state: MemoryState) -> Prefix:
        return vectors_prefix(state.tensors["memory"])

    @classmethod
    def footprint(
        cls, parameters: MeanPoolParameters, backbone: Backbone, context_tokens: int, context_bytes: int
    ) -> Footprint:
        return vectors_footprint(parameters.memory_vectors, backbone, write_positions=0)

    @classmethod
    def fit(cls, parameters: MeanPoolParameters, budget: Budget, backbone: Backbone) -> MeanPoolParameters:
        return fit_vectors(parameters, budget, backbone)

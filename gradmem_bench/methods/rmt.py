"""RMT: WRITE is a forward pass that ends in m memory tokens (Bulatov et al., NeurIPS 2022; GradMem's baseline)."""

import torch
from pydantic import Field
from torch import Tensor, nn

from gradmem_bench.backbone import Backbone, Prefix
from gradmem_bench.batch import Tokens
from gradmem_bench.config import Budget, StrictModel
from gradmem_bench.methods.base import Footprint, MemoryMethod
from gradmem_bench.methods.vectors import MemoryVectors, fit_vectors, vectors_footprint, vectors_prefix
from gradmem_bench.state import MemoryState


class RMTParameters(StrictModel):
    """What the recurrent memory transformer can be set to."""

    memory_vectors: int = Field(default=8, ge=1)
    """m, the number of memory tokens."""
    passes: int = Field(default=1, ge=1)
    """K, how often the context is run; the memory that one pass wrote stands at both ends of the next."""
    projection: bool = True
    """Whether a linear map, the identity at the start, stands between the last hidden states and the memory."""
    reconstruction_weight: float = Field(default=0.0, ge=0)
    """Weight of the context's reconstruction loss behind the memory in the outer loss."""
    memory_std: float | None = Field(default=None, gt=0)
    """Standard deviation of the learned vectors before training; `None` is that of the backbone's embeddings."""


class RMT(MemoryMethod):
    """[memory; context; memory] through the backbone: the last m hidden states are the state."""

    Parameters = RMTParameters
    settings: RMTParameters

    def __init__(self, backbone: Backbone, parameters: RMTParameters) -> None:
        super().__init__(backbone, parameters)
        self.memory = MemoryVectors(parameters.memory_vectors, backbone, parameters.memory_std)
        self.projection: nn.Linear | None = None
        if parameters.projection:
            self.projection = nn.Linear(backbone.width, backbone.width)
            nn.init.eye_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)

    def write(self, contexts: Tokens) -> MemoryState:
        memory = self.memory(len(contexts))
        for _ in range(self.settings.passes):
            memory = self._pass(memory, contexts)
        return MemoryState({"memory": memory})

    def _pass(self, memory: Tensor, contexts: Tokens) -> Tensor:
        embeddings = torch.cat([self.backbone.embed(contexts.ids), memory], dim=1)
        mask = torch.cat([contexts.mask, contexts.mask.new_ones(memory.shape[:2])], dim=1)
        states, _ = self.backbone.hidden(vectors_prefix(memory), embeddings, mask)
        written = states[:, -memory.shape[1] :]
        written = written if self.projection is None else self.projection(written)
        # In float32 under autocast too: that is what the footprint declares.
        return written.to(torch.promote_types(written.dtype, torch.float32))

    def read(self, state: MemoryState) -> Prefix:
        return vectors_prefix(state.tensors["memory"])

    def reconstruction_loss(self, state: MemoryState, contexts: Tokens) -> Tensor:
        return self.backbone.text_loss(self.read(state), contexts)

    @classmethod
    def footprint(
        cls, parameters: RMTParameters, backbone: Backbone, context_tokens: int, context_bytes: int
    ) -> Footprint:
        return vectors_footprint(parameters.memory_vectors, backbone, 2 * parameters.memory_vectors + context_tokens)

    @classmethod
    def fit(cls, parameters: RMTParameters, budget: Budget, backbone: Backbone) -> RMTParameters:
        return fit_vectors(parameters, budget, backbone)

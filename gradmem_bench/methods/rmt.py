"""RMT: WRITE is a forward pass that ends in m memory tokens (Bulatov et al., NeurIPS 2022; GradMem's baseline)."""

import copy
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Tokens
from gradmem_bench.config import Budget
from gradmem_bench.methods.base import Footprint, MemoryMethod
from gradmem_bench.methods.projection import linear_map
from gradmem_bench.methods.vectors import (
    ControlTokens,
    MemoryVectors,
    VectorParameters,
    fit_vectors,
    vectors_footprint,
    vectors_prefix,
)
from gradmem_bench.prefix import Prefix
from gradmem_bench.state import MemoryState


class RMTParameters(VectorParameters):
    """What the recurrent memory transformer can be set to. *Paper* is GradMem's, where it is the baseline."""

    passes: int = Field(default=1, ge=1)
    """K, how often the context is run; the memory that one pass wrote stands at both ends of the next. Paper: 1 to
    5."""
    projection: Literal["none", "write", "shared", "read_write"] = "shared"
    """A linear map, the identity at the start, through which memory goes into the backbone: none, one in WRITE alone,
    one for both WRITE and READ, or one for each. The vectors before it are what crosses. Paper: write, and read_write
    in its best key-value runs; its WRITE map starts at random."""
    residual: bool = False
    """Whether a pass after the first adds its (layer-normalised) memory to the one before it instead of replacing it.
    Paper: no."""
    write_head: bool = False
    """Whether the reconstruction loss has a head of its own, a copy of the backbone's at the start. Paper: yes in its
    best key-value runs."""
    reconstruction_weight: float = Field(default=0.0, ge=0)
    """Weight of the context's reconstruction loss behind the memory in the outer loss. Paper: 1 in its best key-value
    runs, on the mean over the memories of all passes; here on the last one's."""

    @model_validator(mode="after")
    def _says_nothing_in_vain(self) -> "RMTParameters":
        if self.residual and self.passes == 1:
            raise ValueError("residual has no meaning with passes 1: there is no memory before the first to add to")
        if self.write_head and not self.reconstruction_weight:
            raise ValueError("a write_head is trained by the reconstruction loss alone; set a reconstruction_weight")
        return self


class RMT(MemoryMethod):
    """[memory; context; memory] through the backbone: the last m hidden states are the state."""

    Parameters = RMTParameters
    recordable = True
    settings: RMTParameters

    def __init__(self, backbone: Backbone, parameters: RMTParameters) -> None:
        super().__init__(backbone, parameters)
        std = parameters.memory_std
        self.memory = MemoryVectors(parameters.memory_vectors, backbone, std)
        sides = parameters.write_control_before, parameters.write_control_after
        self.write_control = ControlTokens(*sides, backbone, std)
        sides = parameters.read_control_before, parameters.read_control_after
        self.read_control = ControlTokens(*sides, backbone, std)
        self.projection = None if parameters.projection == "none" else linear_map(backbone.width)
        self.read_projection = linear_map(backbone.width) if parameters.projection == "read_write" else None
        self.norm = nn.LayerNorm(backbone.width) if parameters.residual else None
        self.write_head: nn.Linear | None = None
        if parameters.write_head:
            self.write_head = copy.deepcopy(backbone.head)
            # Untied from the input embeddings.
            self.write_head.weight = nn.Parameter(backbone.head.weight.detach().clone())

    def write(self, contexts: Tokens) -> MemoryState:
        memory = self._pass(self.memory(len(contexts)), contexts)
        for _ in range(1, self.settings.passes):
            written = self._pass(memory, contexts)
            memory = written if self.norm is None else memory + self.norm(written)
        return MemoryState({"memory": memory})

    def blank(self, count: int) -> MemoryState:
        return MemoryState({"memory": self.memory(count)})

    def _pass(self, memory: Tensor, contexts: Tokens) -> Tensor:
        count = memory.shape[1]
        memory = memory if self.projection is None else self.projection(memory)
        # At the end as at the beginning, the memory stands behind the tokens that open WRITE.
        behind = self.write_control.opened(memory)
        embeddings = torch.cat([self.backbone.embed(contexts.ids), behind], dim=1)
        mask = torch.cat([contexts.mask, contexts.mask.new_ones(behind.shape[:2])], dim=1)
        states, _ = self.backbone.hidden(vectors_prefix(self.write_control(memory)), embeddings, mask)
        written = states[:, -count:]
        # In float32 under autocast too: that is what the footprint declares.
        return written.to(torch.promote_types(written.dtype, torch.float32))

    def read(self, state: MemoryState) -> Prefix:
        memory = state.tensors["memory"]
        projection = self.projection if self.settings.projection == "shared" else self.read_projection
        return vectors_prefix(self.read_control(memory if projection is None else projection(memory)))

    def reconstruction_losses(self, state: MemoryState, contexts: Tokens) -> Tensor:
        """What the context costs in one more pass of WRITE."""
        memory = state.tensors["memory"]
        memory = memory if self.projection is None else self.projection(memory)
        return self.backbone.text_losses(vectors_prefix(self.write_control(memory)), contexts, self.write_head)

    @classmethod
    def footprint(
        cls, parameters: RMTParameters, backbone: Backbone, context_tokens: int, context_bytes: int
    ) -> Footprint:
        control = parameters.write_control + parameters.write_control_before
        positions = 2 * parameters.memory_vectors + control + context_tokens
        return vectors_footprint(parameters.memory_vectors, backbone, positions, parameters.read_control)

    @classmethod
    def fit(cls, parameters: RMTParameters, budget: Budget, backbone: Backbone) -> RMTParameters:
        return fit_vectors(parameters, budget, backbone, parameters.read_control)

"""What the methods share whose state is m vectors of the backbone's width: their start, their cost, their budget."""

from typing import TypeVar

import torch
from torch import Tensor, nn

from gradmem_bench.backbone import Backbone, Prefix
from gradmem_bench.config import Budget, StrictModel, format_bytes
from gradmem_bench.errors import UserError
from gradmem_bench.methods.base import Footprint
from gradmem_bench.quantization import vector_bytes

Parameters = TypeVar("Parameters", bound=StrictModel)


class MemoryVectors(nn.Module):
    """m learned vectors of the backbone's width, the same at the start of every WRITE.

    Args:
        std: of their first values; `None` takes that of the input embeddings, among which they will stand.
    """

    def __init__(self, count: int, backbone: Backbone, std: float | None) -> None:
        super().__init__()
        embeddings = backbone.model.get_input_embeddings().weight
        scale = embeddings.detach().std() if std is None else std
        self.vectors = nn.Parameter(torch.randn(count, backbone.width) * scale)

    def forward(self, batch: int) -> Tensor:
        """(batch, m, d)."""
        return self.vectors.expand(batch, -1, -1)


def vectors_prefix(memory: Tensor) -> Prefix:
    """Memory (B, m, d) as what stands before the query."""
    return Prefix(torch.ones(memory.shape[:2], dtype=torch.bool, device=memory.device), embeddings=memory)


def vectors_footprint(count: int, backbone: Backbone, write_positions: int) -> Footprint:
    """m vectors of the backbone's width, each one position at READ."""
    size = backbone.width
    return Footprint(count * vector_bytes(size, "float32"), count, write_positions, vector_size=size)


def fit_vectors(parameters: Parameters, budget: Budget, backbone: Backbone) -> Parameters:
    """`parameters` with the most `memory_vectors` within `budget`; as they are where it has no bound.

    Raises:
        UserError: not one vector fits.
    """
    bounds = [] if budget.positions is None else [budget.positions]
    one = vector_bytes(backbone.width, budget.state_dtype)
    if budget.bytes is not None:
        bounds.append(budget.bytes // one)
    if not bounds:
        return parameters
    if min(bounds) < 1:
        raise UserError(
            f"A budget of {budget} holds no vector: one of width {backbone.width} in {budget.state_dtype} is "
            f"{format_bytes(one)}."
        )
    return parameters.model_copy(update={"memory_vectors": min(bounds)})

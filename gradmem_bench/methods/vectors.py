"""What the methods share whose state is m vectors of the backbone's width: their start, their cost, their budget."""

from typing import TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from gradmem_bench.backbone import Backbone
from gradmem_bench.config import Budget, StrictModel, format_bytes
from gradmem_bench.errors import UserError
from gradmem_bench.methods.base import Footprint
from gradmem_bench.prefix import Prefix
from gradmem_bench.quantization import vector_bytes

Parameters = TypeVar("Parameters", bound=StrictModel)


class VectorParameters(StrictModel):
    """What every memory of m learned vectors can be set to."""

    memory_vectors: int = Field(default=8, ge=1)
    """m, the number of memory vectors. GradMem's paper: 8 for key-value retrieval and bAbI, 32 for short SQuAD and
    language modelling, 1 or 2 for text reconstruction."""
    memory_std: float | None = Field(default=None, gt=0)
    """Standard deviation of all learned vectors before training; `None` is that of the backbone's embeddings. Its code:
    0.02."""
    write_control_before: int = Field(default=0, ge=0)
    """Learned control tokens that stand before the memory in WRITE. Its experiments have none of any kind; its code
    takes one number for all four."""
    write_control_after: int = Field(default=0, ge=0)
    """Learned control tokens between memory and context in WRITE."""
    read_control_before: int = Field(default=0, ge=0)
    """Learned control tokens before the memory at READ: positions of every query, but no bytes of any state."""
    read_control_after: int = Field(default=0, ge=0)
    """Learned control tokens between memory and query at READ: positions too, and no bytes."""

    @property
    def write_control(self) -> int:
        """Control tokens of WRITE, before and after."""
        return self.write_control_before + self.write_control_after

    @property
    def read_control(self) -> int:
        """Control tokens of READ, before and after."""
        return self.read_control_before + self.read_control_after


class MemoryVectors(nn.Module):
    """m learned vectors of the backbone's width, the same at the start of every WRITE.

    Args:
        std: of their first values; `None` takes that of the input embeddings, among which they will stand.
    """

    def __init__(self, count: int, backbone: Backbone, std: float | None) -> None:
        super().__init__()
        embeddings = backbone.model.get_input_embeddings().weight
        scale = embeddings.detach().std() if std is None else std
        self.vectors = nn.Parameter(torch.randn(count, backbone.width).to(embeddings.device) * scale)

    def forward(self, batch: int) -> Tensor:
        """(batch, m, d)."""
        return self.vectors.expand(batch, -1, -1)


class ControlTokens(nn.Module):
    """Learned vectors around the memory, by which a model can tell WRITE from READ.

    Args:
        before, after: how many stand on either side; none is a module without parameters.
    """

    def __init__(self, before: int, after: int, backbone: Backbone, std: float | None) -> None:
        super().__init__()
        self.before = MemoryVectors(before, backbone, std) if before else None
        self.after = MemoryVectors(after, backbone, std) if after else None

    def opened(self, memory: Tensor) -> Tensor:
        """Memory (B, m, d) behind the tokens before it, (B, before + m, d)."""
        return memory if self.before is None else torch.cat([self.before(len(memory)), memory], dim=1)

    def forward(self, memory: Tensor) -> Tensor:
        """Memory (B, m, d) between its control tokens, (B, before + m + after, d)."""
        opened = self.opened(memory)
        return opened if self.after is None else torch.cat([opened, self.after(len(memory))], dim=1)


def vectors_prefix(memory: Tensor) -> Prefix:
    """Memory (B, m, d) as what stands before the query."""
    return Prefix(torch.ones(memory.shape[:2], dtype=torch.bool, device=memory.device), embeddings=memory)


def vectors_footprint(count: int, backbone: Backbone, write_positions: int, read_control: int = 0) -> Footprint:
    """m vectors of the backbone's width, each one position at READ; control tokens are positions, and no state."""
    size = backbone.width
    stored = count * vector_bytes(size, "float32")
    return Footprint(stored, count + read_control, write_positions, vectors=((count, size),))


def fit_vectors(parameters: Parameters, budget: Budget, backbone: Backbone, read_control: int = 0) -> Parameters:
    """`parameters` with the most `memory_vectors` within `budget`; as they are where it has no bound.

    Raises:
        UserError: not one vector fits, beside the `read_control` positions that are taken already.
    """
    bounds = [] if budget.positions is None else [budget.positions - read_control]
    one = vector_bytes(backbone.width, budget.state_dtype)
    if budget.bytes is not None:
        bounds.append(budget.bytes // one)
    if not bounds:
        return parameters
    if min(bounds) < 1:
        taken = f", and {read_control} positions are control tokens" if read_control else ""
        raise UserError(
            f"A budget of {budget} holds no vector: one of width {backbone.width} in {budget.state_dtype} is "
            f"{format_bytes(one)}{taken}."
        )
    return parameters.model_copy(update={"memory_vectors": min(bounds)})

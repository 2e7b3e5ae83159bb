"""Linear maps of memory vectors: one for all samples, or fast weights of each sample's own.

A shared map P = (W, b) that stands before the backbone is a preconditioner: a step on M moves P(M) along W Wᵀ times the
gradient. Fast weights descend beside the vectors. They are then d + 1 more rows of width d in what descends, the
rows of W and b, so that a memory stays one tensor:

    (B, m + d + 1, d):  M (m rows) | W (d rows) | b (1 row)
"""

import torch
from torch import Tensor, nn


def linear_map(width: int) -> nn.Linear:
    """A learned map d -> d with a bias, the identity before training."""
    layer = nn.Linear(width, width)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def with_fast_weights(vectors: Tensor, start: nn.Linear) -> Tensor:
    """Vectors (B, m, d) followed by each sample's own copy of the map `start`, (B, m + d + 1, d)."""
    rows = torch.cat([start.weight, start.bias[None]])
    return torch.cat([vectors, rows.expand(len(vectors), -1, -1)], dim=1)


def projected_by_own(memory: Tensor) -> Tensor:
    """What `with_fast_weights` made, (B, m + d + 1, d), as the vectors W M + b, (B, m, d)."""
    width = memory.shape[2]
    vectors, weight, bias = memory.split([memory.shape[1] - width - 1, width, 1], dim=1)
    return vectors @ weight.transpose(1, 2) + bias

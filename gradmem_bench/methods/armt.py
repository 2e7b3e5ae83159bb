"""ARMT: each layer keeps what memory tokens tell it in an associative memory (Rodkin et al., 2024; GradMem's baseline).

Layer l adds to its input x, and writes of its output m at each memory token, with φ the features of a key (DPFP-3):

    read    x + A φ(Q x) / zᵀφ(Q x)
    write   A ← A + Σ β (V m - A φ(k) / zᵀφ(k)) φ(k)ᵀ,   z ← z + Σ γ φ(k),   k = K m, β = σ(b m), γ = 1 - zᵀφ(k)

A is (d, 6 d_mem) and z (6 d_mem). Behind one segment A = Σ β V m φ(k)ᵀ, so that the m keys and values say all of it: of
the two forms, the smaller crosses.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Tokens
from gradmem_bench.config import Budget, StrictModel, format_bytes
from gradmem_bench.errors import UserError
from gradmem_bench.methods.base import Footprint, MemoryMethod
from gradmem_bench.methods.vectors import MemoryVectors
from gradmem_bench.prefix import Prefix
from gradmem_bench.state import MemoryState

_SHIFTS = 3
_FEATURES = 2 * _SHIFTS
"""Features of a key for each of its dimensions."""
_EPSILON = 1e-5


class ARMTParameters(StrictModel):
    """What the associative recurrent memory transformer can be set to."""

    memory_vectors: int = Field(default=8, ge=1)
    """m, the number of memory tokens behind each segment; they do not cross."""
    memory_dimension: int = Field(default=64, ge=1)
    """d_mem, the dimension of keys; what a budget is filled by."""
    segment_tokens: int | None = Field(default=None, ge=1)
    """Context tokens in a segment; `None` is the whole context in one."""
    memory_std: float | None = Field(default=None, gt=0)
    """Standard deviation of the memory tokens before training; `None` is that of the backbone's embeddings."""


def key_features(keys: Tensor) -> Tensor:
    """DPFP-3 (Schlag et al., 2021) at unit length: (..., d_mem) -> (..., 6 d_mem), none of them negative."""
    signed = F.relu(torch.cat([keys, -keys], dim=-1))
    products = [signed * signed.roll(shift, dims=-1) for shift in range(1, _SHIFTS + 1)]
    return F.normalize(torch.cat(products, dim=-1), dim=-1)


@dataclass(frozen=True)
class Associations:
    """The associative memories of B contexts, n slots in each layer.

    Args:
        slots: (B, layers, n, 6 d_mem), the features that each slot answers to; `None` where it is one feature each.
        values: (B, layers, n, d).
        weights: (B, layers, n), what each slot adds to the normaliser.
        queries: (layers, d_mem, d), from a layer's input to what it asks for.
    """

    slots: Tensor | None
    values: Tensor
    weights: Tensor
    queries: Tensor

    def recall(self, features: Tensor, layer: int | slice) -> tuple[Tensor, Tensor]:
        """A φ / zᵀφ, (..., T, d), and zᵀφ, (..., T, 1), of features (..., T, 6 d_mem)."""
        asked = features if self.slots is None else features @ self.slots[:, layer].mT
        norm = asked @ self.weights[:, layer, :, None]
        return asked @ self.values[:, layer] / (norm + _EPSILON), norm

    def read(self, layer: int, hidden: Tensor) -> Tensor:
        return self.recall(key_features(hidden @ self.queries[layer].T), layer)[0]

    def select(self, rows: Tensor) -> "Associations":
        slots = None if self.slots is None else self.slots[rows]
        return Associations(slots, self.values[rows], self.weights[rows], self.queries)


class ARMT(MemoryMethod):
    """[segment; memory tokens] through the backbone, segment after segment; at READ the query's layers read them."""

    Parameters = ARMTParameters
    recordable = True
    settings: ARMTParameters
    needs = "attention"

    def __init__(self, backbone: Backbone, parameters: ARMTParameters) -> None:
        super().__init__(backbone, parameters)
        layers, d, d_mem = backbone.layers, backbone.width, parameters.memory_dimension
        self.memory = MemoryVectors(parameters.memory_vectors, backbone, parameters.memory_std)

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(layers, *shape).uniform_(-(d**-0.5), d**-0.5))

        self.queries, self.keys = drawn(d_mem, d), drawn(d_mem, d)
        self.gates, self.gate_bias = drawn(d), nn.Parameter(torch.zeros(layers))
        # At the start nothing is recalled, and the backbone is what it was.
        self.values = nn.Parameter(torch.zeros(layers, d, d))

    def write(self, contexts: Tokens) -> MemoryState:
        one_segment = self.settings.segment_tokens is None
        length = contexts.ids.shape[1]
        width = max(1, length) if one_segment else self.settings.segment_tokens
        memory: Associations | None = None
        for start in range(0, max(1, length), width):
            part = slice(start, start + width)
            outputs = self._outputs(Tokens(contexts.ids[:, part], contexts.mask[:, part]), memory)
            keys = torch.einsum("blmd,lkd->blmk", outputs, self.keys)
            values = torch.einsum("blmd,lvd->blmv", outputs, self.values)
            gates = torch.einsum("blmd,ld->blm", outputs, self.gates) + self.gate_bias[:, None]
            # In float32 under autocast too: that is what the footprint declares.
            wide = torch.promote_types(outputs.dtype, torch.float32)
            keys, values, gates = keys.to(wide), values.to(wide), gates.to(wide).sigmoid()[..., None]
            if one_segment and not _as_matrices(self.settings, self.backbone):
                return MemoryState({"keys": keys, "values": gates * values})
            # A row whose context has ended keeps what it has.
            goes_on = (contexts.lengths > start) | (start == 0)
            memory = self._updated(memory, key_features(keys), values, gates * goes_on[:, None, None, None], goes_on)
        return MemoryState({"matrices": memory.values, "normalizers": memory.weights})

    def _outputs(self, segment: Tokens, memory: Associations | None) -> Tensor:
        """(B, layers, m, d): what each layer makes of the memory tokens behind a segment."""
        tokens = self.memory(len(segment))
        embeddings = torch.cat([self.backbone.embed(segment.ids), tokens], dim=1)
        mask = torch.cat([segment.mask, segment.mask.new_ones(tokens.shape[:2])], dim=1)
        prefix = Prefix(mask[:, :0], embeddings=embeddings[:, :0], layer_memory=memory)
        outputs: list[Tensor] = []
        with self.backbone.at_layers(after=lambda layer, made: outputs.append(made[:, -tokens.shape[1] :])):
            self.backbone.hidden(prefix, embeddings, mask)
        return torch.stack(outputs, dim=1)

    def _updated(
        self, memory: Associations | None, features: Tensor, values: Tensor, gates: Tensor, goes_on: Tensor
    ) -> Associations:
        """The delta rule for all memory tokens of a segment at once, (B, layers, m, ...)."""
        if memory is None:
            zeros = features.new_zeros(len(features), features.shape[1], features.shape[3], values.shape[3])
            memory = Associations(None, zeros, zeros[..., 0], self.queries)
        known, norm = memory.recall(features, slice(None))
        # As the authors have it, a constant in the backward pass, and within its bounds whatever rounding does.
        news = (1 - norm).clamp(0, 1).detach() * goes_on[:, None, None, None]
        return Associations(
            None,
            memory.values + features.mT @ (gates * (values - known)),
            memory.weights + (news * features).sum(dim=2),
            self.queries,
        )

    def read(self, state: MemoryState) -> Prefix:
        tensors = state.tensors
        if "keys" in tensors:
            slots, values = key_features(tensors["keys"]), tensors["values"]
            memory = Associations(slots, values, values.new_ones(values.shape[:3]), self.queries)
        else:
            memory = Associations(None, tensors["matrices"], tensors["normalizers"], self.queries)
        return replace(self.backbone.start(len(state)), layer_memory=memory)

    @classmethod
    def footprint(
        cls, parameters: ARMTParameters, backbone: Backbone, context_tokens: int, context_bytes: int
    ) -> Footprint:
        layer = (_matrices if _as_matrices(parameters, backbone) else _slots)(parameters, backbone.width)
        vectors = tuple((backbone.layers * count, size) for count, size in layer)
        size = backbone.layers * _numbers(layer) * torch.float32.itemsize
        segment = min(context_tokens, parameters.segment_tokens or context_tokens)
        return Footprint(size, len(backbone.start_ids), segment + parameters.memory_vectors, vectors)

    @classmethod
    def fit(cls, parameters: ARMTParameters, budget: Budget, backbone: Backbone) -> ARMTParameters:
        """With the most dimensions of keys, up to those of the hidden states that they are made from."""
        if budget.bytes is None:
            return parameters

        def size(dimension: int) -> int:
            footprint = cls.footprint(_with_dimension(parameters, dimension), backbone, 0, 0)
            return footprint.stored(budget.state_dtype).state_bytes

        dimension = bisect_right(range(1, backbone.width + 1), budget.bytes, key=size)
        if dimension == 0:
            raise UserError(
                f"A budget of {budget} does not hold the associations of {parameters.memory_vectors} memory tokens in "
                f"{backbone.layers} layers, which take {format_bytes(size(1))} with keys of one dimension; fewer "
                "memory_vectors, without segment_tokens, take less."
            )
        return _with_dimension(parameters, dimension)


def _with_dimension(parameters: ARMTParameters, dimension: int) -> ARMTParameters:
    return parameters.model_copy(update={"memory_dimension": dimension})


def _matrices(parameters: ARMTParameters, width: int) -> tuple[tuple[int, int], ...]:
    """The vectors of one layer's A and z, (count, size)."""
    features = _FEATURES * parameters.memory_dimension
    return (features, width), (1, features)


def _slots(parameters: ARMTParameters, width: int) -> tuple[tuple[int, int], ...]:
    """The vectors of one layer's keys and values, (count, size), which are one segment's only."""
    return (parameters.memory_vectors, parameters.memory_dimension), (parameters.memory_vectors, width)


def _numbers(vectors: tuple[tuple[int, int], ...]) -> int:
    return sum(count * size for count, size in vectors)


def _as_matrices(parameters: ARMTParameters, backbone: Backbone) -> bool:
    matrices, slots = (_numbers(vectors(parameters, backbone.width)) for vectors in (_matrices, _slots))
    return parameters.segment_tokens is not None or matrices < slots

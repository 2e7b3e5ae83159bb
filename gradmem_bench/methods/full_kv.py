"""The full KV cache: what a language model keeps of a context when nothing is thrown away. The ceiling."""

import torch

from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Tokens
from gradmem_bench.config import Budget, StrictModel
from gradmem_bench.methods.base import Footprint, MemoryMethod
from gradmem_bench.prefix import Prefix
from gradmem_bench.state import MemoryState


class FullKV(MemoryMethod):
    """Every layer's keys and values of every context token; trained by fine-tuning on the task."""

    role = "ceiling"
    recordable = True
    needs = "attention"

    def write(self, contexts: Tokens) -> MemoryState:
        cache = self.backbone.prefill(contexts).cache
        # (B, P, layers, 2, kv_heads, head_dim): positions come first, so that padding can be left out of the bytes.
        stacked = torch.stack([torch.stack(layer, dim=1) for layer in cache], dim=1).permute(0, 4, 1, 2, 3, 5)
        return MemoryState({"cache": stacked}, frozenset({"cache"}), contexts.lengths)

    def read(self, state: MemoryState) -> Prefix:
        stacked = state.tensors["cache"]
        lengths = state.lengths.to(stacked.device)
        mask = torch.arange(stacked.shape[1], device=stacked.device) < lengths[:, None]
        layers = stacked.permute(0, 2, 3, 4, 1, 5).unbind(dim=1)
        return Prefix(mask, cache=tuple(tuple(layer.unbind(dim=1)) for layer in layers))

    @classmethod
    def footprint(
        cls, parameters: StrictModel, backbone: Backbone, context_tokens: int, context_bytes: int
    ) -> Footprint:
        size = context_tokens * backbone.kv_bytes_per_position
        heads = 2 * backbone.layers * backbone.kv_heads
        return Footprint(size, context_tokens, context_tokens, ((context_tokens * heads, backbone.head_dim),))

    @classmethod
    def fit(cls, parameters: StrictModel, budget: Budget, backbone: Backbone) -> StrictModel:
        return parameters

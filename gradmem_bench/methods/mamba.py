"""Mamba: WRITE runs the context through a recurrent language model; its state is what crosses (Gu and Dao, 2023)."""

import torch

from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Tokens
from gradmem_bench.config import Budget, StrictModel, format_bytes
from gradmem_bench.errors import UserError
from gradmem_bench.methods.base import Footprint, MemoryMethod
from gradmem_bench.prefix import Prefix
from gradmem_bench.recurrence import state_shapes
from gradmem_bench.state import MemoryState


class Mamba(MemoryMethod):
    """Of every layer the scan's state and the last inputs of the convolution, in float32; trained by fine-tuning.

    Its size does not depend on the context, and READ goes on from it without a position in between. Of the convolution
    a state needs one input less than its kernel is long: 19 numbers a channel where GradMem's table counts 20.
    """

    needs = "recurrence"
    recordable = True

    def write(self, contexts: Tokens) -> MemoryState:
        windows, scanned = zip(*self.backbone.prefill(contexts).cache, strict=True)
        # (B, layers, d_inner, kernel - 1) and (B, layers, d_inner, n)
        return MemoryState({"convolution": torch.stack(windows, dim=1), "scan": torch.stack(scanned, dim=1)})

    def read(self, state: MemoryState) -> Prefix:
        windows, scanned = state.tensors["convolution"].unbind(dim=1), state.tensors["scan"].unbind(dim=1)
        none = torch.ones(len(state), 0, dtype=torch.bool, device=windows[0].device)
        return Prefix(none, cache=tuple(zip(windows, scanned, strict=True)))

    @classmethod
    def footprint(
        cls, parameters: StrictModel, backbone: Backbone, context_tokens: int, context_bytes: int
    ) -> Footprint:
        shapes = state_shapes(backbone.model.base_model)
        vectors = tuple((backbone.layers * channels, width) for channels, width in shapes)
        size = sum(count * width for count, width in vectors) * torch.float32.itemsize
        return Footprint(size, 0, context_tokens, vectors)

    @classmethod
    def fit(cls, parameters: StrictModel, budget: Budget, backbone: Backbone) -> StrictModel:
        size = cls.footprint(parameters, backbone, 0, 0).stored(budget.state_dtype).state_bytes
        if budget.bytes is not None and size > budget.bytes:
            raise UserError(
                f"A budget of {budget} does not hold the state of {backbone.identity['name']}, which is always "
                f"{format_bytes(size)}; a Mamba of fewer layers, less width, or a smaller backbone.state_size has less."
            )
        return parameters

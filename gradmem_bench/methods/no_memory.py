"""No memory: the query alone. The floor."""

from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Tokens
from gradmem_bench.config import Budget, StrictModel
from gradmem_bench.methods.base import Footprint, MemoryMethod
from gradmem_bench.prefix import Prefix
from gradmem_bench.state import MemoryState


class NoMemory(MemoryMethod):
    """An empty state; what is answered from it is what the weights know without any context."""

    role = "floor"
    recordable = True

    def write(self, contexts: Tokens) -> MemoryState:
        return MemoryState.from_texts([""] * len(contexts))

    def read(self, state: MemoryState) -> Prefix:
        return self.backbone.start(len(state))

    @classmethod
    def footprint(
        cls, parameters: StrictModel, backbone: Backbone, context_tokens: int, context_bytes: int
    ) -> Footprint:
        return Footprint(0, len(backbone.start_ids), 0, vectors=())

    @classmethod
    def fit(cls, parameters: StrictModel, budget: Budget, backbone: Backbone) -> StrictModel:
        return parameters

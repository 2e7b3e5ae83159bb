"""The contract of a memory method: WRITE a context into a state, READ a prefix out of it.

    context ids --write--> MemoryState --to_bytes--> [bytes] --from_bytes--> MemoryState --read--> Prefix + query

A training-free method defines `write` and `read`. A trained one has parameters as well, and its loss is the
cross-entropy of the targets behind the prefix unless it says otherwise.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from torch import Tensor, nn

from gradmem_bench.backbone import Backbone, Prefix
from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.config import Budget, StateDtype, StrictModel
from gradmem_bench.quantization import vector_bytes
from gradmem_bench.state import MemoryState


@dataclass(frozen=True)
class Loss:
    """The outer loss of one batch.

    Args:
        total: (), what is differentiated.
        parts: named terms for the log, detached.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Footprint:
    """What one context of a given length costs at most, declared; the record has what was measured."""

    state_bytes: int
    """Serialised payload, with its floating-point tensors in float32."""
    read_positions: int
    """Positions that stand before the query."""
    write_positions: int
    """The longest sequence that WRITE runs through the backbone."""
    vector_size: int | None = None
    """Numbers along the last dimension of the state's float32 tensors, from which follows what a narrower state dtype
    stores; 0 for a state without any, to which a state dtype makes no difference; `None` where it is not declared."""

    def stored(self, dtype: StateDtype) -> "Footprint":
        """The same with the state's tensors stored as `dtype`."""
        if not self.vector_size:
            return self
        vectors = self.state_bytes // vector_bytes(self.vector_size, "float32")
        return replace(self, state_bytes=vectors * vector_bytes(self.vector_size, dtype))


class MemoryMethod(nn.Module, ABC):
    """A memory for a language model.

    Args:
        backbone: the causal LM; its weights belong to the method while it trains.
        parameters: this class's own `Parameters`.
    """

    Parameters: ClassVar[type[StrictModel]] = StrictModel
    role: ClassVar[Literal["method", "floor", "ceiling"]] = "method"
    """`floor` and `ceiling` are the table's references: no bound is asked of them."""
    evaluation_parameters: ClassVar[frozenset[str]] = frozenset()
    """Of `Parameters`, those of the evaluation alone: training does not see them, and runs that differ in nothing else
    are trained once."""

    def __init__(self, backbone: Backbone, parameters: StrictModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.settings = parameters

    @abstractmethod
    def write(self, contexts: Tokens) -> MemoryState:
        """The states of B contexts; row b may depend on context b alone. It never sees a query."""

    @abstractmethod
    def read(self, state: MemoryState) -> Prefix:
        """What stands before the query, from the state alone."""

    def loss(self, batch: Batch) -> Loss:
        """Write once, read for every query: the mean cross-entropy (nats) over the tokens of all targets.

        A method with the setting `reconstruction_weight` adds so much of its mean reconstruction loss.
        """
        state = self.write(batch.contexts)
        answer = self.backbone.target_loss(self.read(state).select(batch.context_of), batch.queries, batch.targets)
        weight = getattr(self.settings, "reconstruction_weight", 0.0)
        if not weight:
            return Loss(answer, {"answer": answer.detach()})
        rebuilt = self.reconstruction_loss(state, batch.contexts).mean()
        return Loss(answer + weight * rebuilt, {"answer": answer.detach(), "reconstruction": rebuilt.detach()})

    def forward(self, batch: Batch) -> Loss:
        """The loss, under the name that data parallelism wraps."""
        return self.loss(batch)

    def reconstruction_losses(self, state: MemoryState, contexts: Tokens) -> Tensor | None:
        """(B, T): nats of each context token given the state and those before it, 0 at padding; `None` for a method
        that does not rebuild its context."""
        return None

    def reconstruction_loss(self, state: MemoryState, contexts: Tokens) -> Tensor | None:
        """(B,): the mean of `reconstruction_losses` over each context's own tokens."""
        losses = self.reconstruction_losses(state, contexts)
        return None if losses is None else losses.sum(dim=1) / contexts.lengths.clamp(min=1)

    @classmethod
    def asked_of(cls, budget: Budget) -> Budget:
        """What of `budget` is asked of this method: of floor and ceiling, how the state is stored and no bound."""
        return budget if cls.role == "method" else Budget(state_dtype=budget.state_dtype)

    @classmethod
    @abstractmethod
    def footprint(
        cls, parameters: StrictModel, backbone: Backbone, context_tokens: int, context_bytes: int
    ) -> Footprint:
        """The declared cost for a context of so many tokens, and bytes of UTF-8; touches no weights."""

    @classmethod
    @abstractmethod
    def fit(cls, parameters: StrictModel, budget: Budget, backbone: Backbone) -> StrictModel:
        """`parameters` at the largest configuration within `budget`, its state stored as `budget.state_dtype`.

        Raises:
            UserError: none fits.
        """

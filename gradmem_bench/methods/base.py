"""The contract of a memory method: WRITE a context into a state, READ a prefix out of it.

    context ids --write--> MemoryState --to_bytes--> [bytes] --from_bytes--> MemoryState --read--> Prefix + query

A training-free method defines `write` and `read`. A trained one has parameters as well, and its loss is the
cross-entropy of the targets behind the prefix unless it says otherwise.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.config import Budget, StateDtype, StrictModel
from gradmem_bench.errors import UserError
from gradmem_bench.micro_batches import in_micro_batches
from gradmem_bench.prefix import Prefix
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
    vectors: tuple[tuple[int, int], ...] | None = None
    """How many float32 vectors of which size the state's tensors have along their last dimension, from which follows
    what a narrower state dtype stores: (count, size), ... It makes no difference to a state without any; `None` is not
    declared."""

    def stored(self, dtype: StateDtype) -> "Footprint":
        """The same with the state's tensors stored as `dtype`."""
        saved = (
            count * (vector_bytes(size, "float32") - vector_bytes(size, dtype)) for count, size in self.vectors or ()
        )
        return replace(self, state_bytes=self.state_bytes - sum(saved))


class MemoryMethod(nn.Module, ABC):
    """A memory for a language model.

    Args:
        backbone: the causal LM; its weights belong to the method while it trains.
        parameters: this class's own `Parameters`.
    """

    Parameters: ClassVar[type[StrictModel]] = StrictModel
    role: ClassVar[Literal["method", "floor", "ceiling"]] = "method"
    """`floor` and `ceiling` are the table's references: no bound is asked of them."""
    needs: ClassVar[Literal["attention", "recurrence"] | None] = None
    """What the backbone has to be made of; a method that needs recurrence is a language model itself."""
    recordable: ClassVar[bool] = False
    """Whether a GPU may run its loss as a CUDA graph: every run does the same to its batch and parameters, reads no
    value of a tensor, and makes no tensor on the CPU."""
    evaluation_parameters: ClassVar[frozenset[str]] = frozenset()
    """Of `Parameters`, those of the evaluation alone: training does not see them, and runs that differ in nothing else
    are trained once."""

    def __init__(self, backbone: Backbone, parameters: StrictModel) -> None:
        super().__init__()
        self.check(backbone)
        self.backbone = backbone
        self.settings = parameters

    @classmethod
    def check(cls, backbone: Backbone) -> None:
        """Raises UserError where the backbone is not what the method needs."""
        name = backbone.identity.get("name", "the backbone")
        if cls.needs == "attention" and backbone.recurrent:
            raise UserError(f"{cls.__name__} needs a backbone with attention, but {name} is recurrent.")
        if cls.needs == "recurrence" and not backbone.recurrent:
            raise UserError(
                f"{cls.__name__} is a recurrent language model itself, but {name} has attention; name one of its own, "
                "for example with --set mamba.backbone.name=mamba-4x128."
            )

    @abstractmethod
    def write(self, contexts: Tokens) -> MemoryState:
        """The states of B contexts; row b may depend on context b alone. It never sees a query."""

    @abstractmethod
    def read(self, state: MemoryState) -> Prefix:
        """What stands before the query, from the state alone."""

    def blank(self, count: int) -> MemoryState | None:
        """So many states as they are before WRITE puts anything of a context into them (K = 0), a control of every
        table; `None` for a method that begins with nothing."""
        return None

    def states(self, contexts: Tokens) -> MemoryState:
        """What `write` makes of B contexts; raises UserError where that is not B states."""
        state, name = self.write(contexts), type(self).__name__
        if not isinstance(state, MemoryState):
            raise UserError(f"{name}.write gave {type(state).__name__}, and no MemoryState.")
        for part, tensor in state.tensors.items():
            if len(tensor) != len(contexts):
                raise UserError(
                    f"{name}.write gave '{part}' of shape {tuple(tensor.shape)} for {len(contexts)} contexts, over "
                    "which the first dimension has to run."
                )
        return state

    def loss(self, batch: Batch, whole: Batch | None = None) -> Loss:
        """Write once, read for every query: the mean cross-entropy (nats) over the tokens of all targets.

        A method with the setting `reconstruction_weight` adds so much of its mean reconstruction loss.

        Args:
            whole: the batch that `batch` is a part of, on any device: it is over its target tokens and its contexts
                that the means run, so that the losses of its parts add up to its own. `None` is `batch` itself.
        """
        whole = whole or batch
        target_tokens = whole.targets.mask.sum().to(batch.contexts.ids.device)
        counts = target_tokens, torch.full_like(target_tokens, len(whole))
        size, on_gpu = self.micro_batch(batch.contexts) or len(batch), batch.contexts.ids.is_cuda
        if torch.is_grad_enabled() and (size < len(batch) or (on_gpu and self.recordable)):
            return Loss(*in_micro_batches(self, self._share, batch, counts, size, self.parameters()))
        return Loss(*self._share(batch, *counts))

    def _share(self, part: Batch, target_tokens: Tensor, contexts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What a part of a batch adds to the means over all of its target tokens, and of its contexts."""
        state = self.states(part.contexts)
        prefix = self.read(state)
        if len(part.queries) > len(part):
            prefix = self.backbone.run_once(prefix)
        mean = self.backbone.target_loss(prefix.select(part.context_of), part.queries, part.targets)
        answer = mean * part.targets.mask.sum() / target_tokens
        weight = getattr(self.settings, "reconstruction_weight", 0.0)
        if not weight:
            return answer, {"answer": answer.detach()}
        rebuilt = self.reconstruction_loss(state, part.contexts).sum() / contexts
        return answer + weight * rebuilt, {"answer": answer.detach(), "reconstruction": rebuilt.detach()}

    def micro_batch(self, contexts: Tokens) -> int | None:
        """Contexts whose graphs exist at a time while a loss is differentiated; `None` is all."""
        return None

    def forward(self, batch: Batch, whole: Batch | None = None) -> Loss:
        """The loss, under the name that data parallelism wraps."""
        return self.loss(batch) if whole is None else self.loss(batch, whole)

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

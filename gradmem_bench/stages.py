"""The parts of a training: what each draws its batches from, and what tells when it is over."""

from collections.abc import Callable, Sequence, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from gradmem_bench.batch import Batch
from gradmem_bench.config import TrainingConfig
from gradmem_bench.evaluation import Evaluator
from gradmem_bench.methods.base import MemoryMethod
from gradmem_bench.tasks.base import Document, Task
from gradmem_bench.tasks.batching import EncodedDocument, asked_of, encode_documents, training_batch

_STREAM = 1_000_000
"""A split with more documents is a generated stream."""

Autocast = Callable[[], AbstractContextManager]


def is_stream(examples: Sized) -> bool:
    """Whether they are generated as they are asked for, too many to be looked at one by one."""
    return len(examples) > _STREAM


class Stage(Protocol):
    """A part of a training: examples to draw batches from, and a score on others."""

    until: float | None
    """The validation score at which the next stage begins; `None` for the last one."""
    steps: int | None
    """The most steps to spend; `None` has no bound but the training's own."""
    lower_is_better: ClassVar[bool]
    """Whether the score is a loss."""

    @property
    def is_stream(self) -> bool:
        """Whether the examples are too many to be gone through twice, and come in an order that says nothing."""

    @property
    def scored(self) -> int:
        """Contexts, or sequences, that `score` looks at."""

    def __len__(self) -> int:
        """How many examples there are."""

    def length(self, index: int) -> int:
        """What example `index` costs, in any unit: a batch is made of like ones."""

    def batch(
        self, indices: Sequence[int], method: MemoryMethod, config: TrainingConfig, generator: np.random.Generator
    ) -> Batch:
        """The examples `indices`."""

    def score(self, method: MemoryMethod, config: TrainingConfig, autocast: Autocast) -> float:
        """What training selects by."""


@dataclass(frozen=True)
class TrainingStage:
    """A part of the curriculum with its documents at hand; the last one is the task itself."""

    lower_is_better: ClassVar[bool] = False
    task: Task
    documents: Sequence[Document]
    validation: list[EncodedDocument]
    max_context_tokens: int
    until: float | None
    """The validation score at which the next stage begins; `None` for the task itself."""
    steps: int | None
    """The most steps to spend; `None` has no bound but the training's own."""

    @property
    def is_stream(self) -> bool:
        return is_stream(self.documents)

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def scored(self) -> int:
        return len(self.validation)

    def length(self, index: int) -> int:
        return len(self.documents[index].context)

    def batch(
        self, indices: Sequence[int], method: MemoryMethod, config: TrainingConfig, generator: np.random.Generator
    ) -> Batch:
        if self.is_stream:
            # A generator makes a slice at once much faster than one document after another.
            step = indices[1] - indices[0] if len(indices) > 1 else 1
            documents = self.documents[indices[0] : indices[-1] + 1][::step]
        else:
            documents = [self.documents[index] for index in indices]
        asked = [asked_of(document, config.queries_per_context, generator) for document in documents]
        encoded = encode_documents(asked, self.task, method.backbone, self.max_context_tokens)
        return training_batch(encoded, method.backbone.end_id)

    def score(self, method: MemoryMethod, config: TrainingConfig, autocast: Autocast) -> float:
        """The share of queries whose target's tokens are all the most probable ones."""
        return Evaluator(method, self.task, config.batch_size, autocast=autocast).teacher_forced_score(self.validation)

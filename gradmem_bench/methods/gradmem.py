"""GradMem: WRITE is a few steps of gradient descent on m prefix vectors (Kuratov et al., ICML 2026)."""

import copy
from contextlib import nullcontext

from pydantic import Field
from torch import Tensor, nn

from gradmem_bench.attention import blockwise
from gradmem_bench.backbone import Backbone, Prefix
from gradmem_bench.batch import Tokens
from gradmem_bench.config import Budget, StrictModel
from gradmem_bench.descent import Descent, Engine, Order
from gradmem_bench.methods.base import Footprint, MemoryMethod
from gradmem_bench.methods.vectors import MemoryVectors, fit_vectors, vectors_footprint, vectors_prefix
from gradmem_bench.state import MemoryState

_LARGE = 1 << 25
"""Scores of one layer (128 MiB in float32) from which on attention is differentiated twice in blocks."""


class GradMemParameters(StrictModel):
    """What GradMem can be set to."""

    memory_vectors: int = Field(default=8, ge=1)
    """m, the number of prefix vectors."""
    inner_steps: int = Field(default=1, ge=0)
    """K, the steps of gradient descent in WRITE while training."""
    evaluation_inner_steps: int | None = Field(default=None, ge=0)
    """K at evaluation; `None` is the K of training."""
    inner_learning_rate: float = Field(default=0.4, gt=0)
    """The step size on the mean loss per context token; the paper's eq. 4 sums, so its step is this over |C|."""
    order: Order = "second"
    """`second` back-propagates through the inner steps in full, `first` takes their gradients as constants, and `none`
    does not train what WRITE depends on but through READ."""
    engine: Engine = "auto"
    """How the second order is computed (see gradmem_bench/descent.py); all engines give the same gradient."""
    write_head: bool = True
    """Whether WRITE predicts the context with its own head, a copy of the backbone's at the start."""
    reconstruction_weight: float = Field(default=0.0, ge=0)
    """Weight of the reconstruction loss at M_K in the outer loss; the paper's objective has none."""
    memory_std: float | None = Field(default=None, gt=0)
    """Standard deviation of the learned vectors before training; `None` is that of the backbone's embeddings."""


class GradMem(MemoryMethod):
    """m vectors, moved from a meta-learned start by K gradient steps on the context's reconstruction loss.

    WRITE: M_{k+1} = M_k - alpha · d/dM mean_i CE(t_i | [M_k; t_<i]), weights frozen (Algorithm 1). READ: M_K stands
    before the query. All weights and M_0 are trained by the outer loss, through the K steps.
    """

    Parameters = GradMemParameters
    settings: GradMemParameters

    def __init__(self, backbone: Backbone, parameters: GradMemParameters) -> None:
        super().__init__(backbone, parameters)
        self.memory = MemoryVectors(parameters.memory_vectors, backbone, parameters.memory_std)
        self.write_head: nn.Linear | None = None
        if parameters.write_head:
            self.write_head = copy.deepcopy(backbone.head)
            # The copy is untied from the input embeddings, as in the paper's experiments.
            self.write_head.weight = nn.Parameter(backbone.head.weight.detach().clone())

    def write_loss(self, memory: Tensor, contexts: Tokens) -> Tensor:
        """(B,): the inner loss of memory (B, m, d)."""
        return self.backbone.text_loss(vectors_prefix(memory), contexts, self.write_head)

    def write(self, contexts: Tokens) -> MemoryState:
        settings = self.settings
        steps, descent = settings.inner_steps, Descent(settings.order, engine=settings.engine)
        if not self.training:
            steps = steps if settings.evaluation_inner_steps is None else settings.evaluation_inner_steps
            descent = Descent("none")
        positions = settings.memory_vectors + contexts.ids.shape[1]
        scores = len(contexts) * self.backbone.attention_heads * positions**2
        large = descent.order == "second" and scores > _LARGE

        def loss(memory: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
            with blockwise(self.backbone.model) if large else nullcontext():
                return self.write_loss(memory, Tokens(ids, mask))

        memory = descent(
            loss,
            self.memory(len(contexts)),
            steps,
            settings.inner_learning_rate,
            inputs=(contexts.ids, contexts.mask),
            parameters=list(self.parameters()),
        )
        return MemoryState({"memory": memory})

    def read(self, state: MemoryState) -> Prefix:
        return vectors_prefix(state.tensors["memory"])

    def reconstruction_loss(self, state: MemoryState, contexts: Tokens) -> Tensor:
        """The WRITE loss at M_K; with a WRITE head of its own it is what was descended, not what the LM would say."""
        return self.write_loss(state.tensors["memory"], contexts)

    @classmethod
    def footprint(
        cls, parameters: GradMemParameters, backbone: Backbone, context_tokens: int, context_bytes: int
    ) -> Footprint:
        return vectors_footprint(parameters.memory_vectors, backbone, parameters.memory_vectors + context_tokens)

    @classmethod
    def fit(cls, parameters: GradMemParameters, budget: Budget, backbone: Backbone) -> GradMemParameters:
        return fit_vectors(parameters, budget, backbone)

"""GradMem: WRITE is a few steps of gradient descent on m prefix vectors (Kuratov et al., ICML 2026)."""

import copy
from contextlib import nullcontext
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gradmem_bench.attention import NAME as BLOCKWISE
from gradmem_bench.attention import blockwise
from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Tokens
from gradmem_bench.compiled import power_of_two_at_most
from gradmem_bench.config import Budget
from gradmem_bench.descent import Descent, Engine, Optimizer, Order
from gradmem_bench.errors import UserError
from gradmem_bench.methods.base import Footprint, MemoryMethod
from gradmem_bench.methods.lora import with_adapters
from gradmem_bench.methods.projection import linear_map, projected_by_own, with_fast_weights
from gradmem_bench.methods.vectors import (
    ControlTokens,
    MemoryVectors,
    VectorParameters,
    fit_vectors,
    vectors_footprint,
    vectors_prefix,
)
from gradmem_bench.prefix import Prefix
from gradmem_bench.state import MemoryState

_LARGE = 1 << 25
"""Scores of one layer (128 MiB in float32) from which on attention is differentiated twice in blocks."""

_IN_CACHE = 1 << 18
"""Elements of a layer's hidden states that a compiled step works on at a time on a CPU: 1 MiB of them, and what a layer
makes of them, stay in the caches. Half the time of a whole batch of 64 on the key-value model."""
_HIDDEN_ON_GPU, _SCORES_ON_GPU = 1 << 22, 1 << 25
"""Elements of a layer's hidden states, and of its scores where they are whole, that are worked on at a time on a GPU.
They keep it busy, and the graphs of several steps of them are smaller than those of one step of a large batch."""


class GradMemParameters(VectorParameters):
    """What GradMem can be set to. *Paper* is the ICML 2026 version and its scripts (github.com/yurakuratov/gradmem)."""

    inner_steps: int = Field(default=1, ge=0)
    """K, the steps of gradient descent in WRITE while training. Paper: 1, 2 or 5."""
    evaluation_inner_steps: int | None = Field(default=None, ge=0)
    """K at evaluation; `None` is the K of training. Paper: that, and 0 to 30 in its figure 4."""
    inner_learning_rate: float = Field(default=0.4, gt=0)
    """α, the step size on the mean loss per context token; eq. 4 of the paper sums, so that its α is this over |C|.
    Paper: the best of [0.01, 10] for each K; 0.04 to 0.12 in the key-value scripts, 0.03 to 0.4 on text."""
    learned_inner_learning_rate: Literal["none", "one", "per_step", "per_vector"] = "none"
    """Whether α is learned, and how many there are: on a logarithmic scale, from `inner_learning_rate` on. Steps beyond
    those of training take the last one's; with fast weights, `per_vector` has one for each of their rows as well.
    Paper: none."""
    inner_optimizer: Optimizer = "sgd"
    """`sgd`, or `adam` with fresh moments for each context, differentiated like sgd. Paper: sgd (its code's adam is its
    default, and cuts the second order)."""
    inner_clip_value: float | None = Field(default=None, gt=0)
    """Bound on each entry of an inner gradient. Paper: none (10 in its code's adam)."""
    inner_clip_norm: float | None = Field(default=None, gt=0)
    """Bound on the norm of one context's inner gradient, over all that descends. Paper: none."""
    order: Order = "second"
    """`second` back-propagates through the inner steps in full, `first` takes their gradients as constants, and `none`
    does not train what WRITE depends on but through READ. Under `first`, WRITE's own head, adapters and control tokens
    learn from the reconstruction loss alone. Paper: second, and first in an ablation."""
    second_order_steps: int | None = Field(default=None, ge=1)
    """J: the last J steps in second order and those before them in first; `None` is all. Paper: all."""
    engine: Engine = "auto"
    """How the second order is computed. `unrolled` keeps the graph of every step; `recompute` keeps none and makes each
    again, in a third more time and in memory that does not grow with K; `compiled` takes less of both, after minutes of
    compiling for each new shape. `auto` is `compiled` on a GPU; on a CPU it unrolls up to 2 steps, recomputes beyond.
    Their gradients are equal but for rounding, with which two trainings drift apart."""
    projection: Literal["none", "shared", "per_sample"] = "none"
    """A linear map, the identity at the start, between memory and backbone: none; one for all contexts, in WRITE and at
    READ; or one of each context's own, which descends with the vectors from a learned start. What crosses is the
    vectors: before the map where it is shared, behind it where it is the context's own. Paper: none for key-value
    retrieval and short SQuAD; shared for bAbI, full SQuAD, language modelling and text reconstruction."""
    write_head: bool = True
    """Whether WRITE predicts the context with its own head, a copy of the backbone's at the start. Paper: yes, but in
    text reconstruction and language modelling."""
    write_lora_rank: int | None = Field(default=None, ge=1)
    """Rank of LoRA adapters on the backbone's linear layers, in WRITE only; `None` is no adapters. Needs
    gradmem-bench[lora]. Paper: 8 in text reconstruction, else none."""
    write_lora_alpha: float = Field(default=16, gt=0)
    """The adapters' scale times their rank. Paper: 16."""
    freeze_backbone: bool = False
    """Whether the backbone's weights stay as they are, in WRITE and at READ. Paper: yes in text reconstruction."""
    reconstruction_weight: float = Field(default=0.0, ge=0)
    """Weight of the reconstruction loss at M_K in the outer loss. Paper: none in its objective; 0.5 in its key-value
    script, on the loss before the last step."""
    gradient_checkpointing: bool = False
    """Whether layers keep only their inputs for the backward pass and are run again in it: less memory, more time.
    Attention is then always differentiated in blocks while training. Paper: no."""

    @model_validator(mode="after")
    def _says_nothing_in_vain(self) -> "GradMemParameters":
        if self.second_order_steps is not None and self.order != "second":
            raise ValueError(f"second_order_steps has no meaning with order '{self.order}', only with 'second'")
        if self.second_order_steps is not None and self.second_order_steps > self.inner_steps:
            raise ValueError(
                f"second_order_steps {self.second_order_steps} is more than inner_steps {self.inner_steps}"
            )
        if self.learned_inner_learning_rate != "none" and self.order == "none":
            raise ValueError("a learned_inner_learning_rate is not trained with order 'none', only 'second' or 'first'")
        if self.learned_inner_learning_rate == "per_step" and self.inner_steps == 0:
            raise ValueError("a learned_inner_learning_rate 'per_step' needs inner_steps of at least 1")
        return self


class GradMem(MemoryMethod):
    """m vectors, moved from a meta-learned start by K gradient steps on the context's reconstruction loss.

    WRITE: M_{k+1} = M_k - alpha · d/dM mean_i CE(t_i | [M_k; t_<i]), weights frozen (Algorithm 1). READ: M_K stands
    before the query. All weights and M_0 are trained by the outer loss, through the K steps.
    """

    Parameters = GradMemParameters
    recordable = True
    evaluation_parameters = frozenset({"evaluation_inner_steps"})
    settings: GradMemParameters

    def __init__(self, backbone: Backbone, parameters: GradMemParameters) -> None:
        super().__init__(backbone, parameters)
        std, own_map = parameters.memory_std, parameters.projection == "per_sample"
        self.memory = MemoryVectors(parameters.memory_vectors, backbone, std)
        self.write_head: nn.Linear | None = None
        if parameters.write_head:
            self.write_head = copy.deepcopy(backbone.head)
            # The copy is untied from the input embeddings, as in the paper's experiments.
            self.write_head.weight = nn.Parameter(backbone.head.weight.detach().clone())
        sides = parameters.write_control_before, parameters.write_control_after
        self.write_control = ControlTokens(*sides, backbone, std)
        sides = parameters.read_control_before, parameters.read_control_after
        self.read_control = ControlTokens(*sides, backbone, std)
        self.projection = None if parameters.projection == "none" else linear_map(backbone.width)
        rows = parameters.memory_vectors + (backbone.width + 1 if own_map else 0)
        shapes = {"one": (), "per_step": (parameters.inner_steps,), "per_vector": (rows, 1)}
        shape = shapes.get(parameters.learned_inner_learning_rate)
        self.log_learning_rate = None if shape is None else nn.Parameter(torch.zeros(shape))
        """Logarithm of α over its start."""
        if parameters.freeze_backbone:
            backbone.requires_grad_(False)
        self.adapted: Backbone | None = None
        if parameters.write_lora_rank is not None:
            self.adapted = with_adapters(backbone, parameters.write_lora_rank, parameters.write_lora_alpha)
        self._attention: str | None = None
        """The backbone's own, where training sets another."""
        if parameters.gradient_checkpointing:
            self._attention = backbone.model.config._attn_implementation
            for one in (backbone, self.writer):
                _checkpoint_gradients(one)
            self.train(self.training)

    def train(self, mode: bool = True) -> "GradMem":
        if self._attention is not None:
            # With gradient checkpointing a layer is run again in a backward pass, where what `Descent` said of
            # attention kernels no longer holds; what is evaluated, and measured, has the kernels of every method.
            for one in (self.backbone, self.writer):
                one.model.set_attn_implementation(BLOCKWISE if mode else self._attention)
        return super().train(mode)

    @property
    def writer(self) -> Backbone:
        """What WRITE runs: the backbone, with its adapters where there are any."""
        return self.backbone if self.adapted is None else self.adapted

    def learning_rates(self, steps: int) -> float | Tensor:
        """α of so many steps, as `Descent` takes it."""
        rate = self.settings.inner_learning_rate
        if self.log_learning_rate is None:
            return rate
        rates = rate * self.log_learning_rate.exp()
        return rates[torch.arange(steps, device=rates.device).clamp(max=len(rates) - 1)] if rates.dim() == 1 else rates

    def _vectors(self, memory: Tensor) -> Tensor:
        """What crosses of all that descended, (B, m, d)."""
        return projected_by_own(memory) if self.settings.projection == "per_sample" else memory

    def _projected(self, vectors: Tensor) -> Tensor:
        """The vectors of a state as they stand in the backbone, (B, m, d)."""
        return self.projection(vectors) if self.settings.projection == "shared" else vectors

    def _write_prefix(self, vectors: Tensor) -> Prefix:
        return vectors_prefix(self.write_control(self._projected(vectors)))

    def write_loss(self, vectors: Tensor, contexts: Tokens) -> Tensor:
        """(B,): the inner loss of vectors (B, m, d). What is compiled of it has no mask of padding: nothing may stand
        behind the contexts."""
        return self.writer.text_loss(self._write_prefix(vectors), contexts, self.write_head)

    def inner_loss(self, memory: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(B,): the loss that descends, of all that descends, (B, m or more, d), for contexts ids and mask (B, T)."""
        heads, settings = self.backbone.attention_heads, self.settings
        positions = settings.memory_vectors + settings.write_control + ids.shape[1]
        # What is compiled, or large, has attention of ours where it is differentiated twice: blocks that leave out what
        # a causal mask hides, and no score of all positions with all.
        twice = self.training and settings.order == "second"
        ours = twice and (torch.compiler.is_compiling() or len(ids) * heads * positions**2 > _LARGE)
        with blockwise(self.writer.model) if ours else nullcontext():
            return self.write_loss(self._vectors(memory), Tokens(ids, mask))

    def micro_batch(self, contexts: Tokens) -> int | None:
        """As many as keep the device busy, and a CPU's caches from overflowing; a power of two."""
        on_gpu, engine = contexts.ids.is_cuda, self.settings.engine
        if not on_gpu and engine != "compiled":
            return None
        positions = self.settings.memory_vectors + self.settings.write_control + contexts.ids.shape[1]
        most = (_HIDDEN_ON_GPU if on_gpu else _IN_CACHE) // (positions * self.backbone.width)
        scores = self.backbone.attention_heads * positions**2
        if scores and on_gpu and engine in ("auto", "compiled"):
            most = min(most, _SCORES_ON_GPU // scores)
        return power_of_two_at_most(max(1, most))

    def write(self, contexts: Tokens) -> MemoryState:
        settings = self.settings
        steps, order = settings.inner_steps, settings.order
        if not self.training:
            steps = steps if settings.evaluation_inner_steps is None else settings.evaluation_inner_steps
            order = "none"
        descent = Descent(
            order,
            settings.second_order_steps,
            settings.inner_optimizer,
            settings.engine,
            self.micro_batch(contexts),
            clip_value=settings.inner_clip_value,
            clip_norm=settings.inner_clip_norm,
        )
        memory = descent(
            self.inner_loss,
            self._start(len(contexts)),
            steps,
            self.learning_rates(steps),
            inputs=(contexts.ids, contexts.mask),
            parameters=list(self.parameters()),
        )
        return MemoryState({"memory": self._vectors(memory)})

    def _start(self, count: int) -> Tensor:
        """M_0, all that descends, (B, m or more, d)."""
        start = self.memory(count)
        return with_fast_weights(start, self.projection) if self.settings.projection == "per_sample" else start

    def blank(self, count: int) -> MemoryState:
        return MemoryState({"memory": self._vectors(self._start(count))})

    def read(self, state: MemoryState) -> Prefix:
        return vectors_prefix(self.read_control(self._projected(state.tensors["memory"])))

    def reconstruction_losses(self, state: MemoryState, contexts: Tokens) -> Tensor:
        """The WRITE loss at M_K; with a WRITE head of its own it is what was descended, not what the LM would say."""
        return self.writer.text_losses(self._write_prefix(state.tensors["memory"]), contexts, self.write_head)

    @classmethod
    def footprint(
        cls, parameters: GradMemParameters, backbone: Backbone, context_tokens: int, context_bytes: int
    ) -> Footprint:
        # Nothing is predicted behind the context's last token, which is not run.
        positions = parameters.memory_vectors + parameters.write_control + max(1, context_tokens - 1)
        return vectors_footprint(parameters.memory_vectors, backbone, positions, parameters.read_control)

    @classmethod
    def fit(cls, parameters: GradMemParameters, budget: Budget, backbone: Backbone) -> GradMemParameters:
        return fit_vectors(parameters, budget, backbone, parameters.read_control)


def _checkpoint_gradients(backbone: Backbone) -> None:
    model = backbone.model
    # Of a recurrent one the layers' parts are run, and not the layers, which alone would be run again.
    if backbone.recurrent or not model.supports_gradient_checkpointing:
        raise UserError(f"{type(model).__name__} has no gradient_checkpointing; set it to false.")
    # Dropout is 0, so that there is no chance to repeat; to ask the device for its state would be to wait for it.
    model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})

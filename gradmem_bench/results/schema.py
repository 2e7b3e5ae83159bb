"""The schema of a run's record (`run.json`) and of its example rows (`examples.parquet`).

SCHEMA_VERSION goes up whenever a file written before could no longer be read.
"""

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from gradmem_bench.config import Budget, StrictModel
from gradmem_bench.metrics import METRICS
from gradmem_bench.results.costs import Capacity, Costs, MeasuredFootprint
from gradmem_bench.results.part import Part
from gradmem_bench.statistics import Estimate

SCHEMA_VERSION = 1

_ROUNDING = 1e-9


class CodeVersion(Part):
    """Which code made the numbers."""

    version: str
    """Version of gradmem-bench."""
    commit: str | None
    """Commit of the checkout that the package was run from; `None` outside one."""
    dirty: bool | None
    """Whether the package, its methods or its tasks differed from that commit."""


class MethodRecord(Part):
    """The memory that was evaluated."""

    name: str
    """Name of the recipe."""
    implementation: str
    """`module:Class`."""
    package: str = ""
    """The package it is from, with its version; empty for what is built in or a file of the user's."""
    source_hash: str | None = None
    """SHA-256 of the file that holds the class, where it is not built in: the first 16 digits."""
    parameters: dict[str, Any]
    """The class's `Parameters` in full, as fitted to the budget."""
    role: Literal["floor", "ceiling", "method"]
    """What it is in a table."""
    citation: str
    """The paper it is from."""
    own_backbone: bool = False
    """Whether the method is a language model itself (Mamba), so that its row cannot share the others' backbone."""


class SourceRecord(Part):
    """Where the split's documents came from."""

    location: str
    """Hub id, path relative to the data folder, or `generated`."""
    revision: str | None
    """The hub commit that was loaded."""
    content_hash: str | None
    """SHA-256 of the local file, or of the generator's settings."""
    rows: int
    """Queries in the split, before any limit."""


class TaskRecord(Part):
    """What was asked, of how much."""

    name: str
    """Name of the task."""
    version: str
    """The task's own version."""
    settings: dict[str, Any]
    """The task's settings in full."""
    declaration_hash: str | None = None
    """Fingerprint of all else that the task's file declares, and of the files of code that it names; `None` for a task
    that is built in, whose version tells, and in records from before it was kept."""
    normalized_answers: bool
    """Whether answers were scored under SQuAD's normalisation (text) or letter by letter (symbols)."""
    answer_words: int | None = None
    """Words of the longest accepted answer, under SQuAD's normalisation; `None` in records from before it was kept."""
    own_metric: str = ""
    """What `task_score` is; empty where the task has no metric of its own."""
    split: str
    """Split that was evaluated."""
    source: SourceRecord
    """Where the split came from."""
    limit: int | None
    """The most contexts that were asked for; `None` is all."""
    contexts: int
    """Contexts that were written."""
    queries: int
    """Queries that were answered."""
    truncated_contexts: int
    """Contexts that were cut to fit the backbone's positions."""


class BackboneRecord(Part):
    """The causal LM."""

    name: str
    """Hub id, folder, or shape of a random model."""
    revision: str | None
    """Hub commit of the weights."""
    tokenizer: str
    """Hub id, folder, or name of the task's own tokenizer."""
    family: str
    """Model type, for example `llama`."""
    parameter_count: int
    """Parameters of the LM."""
    weights_hash: str
    """SHA-256 of the weights that every method started from; of a random model, of its configuration without seed."""


class MetricResult(Estimate):
    """One metric's value and interval."""

    version: int
    """The metric's version (see `gradmem_bench.metrics`)."""


class SwapTest(Part):
    """States given to the wrong queries: what is then still answered did not come from the state."""

    contexts: int
    """Contexts in the sample."""
    queries: int
    """Queries in the sample."""
    own_score: float | None
    """Exact match with each context's own state; where there are choices, the share that were chosen right; where the
    task has a metric of its own, the share of answers that it gives 1."""
    swapped_score: float | None
    """The same with another context's state."""
    chance_score: float | None
    """The same that a swapped state may reach by chance, since contexts share answers, or since the weights know them:
    in records from before that was tried of every query, of those with choices alone."""
    random_score: float | None = None
    """The same with random states of the same shape, mean and deviation; `None` where a state holds no such numbers,
    or in records from before it was tried."""
    blank_score: float | None = None
    """The same with the state that WRITE begins with, before anything of a context is in it (K = 0); `None` where a
    method begins with nothing, or in records from before it was tried."""
    passed: bool | None
    """Whether swapping dropped the score to chance; `None` when it was there before, or could not be tried."""
    outcome: str
    """The outcome as a sentence."""


class TrainedOn(Part):
    """The task that weights were trained on."""

    name: str
    """Name of the task."""
    version: str | None = None
    """The task's own version; `None` is not known."""
    settings: dict[str, Any] | None = None
    """The task's settings; `None` is not known."""
    training_hash: str | None = None
    """Content hash, or the hub's commit, of what was trained on; `None` is not known."""
    validation_hash: str | None = None
    """The same of what was selected on."""


class TrainingRecord(Part):
    """What the method's training cost (design law 4)."""

    steps: int
    """Optimiser steps."""
    contexts: int
    """Contexts seen, repeats counted."""
    queries: int
    """Queries seen, repeats counted."""
    tokens: int
    """Context, query and target tokens seen, repeats counted."""
    flops: float | None
    """Floating-point operations, where they were counted."""
    seconds: float
    """Wall-clock seconds, validation included."""
    processes: int = 1
    """How many worked on it together, each on a GPU of its own where there are some."""
    seed: int
    """Seed of the weights that training adds, of the order of the data and of dropout."""
    tuned_trials: int
    """Configurations tried before this one, as `training.tuned_trials` states it; 0 where nothing was stated."""
    trained_parameters: int
    """Parameters that were trained, the LM's included."""
    config: dict[str, Any]
    """The TrainingConfig in full."""
    initial_checkpoint: str | None
    """Checkpoint that training started from."""
    best_validation_score: float | None
    """Best score on the validation split; its step's weights were evaluated."""
    best_step: int | None
    """Optimiser step of the best validation score."""
    stopped_because: str
    """Why training ended."""
    task: TrainedOn | None = None
    """What it was trained on; `None` in records from before it was kept."""
    last_stage: int | None = None
    """The stage that it ended in, from 1: first those of `config`'s curriculum, then the task itself; `None` in records
    from before it was kept."""

    @property
    def unfinished_curriculum(self) -> str:
        """The easier task that it ended on, as a clause; empty where it reached the task itself, or is not known to."""
        easier = self.config.get("curriculum") or []
        if self.last_stage is None or self.last_stage > len(easier):
            return ""
        task = ", ".join(f"{name} {value}" for name, value in easier[self.last_stage - 1]["task"].items())
        return f"stage {self.last_stage} of {len(easier) + 1} ({task})"


class Environment(Part):
    """The machine and the libraries."""

    device: str
    """Where the model ran, and on what: `cuda (NVIDIA H200)`, `cpu (AMD EPYC, AVX2)`; in older records `cpu` alone."""
    dtype: str
    """Dtype of the backbone's weights, for example `float32`."""
    torch: str
    """Version of torch."""
    transformers: str
    """Version of transformers."""
    python: str
    """Version of Python."""
    platform: str
    """Operating system and processor architecture."""
    threads: int
    """Threads that torch used on the CPU."""


class Seal(Part):
    """Fingerprints of the rows and of the record, taken as it is made: what is changed afterwards no longer fits them.

    They tell an edit or an accident. They are no signature: who changes a record can also seal it again.
    """

    rows: int
    """Rows that were there."""
    rows_hash: str
    """SHA-256 of all rows, whatever their order."""
    data_hash: str
    """SHA-256 of what was asked (ids and targets) and of the source and split that the record names."""
    record_hash: str | None = None
    """SHA-256 of all that the record says but this seal; `None` in a seal from before records were covered."""


class RunRecord(Part):
    """Everything about one method on one task."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of this schema."""
    run_id: str
    """Unique name of the run."""
    created: str
    """When the record was made: UTC, ISO 8601."""
    command: list[str]
    """The command as it was typed, one argument each."""
    config_hash: str
    """Fingerprint of the resolved configuration."""
    code: CodeVersion
    """Which code made the numbers."""
    method: MethodRecord
    """The memory that was evaluated."""
    task: TaskRecord
    """What was asked."""
    backbone: BackboneRecord
    """The causal LM."""
    budget: Budget | None
    """What was requested; `None` when nothing was."""
    footprint: MeasuredFootprint
    """What was measured."""
    metrics: dict[str, MetricResult]
    """Every metric by its name."""
    swap_test: SwapTest
    """Whether the answers came from the state."""
    costs: Costs
    """What WRITE and READ cost."""
    capacity: Capacity | None = None
    """Bits recalled per state byte; `None` where the task's values are not known to be independent and uniform."""
    training: TrainingRecord | None
    """Training; `None` for a method that was not trained."""
    trained_elsewhere: str = ""
    """The task, its settings or its data that the weights were trained on, where those are others than here; also empty
    in records from before it was looked at."""
    seed: int | None = None
    """Seed of all that was drawn, weights of a method or of a random backbone among it; `None` in a record from before
    it was kept, where the training's own is the same."""
    environment: Environment
    """The machine and the libraries."""
    seal: Seal | None = None
    """Of the example rows and the record; `None` in a record from before there were seals."""

    @model_validator(mode="after")
    def _scored(self) -> "RunRecord":
        if "exact_match" not in self.metrics:
            raise ValueError("it has no metric exact_match, which every run has")
        for name, found in self.metrics.items():
            _possible(name, found)
        return self


def _possible(name: str, found: MetricResult) -> None:
    """Raises ValueError where no values at all could make this of the metric `name`."""
    value, low, high = found.value, found.low, found.high
    if (low is None) != (high is None):
        raise ValueError(f"the interval of {name} has one bound, where two or none were expected")
    if name in METRICS and METRICS[name].kind == "proportion":
        for one in (value, low, high):
            if one is not None and not -_ROUNDING <= one <= 1 + _ROUNDING:
                raise ValueError(f"{name} is {one:.10g} in it, and a proportion lies between 0 and 1")
    if low is None or high is None:
        return
    room = _ROUNDING * max(1.0, abs(low), abs(high))
    if value is None or not low - room <= value <= high + room:
        stated = "none" if value is None else f"{value:.10g}"
        raise ValueError(f"the value of {name}, {stated}, lies outside its own interval, [{low:.10g}, {high:.10g}]")


class ProfileRecord(Part):
    """What a method costs on a task, without its score."""

    command: list[str]
    """The command as it was typed, one argument each."""
    code: CodeVersion
    """Which code made the numbers."""
    method: MethodRecord
    """The memory that was measured."""
    task: str
    """Name of the task that the contexts and queries are from."""
    backbone: BackboneRecord
    """The causal LM."""
    budget: Budget | None
    """What was requested; `None` when nothing was."""
    footprint: MeasuredFootprint
    """What the states cost that were written."""
    costs: Costs
    """What WRITE and READ cost."""
    environment: Environment
    """The machine and the libraries."""


class ExampleRow(StrictModel):
    """One query's answer and scores. Texts are found by id in the task; the context is not stored."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    example_id: str
    """The query's id; pairs the rows of two methods."""
    context_id: str
    """The document's id; rows that share it are not independent."""
    prediction: str
    """The generated answer."""
    targets: list[str]
    """Every accepted answer."""
    exact_match: bool
    seen_in_training: bool | None = None
    """Whether the training data hold this query with this context; `None` where that is not known: of generated data,
    and in rows from before it was looked at."""
    f1: float = Field(ge=0, le=1)
    teacher_forced_exact_match: bool
    token_accuracy: float = Field(ge=0, le=1)
    target_bits_per_token: float
    choice: str | None = None
    """The likeliest of the query's choices, where it has some."""
    task_score: float | None = None
    """The task's own metric (see `TaskRecord.own_metric`)."""
    reconstruction_nats_per_token: float | None
    """Of the query's context, the same in all its rows."""
    target_tokens: int = Field(ge=1)
    """Tokens of the first target, without the end-of-text token."""
    context_tokens: int
    """Tokens of the context as it was written."""
    context_truncated: bool
    """Whether the context was cut to fit the backbone."""
    state_bytes: int
    """Serialised payload of the context's state."""
    read_positions: int
    """Positions before the query."""

    @property
    def unseen_exact_match(self) -> bool | None:
        """The exact match of a query that was not trained on with its context; `None` of all others."""
        return self.exact_match if self.seen_in_training is False else None

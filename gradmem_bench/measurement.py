"""What WRITE and READ cost, each phase apart, and from how many queries on writing once pays.

FLOPs are those of a context of median length alone, counted with attention as plain products, which a counter sees.
Seconds are those of a whole batch by the fastest kernels, warmed up and synchronised with the device, over its rows.
READ makes the same number of tokens everywhere, those of the sample's longest answer with its end.
Peak memory is taken in a pass of its own.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradmem_bench.batch import Tokens
from gradmem_bench.captured import SIGHTS, as_it_stands
from gradmem_bench.config import Budget, StateDtype
from gradmem_bench.errors import UserError
from gradmem_bench.evaluation import Evaluator
from gradmem_bench.flops import flop_counter
from gradmem_bench.methods.base import MemoryMethod
from gradmem_bench.methods.full_kv import FullKV
from gradmem_bench.methods.truncated_text import TruncatedText
from gradmem_bench.results import (
    Alternative,
    Capacity,
    Costs,
    Measured,
    MeasuredFootprint,
    MetricResult,
    PhaseCosts,
    Quantity,
)
from gradmem_bench.tasks.base import Task
from gradmem_bench.tasks.batching import EncodedDocument

PHASES = ("WRITE", "READ", "the text", "a KV cache")
"""What `measure` reports as it begins with it."""
_REPETITIONS, _FEWEST, _SECONDS = 10, 3, 5.0
"""A phase is timed ten times, or as often as five seconds allow but three times at least; once if it takes longer."""


@dataclass(frozen=True)
class Phases:
    """Both phases of one method on one batch."""

    write: PhaseCosts | None
    """`None` where WRITE was not measured."""
    read: PhaseCosts
    state_bytes: list[int]
    """Of each context."""
    read_positions: list[int]
    """Of each context."""


@dataclass(frozen=True)
class Sample:
    """Contexts and a query of each, of which costs are measured."""

    documents: Sequence[EncodedDocument]
    contexts: Tokens
    queries: Tokens
    answer_tokens: int
    """How many tokens are generated."""

    @classmethod
    def of(cls, documents: Sequence[EncodedDocument], answer_tokens: int, device: torch.device) -> "Sample":
        """The documents with the first query of each."""
        return cls(
            documents,
            Tokens.from_lists([document.context for document in documents], device),
            Tokens.from_lists([document.queries[0] for document in documents], device),
            answer_tokens,
        )

    @classmethod
    def median(cls, documents: Sequence[EncodedDocument], batch_size: int, device: torch.device) -> "Sample":
        """At most `batch_size` of at least one document: those whose contexts are of median length."""
        ordered = sorted(documents, key=lambda document: len(document.context))
        first = max(0, (len(ordered) - batch_size) // 2)
        chosen = ordered[first : first + batch_size]
        return cls.of(chosen, 1 + max(len(document.targets[0]) for document in chosen), device)

    def one(self) -> "Sample":
        """The document in the middle alone."""
        middle = len(self.documents) // 2
        return Sample.of(self.documents[middle : middle + 1], self.answer_tokens, self.contexts.ids.device)


def measure(
    evaluator: Evaluator, documents: Sequence[EncodedDocument], report: Callable[[str], None]
) -> tuple[Costs, MeasuredFootprint]:
    """What the evaluator's method costs at its batch size, and what its states cost on the contexts that were used.

    Args:
        report: called with each of PHASES as it begins.
    Raises:
        UserError: as the evaluator does, for a state over its budget.
    """
    backbone, dtype = evaluator.backbone, evaluator.budget.state_dtype
    sample = Sample.median(documents, evaluator.batch_size, backbone.device)
    report(PHASES[0])
    write = _write(evaluator, sample)
    report(PHASES[1])
    own, kept = _read(evaluator, sample, write), evaluator.kv_bytes_per_position()

    def other(method_class: type[MemoryMethod], writes: bool) -> Alternative:
        try:
            method = method_class(backbone, method_class.Parameters())
            asked = Evaluator(
                method, evaluator.task, evaluator.batch_size, Budget(state_dtype=dtype), evaluator.autocast
            )
            return _alternative(own, _read(asked, sample, _write(asked, sample) if writes else None), kept)
        except UserError as error:
            # Text takes more positions than the memory that stands for it, and may not fit where that does.
            nothing = Quantity(value=None, reason=str(error))
            quantities = "break_even_flops", "break_even_seconds", "state_bytes_saved", "read_kv_bytes_saved"
            return Alternative(write=None, read=None, **dict.fromkeys(quantities, nothing))

    report(PHASES[2])
    reread_text = other(TruncatedText, writes=False)
    report(PHASES[3])
    keep_kv_cache = None if isinstance(evaluator.method, FullKV) else other(FullKV, writes=True)
    lengths = sample.contexts.lengths.tolist()
    costs = Costs(
        write_seconds_per_context=write.seconds,
        read_seconds_per_query=own.read.seconds,
        batch_size=len(sample.documents),
        context_tokens=sum(lengths) / len(lengths),
        answer_tokens=sample.answer_tokens,
        whole_answers=True,
        write=write,
        read=own.read,
        reread_text=reread_text,
        keep_kv_cache=keep_kv_cache,
    )
    return costs, measured_footprint(own.state_bytes, own.read_positions, lengths, kept, dtype)


def measured_footprint(
    state_bytes: Sequence[int],
    read_positions: Sequence[int],
    tokens: Sequence[int],
    kv_bytes_per_position: int,
    dtype: StateDtype,
) -> MeasuredFootprint:
    """What states cost that were stored as `dtype`; one number of each kind for each context."""
    return MeasuredFootprint(
        state_bytes=Measured.of(state_bytes),
        read_positions=Measured.of(read_positions),
        read_kv_bytes=Measured.of([count * kv_bytes_per_position for count in read_positions]),
        context_tokens=sum(tokens) / len(tokens),
        bytes_per_context_token=sum(state_bytes) / sum(tokens),
        state_dtype=dtype,
    )


# ---------------------------------------------------------------------------------------------- phases


def _write(evaluator: Evaluator, sample: Sample) -> PhaseCosts:
    return phase_costs(lambda part: evaluator.write_state(part.contexts), sample)


def _read(evaluator: Evaluator, sample: Sample, write: PhaseCosts | None) -> Phases:
    written = evaluator.write(sample.documents, reconstruct=False)
    positions = evaluator.read_prefix(written.states).positions.tolist()
    states = {document.document.id: state for document, state in zip(sample.documents, written.states, strict=True)}

    def read(part: Sample) -> None:
        held = [states[document.document.id] for document in part.documents]
        prefix = evaluator.read_prefix(held)
        with evaluator.autocast():
            # As many tokens whatever the weights say: where an answer ends is no matter of what READ costs, and the
            # alternatives are read by weights that were trained behind another prefix.
            evaluator.backbone.generate(prefix, part.queries, part.answer_tokens, all_tokens=True)

    return Phases(write, phase_costs(read, sample), written.state_bytes, positions)


def phase_costs(run: Callable[[Sample], Any], sample: Sample) -> PhaseCosts:
    """What `run` costs, which does one phase for all contexts, or all queries, of a sample together."""
    device, rows = sample.contexts.ids.device, len(sample.documents)

    def seconds() -> float:
        _synchronize(device)
        started = time.perf_counter()
        run(sample)
        _synchronize(device)
        return time.perf_counter() - started

    # The first runs are not counted, however long they take: in them is compiled, and recorded, what may be.
    for _ in range(SIGHTS + 1 if device.type == "cuda" else 1):
        seconds()
    taken = [seconds()]
    fewest = 1 if taken[0] > _SECONDS else _FEWEST
    while len(taken) < fewest or (len(taken) < _REPETITIONS and sum(taken) < _SECONDS):
        taken.append(seconds())
    low, median, high = statistics.quantiles(taken * 2 if len(taken) == 1 else taken, n=4, method="inclusive")
    return PhaseCosts(
        flops=_flops(run, sample.one()),
        seconds=median / rows,
        seconds_low=low / rows,
        seconds_high=high / rows,
        repetitions=len(taken),
        batch_size=rows,
        peak_bytes=_peak_bytes(lambda: run(sample), device),
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _flops(run: Callable[[Sample], Any], one: Sample) -> Quantity:
    try:
        with sdpa_kernel(SDPBackend.MATH), flop_counter() as counter:
            run(one)
    except torch.OutOfMemoryError:
        reason = "attention as plain products, which can be counted, does not fit the device's memory"
        return Quantity(value=None, reason=reason)
    return Quantity(value=counter.get_total_flops())


def _peak_bytes(run: Callable[[], Any], device: torch.device) -> Quantity:
    if device.type != "cuda":
        return Quantity(value=None, reason=f"peak memory is measured on CUDA devices, and this was on {device.type}")
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with as_it_stands():
        run()
    torch.cuda.synchronize(device)
    return Quantity(value=torch.cuda.max_memory_allocated(device) - before)


# ------------------------------------------------------------------------------------------ what pays


def _alternative(own: Phases, other: Phases, kv_bytes_per_position: int) -> Alternative:
    def saved(mine: Sequence[int], theirs: Sequence[int], unit: int) -> Quantity:
        return Quantity(value=(sum(theirs) - sum(mine)) * unit / len(mine))

    return Alternative(
        write=other.write,
        read=other.read,
        break_even_flops=_break_even_flops(own, other),
        break_even_seconds=_break_even_seconds(own, other),
        state_bytes_saved=saved(own.state_bytes, other.state_bytes, 1),
        read_kv_bytes_saved=saved(own.read_positions, other.read_positions, kv_bytes_per_position),
    )


def _break_even_flops(own: Phases, other: Phases) -> Quantity:
    written = Quantity(value=0.0) if other.write is None else other.write.flops
    needed = (own.write.flops, own.read.flops, written, other.read.flops)
    if missing := next((one for one in needed if one.value is None), None):
        return missing
    return break_even(*(one.value for one in needed), "FLOPs")


def _break_even_seconds(own: Phases, other: Phases) -> Quantity:
    written = 0.0 if other.write is None else other.write.seconds
    mine, theirs = own.read, other.read
    if mine.seconds_low <= theirs.seconds_high and theirs.seconds_low <= mine.seconds_high:
        # Their difference is by chance, and so would be what is divided by it.
        compared = f"one READ takes {1000 * mine.seconds:.3g} ms, and {1000 * theirs.seconds:.3g} ms there"
        return Quantity(value=None, reason=f"too close to call: {compared}, with quartiles that overlap")
    return break_even(*(1000 * seconds for seconds in (own.write.seconds, mine.seconds, written, theirs.seconds)), "ms")


def break_even(write: float, read: float, other_write: float, other_read: float, unit: str) -> Quantity:
    """The least n >= 1 with write + n · read < other_write + n · other_read, for it and for every n above.

    Args:
        unit: of the four, for the reason where there is no such n.
    """
    extra, saved = write - other_write, other_read - read
    if saved > 0:
        return Quantity(value=max(1, extra // saved + 1))
    if saved == 0 and extra < 0:
        return Quantity(value=1)
    compared = f"one READ takes {read:.3g} {unit}, and {other_read:.3g} {unit} there"
    if extra < saved:
        most = -(-extra // saved) - 1
        return Quantity(value=None, reason=f"up to {most:.0f} queries and no more: {compared}")
    return Quantity(value=None, reason=f"never: {compared}")


def capacity(task: Task, exact_match: MetricResult, state_bytes: float) -> Capacity | None:
    """What states of a mean size hold of the task's values at this exact match; `None` where that is not known."""
    if task.independent_values is None:
        return None
    return Capacity.of(*task.independent_values, exact_match, state_bytes)

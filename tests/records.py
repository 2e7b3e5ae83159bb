"""Records as an evaluation makes them, for the tests of whatever reads records."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradmem_bench.config import fingerprint
from gradmem_bench.metrics import METRICS
from gradmem_bench.results import (
    BackboneRecord,
    CodeVersion,
    Costs,
    Environment,
    ExampleLog,
    ExampleRow,
    Measured,
    MeasuredFootprint,
    MethodRecord,
    MetricResult,
    PhaseCosts,
    Quantity,
    RunRecord,
    SourceRecord,
    SwapTest,
    TaskRecord,
    TrainingRecord,
    write_record,
)
from gradmem_bench.running import metric_results
from gradmem_bench.statistics import estimate

CONTEXTS, PAIRS = 128, 4
QUERIES = CONTEXTS * PAIRS

TASK = TaskRecord(
    name="kv_retrieval",
    version="1",
    settings={"pairs": PAIRS, "alphabet": 16},
    normalized_answers=False,
    split="test",
    source=SourceRecord(location="generated", revision=None, content_hash="9e8d7c6b5a" * 6, rows=4096),
    limit=CONTEXTS,
    contexts=CONTEXTS,
    queries=QUERIES,
    truncated_contexts=0,
)
BACKBONE = BackboneRecord(
    name="llama-2x64",
    revision=None,
    tokenizer="kv_retrieval",
    family="llama",
    parameter_count=115_008,
    weights_hash="3fa2c1d4e5" * 6,
)
TRAINING = TrainingRecord(
    steps=1000,
    contexts=64_000,
    queries=256_000,
    tokens=1_400_000,
    flops=None,
    seconds=71.3,
    seed=0,
    tuned_trials=3,
    trained_parameters=120_448,
    config={"steps": 1000, "learning_rate": 1e-3},
    initial_checkpoint=None,
    best_validation_score=0.91,
    best_step=1000,
    stopped_because="the last step was reached",
)
PASSED = SwapTest(
    contexts=32,
    queries=128,
    own_score=0.781,
    swapped_score=0.07,
    chance_score=0.0625,
    passed=True,
    outcome="0.070 were right with another context's state, 0.781 with their own.",
)
ENVIRONMENT = Environment(
    device="cpu",
    dtype="float32",
    torch="2.13.0",
    transformers="5.23.0",
    python="3.11.7",
    platform="Linux 6.18 x86_64",
    threads=2,
)


def metric(name: str, values: list[float]) -> MetricResult:
    """The result of one metric over QUERIES values, its interval computed and not made up."""
    contexts = [f"test-{index // PAIRS}" for index in range(QUERIES)]
    interval = estimate(values, contexts, METRICS[name].kind)
    return MetricResult(**interval.model_dump(), version=METRICS[name].version)


def measured(smallest: int, largest: int) -> Measured:
    return Measured(mean=(smallest + largest) / 2, min=smallest, max=largest)


def run_record(
    method: str = "gradmem",
    role: str = "method",
    right: int = 400,
    state_bytes: tuple[int, int] = (2048, 2048),
    positions: tuple[int, int] = (8, 8),
    parameters: dict[str, Any] | None = None,
    **changes: Any,
) -> RunRecord:
    """A record of `method` with `right` of 512 queries answered, four of each of 128 contexts.

    `state_bytes` and `positions` are the smallest and the largest; `changes` replace fields of the record.
    """
    hits = [0.0] * QUERIES
    for index in range(right):
        hits[index * 137 % QUERIES] = 1.0  # a stride that is prime to QUERIES spreads them over the contexts
    parameters = {"memory_vectors": 8, "inner_steps": 1} if parameters is None else parameters
    values = {
        "run_id": f"{method}-{fingerprint([method, right, parameters])[:6]}",
        "created": "2026-11-23T01:02:03+00:00",
        "command": ["gradmem-bench", "run", "--method", method, "--task", "kv_retrieval"],
        "config_hash": fingerprint([method, parameters]),
        "code": CodeVersion(version="0.1.0", commit="0123456789abcdef", dirty=False),
        "method": MethodRecord(
            name=method, implementation="package:Class", parameters=parameters, role=role, citation=""
        ),
        "task": TASK,
        "backbone": BACKBONE,
        "budget": None,
        "footprint": MeasuredFootprint(
            state_bytes=measured(*state_bytes),
            read_positions=measured(*positions),
            read_kv_bytes=measured(positions[0] * 1024, positions[1] * 1024),
            context_tokens=25.0,
            bytes_per_context_token=sum(state_bytes) / 2 / 25,
        ),
        "metrics": {
            "exact_match": metric("exact_match", hits),
            "f1": metric("f1", [max(hit, 0.25) for hit in hits]),
            "teacher_forced_exact_match": metric("teacher_forced_exact_match", hits),
            "target_bits_per_token": metric("target_bits_per_token", [4 - 3.5 * hit for hit in hits]),
        },
        "swap_test": PASSED,
        "costs": Costs(write_seconds_per_context=0.00412, read_seconds_per_query=0.00131, batch_size=64),
        "training": TRAINING,
        "environment": ENVIRONMENT,
    }
    return RunRecord(**(values | changes))


def demo_records() -> list[RunRecord]:
    """One record of each of five methods, in no order."""
    brief = TRAINING.model_copy(update={"steps": 400, "seconds": 21.0})
    return [
        run_record("no_memory", "floor", 34, (0, 0), (0, 0), {}, training=brief),
        run_record("rmt", right=391),
        run_record("gradmem", right=473),
        run_record("truncated_text", "method", 261, (19, 23), (8, 8), {}),
        run_record("full_kv", "ceiling", 511, (24_576, 26_624), (24, 26), {}),
    ]


def measured_costs(write_flops: float | None, read_flops: float | None = 1e6, seconds: float = 0.1) -> Costs:
    """Costs of phases that were measured apart, the operations counted or not."""

    def phase(flops: float | None) -> PhaseCosts:
        return PhaseCosts(
            flops=Quantity(value=flops, reason="not counted" if flops is None else None),
            seconds=seconds,
            seconds_low=0.9 * seconds,
            seconds_high=1.1 * seconds,
            repetitions=3,
            batch_size=8,
            peak_bytes=Quantity(value=None, reason="no accelerator"),
        )

    return Costs(
        write_seconds_per_context=seconds,
        read_seconds_per_query=seconds,
        batch_size=8,
        write=phase(write_flops),
        read=phase(read_flops),
    )


def example_row(example_id: str = "test-0-0", **changes: Any) -> ExampleRow:
    values = {
        "example_id": example_id,
        "context_id": example_id.rpartition("-")[0],
        "prediction": "Qz",
        "targets": ["Qz"],
        "exact_match": True,
        "f1": 1.0,
        "teacher_forced_exact_match": True,
        "token_accuracy": 1.0,
        "target_bits_per_token": 0.125,
        "reconstruction_nats_per_token": 1.5,
        "target_tokens": 3,
        "context_tokens": 25,
        "context_truncated": False,
        "state_bytes": 2048,
        "read_positions": 8,
    }
    return ExampleRow(**(values | changes))


def write_run(
    folder: Path,
    right: Sequence[bool],
    method: str = "gradmem",
    queries: int = 1,
    seed: int = 0,
    own: Sequence[float | None] | None = None,
    **changes: Any,
) -> RunRecord:
    """A run's folder, with all its files: of each context so many `queries`, answered right or wrong as `right` says.

    `own` are the scores of the task's own metric; `changes` replace fields of the record.
    """
    rows = [
        example_row(
            f"test-{index // queries}-{index % queries}",
            exact_match=bool(hit),
            f1=1.0 if hit else 0.25,
            task_score=None if own is None else own[index],
        )
        for index, hit in enumerate(right)
    ]
    log = ExampleLog(folder)
    log.append(rows)
    log.finish()
    contexts = len(rows) // queries
    sizes = {"limit": None, "contexts": contexts, "queries": len(rows)}
    values = {
        "task": TASK.model_copy(update=sizes),
        "training": TRAINING.model_copy(update={"seed": seed}),
        "metrics": metric_results(rows),
        "run_id": folder.name,
    }
    record = run_record(method, **(values | changes))
    write_record(record, folder)
    return record
